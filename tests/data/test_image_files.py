"""Tests of the reader of image files: each format against its pixels, and files that must be refused."""

import io
import struct
import zlib

import numpy as np
import pytest
from encoded_images import count_refused, damage, encode, smooth_pixels, squeeze, write_png
from PIL import ExifTags, Image, ImageFile

from pneumojax.data.decode import decode_image
from pneumojax.data.image_files import read_image

pytestmark = pytest.mark.filterwarnings("ignore")  # Pillow warns about damage that it tolerates.


@pytest.mark.parametrize("resize", ["squeeze", "crop", "pad"])
@pytest.mark.parametrize(
    ("format", "mode"), [("JPEG", "L"), ("JPEG", "RGB"), ("JPEG", "CMYK"), ("PNG", "L"), ("PNG", "RGBA")]
)
def test_jpeg_and_png_give_bitwise_the_pixels_of_training(format, mode, resize):
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    for options in ({}, {"exif": exif}):
        data = encode(smooth_pixels(300, 410), format, mode, **options)
        image = read_image(data, 64, resize)
        np.testing.assert_array_equal(image.pixels, decode_image(data, 64, resize))
        assert image.notices == (("transparency was ignored",) if mode == "RGBA" else ())


@pytest.mark.parametrize("format", ["TIFF", "GIF", "BMP", "WEBP"])
def test_other_formats_are_squeezed_as_png_is(format):
    pixels = smooth_pixels(100, 150)
    options = {"lossless": True} if format == "WEBP" else {}
    image = read_image(encode(pixels, format, "RGB" if format == "WEBP" else None, **options), 64)
    np.testing.assert_allclose(image.pixels.astype(int), squeeze(pixels, 64), atol=1)
    assert image.notices == ()


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "RGBA", "CMYK", "YCbCr"])
def test_tiff_modes_become_their_grey(mode):
    source = Image.fromarray(smooth_pixels(60, 80)).convert("RGB").convert(mode)
    file = io.BytesIO()
    source.save(file, "TIFF")
    expected = squeeze(np.asarray(source.convert("L")), 32)
    np.testing.assert_allclose(read_image(file.getvalue(), 32).pixels.astype(int), expected, atol=2)


def test_a_tiff_whose_colours_have_no_grey_is_refused():
    file = io.BytesIO()
    Image.merge("LAB", [Image.new("L", (40, 40), 128)] * 3).save(file, "TIFF")
    with pytest.raises(OSError, match="conversion from LAB to"):
        read_image(file.getvalue(), 32)


@pytest.mark.parametrize("compression", [None, "tiff_lzw", "tiff_adobe_deflate", "packbits", "jpeg"])
def test_tiff_compressions_are_read(compression):
    pixels = smooth_pixels(60, 80)
    got = read_image(encode(pixels, "TIFF", compression=compression), 32).pixels.astype(int)
    np.testing.assert_allclose(got, squeeze(pixels, 32), atol=8 if compression == "jpeg" else 0)


@pytest.mark.parametrize("bits", [8, 10, 12, 14, 16])
@pytest.mark.parametrize("format", ["PNG", "TIFF"])
def test_16_bit_files_are_scaled_by_the_bits_that_they_use(format, bits):
    used = np.tile(np.linspace(0, 2**bits - 1, 64).astype(np.uint16), (64, 1))
    image = read_image(encode(used, format), 64)
    np.testing.assert_allclose(image.pixels, used * (255 / (2**bits - 1)), atol=1)


def write_tiff(pixels, photometric, bits=16, samples=1, sample_format=1):
    """Makes an uncompressed little-endian TIFF file with one strip."""
    height, width = pixels.shape[:2]
    data = pixels.tobytes()
    tags = [(256, 4, 1, width), (257, 4, 1, height), (258, 3, 1, bits), (259, 3, 1, 1), (262, 3, 1, photometric)]
    tags += [
        (273, 4, 1, 8),
        (277, 3, 1, samples),
        (278, 4, 1, height),
        (279, 4, 1, len(data)),
        (339, 3, 1, sample_format),
    ]
    directory = struct.pack("<H", len(tags)) + b"".join(struct.pack("<HHII", *tag) for tag in tags) + b"\0" * 4
    return struct.pack("<2sHI", b"II", 42, 8 + len(data)) + data + directory


def test_a_tiff_in_which_zero_is_white_is_inverted():
    pixels = smooth_pixels(40, 40)
    for data in (write_tiff(pixels, 0, bits=8), write_tiff(pixels.astype("<u2") * 16, 0)):
        np.testing.assert_allclose(read_image(data, 40).pixels, 255 - pixels.astype(int), atol=1)
    np.testing.assert_array_equal(read_image(write_tiff(pixels, 1, bits=8), 40).pixels, pixels)


def test_a_tiff_of_unknown_range_is_refused():
    pixels = np.linspace(-5, 5, 1600).reshape(40, 40)
    for data, message in (
        (encode(pixels.astype(np.float32), "TIFF"), "floating-point numbers"),
        (write_tiff(pixels.astype("<i2"), 1, sample_format=2), "its pixels are -5 to 5"),
        (encode(np.full((40, 40), 70_000, np.int32), "TIFF"), "its pixels are 70000 to 70000"),
    ):
        with pytest.raises(OSError, match=message):
            read_image(data, 16)


def test_a_tiff_in_colour_of_16_bits_is_refused_because_only_half_of_its_bits_would_be_read():
    data = write_tiff(np.zeros((40, 40, 3), "<u2"), 2, samples=3)
    with pytest.raises(OSError, match="more than 8 bits per channel in colour"):
        read_image(data, 16)


