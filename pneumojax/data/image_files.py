"""Reads image files of any supported format to the square that a network takes. The content decides on the format.

JPEG and PNG files are decoded by `decode.decode_image`, as in training. Files of the other formats are converted to a
grey image first and resized by the same code.
"""

import dataclasses

import numpy as np
from PIL import Image, TiffImagePlugin, UnidentifiedImageError

from pneumojax.data.decode import decode_image, make_square, scale_to_8_bits
from pneumojax.data.dicom import is_dicom, read_dicom
from tfds_builder.kermany_pneumonia.images import FORMATS, open_image

# Pillow's names of the formats that are read besides DICOM.
READ_FORMATS = (*FORMATS, "TIFF", "GIF", "BMP", "WEBP")

# {format: first bytes of its files}, as far as they are too long to be another file by chance.
SIGNATURES = {
    "JPEG": (b"\xff\xd8\xff",),
    "PNG": (b"\x89PNG\r\n\x1a\n",),
    "TIFF": (b"II*\0", b"MM\0*"),
    "GIF": (b"GIF87a", b"GIF89a"),
}

# A file is in colour if the largest and the smallest of red, green and blue differ by this share of the range, on
# average over the image. Radiographs that are stored as RGB have about 0, photographs 0.1 to 0.4.
COLOUR_LIMIT = 0.04

# Width and height of the thumbnail on which colour is measured, in pixels.
COLOUR_PX = 32

# Tags of TIFF 6.0, section 8, and the value of the second one for files in which 0 is white.
BITS_PER_SAMPLE, PHOTOMETRIC_INTERPRETATION, WHITE_IS_ZERO = 258, 262, 0


@dataclasses.dataclass(frozen=True)
class ReadImage:
    """A file that was read.

    Attributes:
      pixels: [H, W] uint8, 0 (black) .. 255 (white).
      notices: sentences about the file that may matter for its prediction.
      is_colour: whether the file is in colour. It is not measured for DICOM files.
    """

    pixels: np.ndarray
    notices: tuple[str, ...] = ()
    is_colour: bool = False


def read_image(data: bytes, image_px: int, resize: str = "squeeze") -> ReadImage:
    """Reads a radiograph of any supported format: JPEG, PNG, TIFF, GIF, BMP, WebP or DICOM.

    Of a file with several frames or pages, the first is read. Transparency is ignored. Colours become their luma.

    Args:
      data: the bytes of the file.
      image_px: height and width of the result.
      resize: squeeze, crop or pad, as in `decode.decode_image`.

    Returns:
      The pixels, [image_px, image_px], notices, and whether the file is in colour.

    Raises:
      OSError: the bytes are not an image of these formats, the image is damaged or larger than
        `tfds_builder.kermany_pneumonia.images.MAX_PIXELS`, its range of values is unknown, or it is a DICOM file and
        the package that reads it is missing. The message does not name the file.
    """
    if not data:
        raise OSError("it is empty")
    if is_dicom(data):
        grey, dicom_notices = read_dicom(data)
        image, notices = Image.fromarray(grey), list(dicom_notices)
    else:
        image = _open(data)
        notices = _describe(image)
    if min(image.size) < image_px:
        notices.append(f"the image has only {image.width} x {image.height} pixels, fewer than the network's {image_px}")
    is_colour = _is_colour(image)
    if image.format in FORMATS:
        return ReadImage(decode_image(data, image_px, resize), tuple(notices), is_colour)
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        image = _read_tiff(image)
    return ReadImage(make_square(image, image_px, resize), tuple(notices), is_colour)


def _open(data: bytes) -> Image.Image:
    try:
        return open_image(data, READ_FORMATS)
    except OSError as error:
        if isinstance(error.__cause__, UnidentifiedImageError):
            for format, starts in SIGNATURES.items():
                if data.startswith(starts):
                    raise OSError(f"it starts as a {format} file, but is damaged or cut short") from error
            raise OSError(f"it is neither {', '.join(READ_FORMATS)} nor DICOM") from error
        raise


def _describe(image: Image.Image) -> list[str]:
    """Describes what is lost when an image becomes grey. Its pixels must not be decoded yet."""
    notices = []
    try:
        if getattr(image, "is_animated", False):
            notices.append("the file has several frames or pages: the first one was read")
        if image.has_transparency_data:
            notices.append("transparency was ignored")
    except Exception as error:  # Pillow raises many types for damaged bytes.
        raise OSError(str(error)) from error
    return notices


def _is_colour(image: Image.Image) -> bool:
    """Returns whether an opened image is in colour. A large JPEG then stays decoded at a fraction of its size."""
    if image.mode not in ("RGB", "RGBA", "RGBX", "P", "PA", "CMYK", "YCbCr"):
        return False
    try:
        image.draft("RGB", (COLOUR_PX, COLOUR_PX))
        thumbnail = image.convert("RGB").resize((COLOUR_PX, COLOUR_PX), Image.Resampling.BOX)
    except Exception as error:  # Pillow raises many types for damaged bytes.
        raise OSError(str(error)) from error
    channels = np.asarray(thumbnail, np.float32) / 255
    return float((channels.max(-1) - channels.min(-1)).mean()) > COLOUR_LIMIT


def _read_tiff(image: TiffImagePlugin.TiffImageFile) -> Image.Image:
    """Decodes a TIFF file with more than 8 bits to 8 bits. Other TIFF files are returned as they are.

    Raises:
      OSError: Pillow would read only the upper 8 bits of each channel, or the range of the values is unknown.
    """
    try:
        if image.mode == "F":
            raise OSError("it is a TIFF of floating-point numbers, whose range is unknown; save it as 16-bit grey")
        if not image.mode.startswith("I"):
            if max(image.tag_v2.get(BITS_PER_SAMPLE, (1,))) > 8:
                raise OSError("it is a TIFF with more than 8 bits per channel in colour; save it as 16-bit grey")
            return image
        white_is_zero = image.tag_v2.get(PHOTOMETRIC_INTERPRETATION) == WHITE_IS_ZERO
        pixels = np.asarray(image)
    except Exception as error:  # Pillow raises many types for damaged bytes.
        raise OSError(str(error)) from error
    if pixels.min() < 0 or pixels.max() > 65535:
        raise OSError(f"its pixels are {pixels.min()} to {pixels.max()}, outside of the 16 bits 0 to 65535")
    grey = scale_to_8_bits(pixels)
    return Image.fromarray(255 - grey if white_is_zero else grey)
