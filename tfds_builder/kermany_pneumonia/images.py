"""Opens image files, for the builder and the decoder: checks format and size, and reads the orientation."""

import io

from PIL import ExifTags, Image

FORMATS = ("JPEG", "PNG")

# The largest detectors have about 20 megapixels. A file can declare far more in a few bytes, and decoding would then
# take gigabytes of memory (a "decompression bomb").
MAX_PIXELS = 50_000_000

# {value of the EXIF orientation tag: operation that turns the stored pixels upright} (EXIF 2.32, section 4.6.4).
TRANSPOSITIONS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
SWAPPED_SIDES = (5, 6, 7, 8)  # Orientations that exchange width and height.

# Bytes 24 and 25 of a PNG file are the bit depth and the colour type of its header.
PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
PNG_GREY = 0


def open_image(data: bytes, formats: tuple[str, ...] = FORMATS) -> Image.Image:
    """Reads the header of an image file. The pixels are not decoded yet.

    Args:
        data: the bytes of the file.
        formats: Pillow's names of the formats that are opened. The data set consists of JPEG and PNG files.

    Returns:
        The image. Its `load` decodes the pixels, and can raise any type of error if the file is damaged.

    Raises:
        OSError: the bytes are not an image of these formats, the image has more than MAX_PIXELS pixels, or it is a PNG
            with 16 bits per channel that is not plain grey. Pillow reads only the upper 8 bits of such a file, so an
            image that uses 12 bits would be nearly black.
    """
    try:
        image = Image.open(io.BytesIO(data), formats=formats)
    except Image.UnidentifiedImageError as error:  # Its message contains a memory address.
        raise OSError(f"it is neither {', '.join(formats[:-1])} nor {formats[-1]}") from error
    except Image.DecompressionBombError as error:
        raise OSError(f"it has more than {MAX_PIXELS:,} pixels") from error
    except Exception as error:  # Pillow raises many types for a damaged header, from SyntaxError to struct.error.
        raise OSError(str(error)) from error
    if image.width * image.height > MAX_PIXELS:
        raise OSError(f"it has {image.width} x {image.height} pixels, more than the limit of {MAX_PIXELS:,}")
    if data.startswith(PNG_SIGNATURE) and data[24] == 16 and data[25] != PNG_GREY:
        raise OSError("it is a PNG with 16 bits per channel in colour or with transparency; save it as 16-bit grey")
    return image


def read_orientation(image: Image.Image) -> int:
    """Reads the EXIF orientation tag.

    Args:
        image: an image from `open_image`.

    Returns:
        1 (as stored) to 8. It is 1 if the tag is missing, has an unknown value, or is in an EXIF block that cannot be
        read. Image viewers ignore a damaged block too.
    """
    try:
        orientation = image.getexif().get(ExifTags.Base.Orientation)
    except Exception:  # Pillow raises many types for a damaged EXIF block.
        return 1
    return orientation if orientation in TRANSPOSITIONS else 1