@pytest.mark.parametrize("format", ["GIF", "PNG", "TIFF", "WEBP"])
def test_the_first_frame_of_an_animation_is_read_with_a_notice(format):
    frames = [Image.fromarray(np.full((40, 40), grey, np.uint8)).convert("RGB") for grey in (50, 200, 120)]
    file = io.BytesIO()
    frames[0].save(file, format, save_all=True, append_images=frames[1:])
    image = read_image(file.getvalue(), 16)
    np.testing.assert_allclose(image.pixels, 50, atol=2)
    assert image.notices == ("the file has several frames or pages: the first one was read",)


def test_a_small_image_gets_a_notice():
    (notice,) = read_image(encode(smooth_pixels(30, 200)), 64).notices
    assert notice == "the image has only 200 x 30 pixels, fewer than the network's 64"


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied_in_tiff_and_webp(orientation):
    pixels = smooth_pixels(60, 90)
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    expected = decode_image(encode(pixels, exif=exif), 32).astype(int)
    for format, mode, options in (("TIFF", None, {}), ("WEBP", "RGB", {"lossless": True})):
        got = read_image(encode(pixels, format, mode, exif=exif, **options), 32).pixels.astype(int)
        assert np.abs(got - expected).mean() < 2, format


@pytest.mark.parametrize("side", [8_000, 40_000])
@pytest.mark.parametrize("format", ["PNG", "TIFF", "BMP", "GIF"])
def test_too_many_pixels_are_refused_before_decoding(monkeypatch, format, side):
    monkeypatch.setattr(ImageFile.ImageFile, "load", lambda image: pytest.fail("decoded"))
    header = struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
    png = write_png((b"IHDR", header), (b"IDAT", zlib.compress(b"\0")))
    tiff = write_tiff(np.zeros((4, 4), np.uint8), 1, bits=8)
    for tag in (256, 257):
        tiff = tiff.replace(struct.pack("<HHII", tag, 4, 1, 4), struct.pack("<HHII", tag, 4, 1, side))
    bmp = struct.pack("<2sIHHI", b"BM", 1078, 0, 0, 1078) + struct.pack("<III", 40, side, side)
    bmp += struct.pack("<HHIIIIII", 1, 8, 0, 0, 0, 0, 256, 0) + b"\0" * 1024
    gif = b"GIF89a" + struct.pack("<HHBBB", side, side, 0x80, 0, 0) + b"\0" * 6
    gif += b"," + struct.pack("<HHHHB", 0, 0, side, side, 0) + b"\x08\0;"
    data = {"PNG": png, "TIFF": tiff, "BMP": bmp, "GIF": gif}[format]
    with pytest.raises(OSError, match="more than .*50,000,000"):
        read_image(data, 16)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "^it is empty$"),
        (b"\0" * 1000, "^it is neither JPEG, PNG, TIFF, GIF, BMP, WEBP nor DICOM$"),
        (b"<html>", "^it is neither"),
        (b"%PDF-1.7", "^it is neither"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "^it is neither"),
    ],
)
def test_what_is_no_image_is_refused_by_its_content(data, message):
    with pytest.raises(OSError, match=message):
        read_image(data, 16)


@pytest.mark.parametrize("format", ["JPEG", "PNG", "TIFF", "GIF", "BMP", "WEBP"])
def test_any_damage_to_a_file_is_an_os_error_or_a_whole_image(format):
    rng = np.random.default_rng(0)
    data = encode(smooth_pixels(24, 20), format, "RGB" if format == "WEBP" else None)
    assert count_refused(damage(data, rng, first=0, cuts=30, changes=150)) > 10


@pytest.mark.parametrize("format", ["PNG", "TIFF", "GIF"])
def test_a_file_without_a_whole_header_is_named_by_its_format(format):
    data = encode(smooth_pixels(24, 20), format, **({"compression": "tiff_lzw"} if format == "TIFF" else {}))
    cut = data[:-100] if format == "TIFF" else data[:8]  # The directory of this TIFF file is at its end.
    with pytest.raises(OSError, match=f"^it starts as a {format} file, but is damaged or cut short$"):
        read_image(cut, 16)


def make_colours(height, width, tint=None):
    """Makes an RGB picture, or with a tint (red, green, blue) a radiograph in shades of one colour."""
    channels = [smooth_pixels(height, width, seed if tint is None else 0) for seed in range(3)]
    return np.stack(channels, -1) if tint is None else np.rint(channels[0][..., None] * np.array(tint)).astype(np.uint8)


@pytest.mark.parametrize("format", ["JPEG", "PNG", "TIFF", "BMP", "WEBP", "GIF"])
def test_a_file_in_colour_is_recognised_and_stored_grey_is_not(format):
    for height, width in ((40, 50), (600, 500)):
        assert read_image(encode(make_colours(height, width), format), 32).is_colour
        assert not read_image(encode(smooth_pixels(height, width), format, mode="RGB"), 32).is_colour
        assert not read_image(encode(make_colours(height, width, (1, 0.98, 0.96)), format), 32).is_colour


def test_colours_of_other_modes_are_recognised():
    pixels = make_colours(40, 50)
    for format, mode in (("JPEG", "CMYK"), ("PNG", "P"), ("PNG", "RGBA"), ("TIFF", "CMYK")):
        assert read_image(encode(pixels, format, mode=mode), 32).is_colour, (format, mode)
    assert not read_image(encode(smooth_pixels(40, 50), "PNG", mode="LA"), 32).is_colour


def test_measuring_colour_changes_neither_pixels_nor_notices():
    data = encode(make_colours(600, 500), "JPEG")
    read = read_image(data, 64)
    assert read.notices == ()
    np.testing.assert_array_equal(read.pixels, decode_image(data, 64))
