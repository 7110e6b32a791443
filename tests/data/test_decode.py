import io
import struct
import threading
import types
import zlib

import numpy as np
import pytest
from encoded_images import encode, smooth_pixels, squeeze, write_png
from PIL import ExifTags, Image, ImageFile, ImageOps

from pneumojax.data import decode
from pneumojax.data.decode import decode_image, decode_images
from pneumojax.errors import UserError
from tfds_builder.kermany_pneumonia import SourceError, sources


@pytest.mark.parametrize("format", ["PNG", "JPEG"])
@pytest.mark.parametrize("size", [(300, 200), (200, 300), (300, 100)])
def test_crop_keeps_the_central_square_and_pad_the_whole_image(size, format):
    width, height = size
    pixels = np.asarray(Image.fromarray(smooth_pixels(40, 40)).resize(size))
    data, side, longest = encode(pixels, format), min(size), max(size)
    left, top = (width - side) // 2, (height - side) // 2
    central = pixels[top : top + side, left : left + side]
    bars = np.zeros((longest, longest), np.uint8)
    bars[(longest - height) // 2 :][:height, (longest - width) // 2 :][:, :width] = pixels
    for resize, square in (("crop", central), ("pad", bars)):
        expected = np.asarray(Image.fromarray(square).resize((60, 60), Image.BILINEAR)).astype(float)
        got = decode_image(data, 60, resize).astype(float)
        assert got.shape == (60, 60)
        assert np.abs(got - expected).mean() < 2, resize  # They mix differently at the bars.
        assert np.abs(decode_image(data, 60).astype(float) - expected).mean() > 8, "squeezing is something else"


def test_a_square_file_is_the_same_however_it_is_resized():
    data = encode(smooth_pixels(90, 90))
    for resize in ("crop", "pad"):
        np.testing.assert_array_equal(decode_image(data, 32, resize), decode_image(data, 32))


@pytest.mark.parametrize(("height", "width", "px"), [(100, 150, 32), (30, 20, 64), (1, 1, 16), (224, 224, 224)])
def test_the_whole_image_is_squeezed_into_a_square(height, width, px):
    pixels = smooth_pixels(height, width)
    image = decode_image(encode(pixels), px)
    assert (image.shape, image.dtype) == ((px, px), np.uint8)
    np.testing.assert_array_equal(image, squeeze(pixels, px))


@pytest.mark.parametrize(("height", "width"), [(1200, 1700), (1113, 1399), (640, 520), (200, 3000)])
def test_a_large_jpeg_is_near_the_one_decoded_in_full(height, width):
    data = encode(smooth_pixels(height, width), "JPEG", quality=95)
    with Image.open(io.BytesIO(data)) as image:
        full = squeeze(np.asarray(image), 64)
    difference = decode_image(data, 64).astype(float) - full
    assert np.abs(difference).mean() < 0.8
    assert np.abs(difference).max() < 5


def test_a_jpeg_is_never_decoded_below_the_target(monkeypatch):
    data = encode(smooth_pixels(1100, 1300), "JPEG")
    heights = []
    resize = Image.Image.resize
    monkeypatch.setattr(
        Image.Image, "resize", lambda self, *args: (heights.append(self.height), resize(self, *args))[1]
    )
    for px in (16, 137, 138, 139, 275, 276, 600):
        decode_image(data, px)
    assert heights == [138, 138, 275, 275, 275, 550, 1100]


@pytest.mark.parametrize(
    ("format", "mode", "options"),
    [
        ("JPEG", "RGB", {"quality": 95}),
        ("JPEG", "CMYK", {"quality": 95}),
        ("PNG", "RGB", {}),
        ("PNG", "RGBA", {}),
        ("PNG", "LA", {}),
        ("PNG", "P", {}),
        ("PNG", "L", {"transparency": 0}),
    ],
)
def test_grey_in_other_clothes_stays_the_same_grey(format, mode, options):
    pixels = np.tile(np.arange(0, 256, 4, dtype=np.uint8), (64, 1))
    image = decode_image(encode(pixels, format, mode, **options), 64)
    np.testing.assert_allclose(image.astype(int), pixels, atol=1)


@pytest.mark.parametrize("format", ["PNG", "JPEG"])
def test_colour_becomes_its_luma(format):
    colours = np.array([(255, 0, 0), (0, 255, 0), (0, 0, 255), (250, 200, 30)], np.uint8)
    for colour in colours:
        pixels = np.broadcast_to(colour, (32, 32, 3)).copy()
        image = decode_image(encode(pixels, format), 16)
        luma = colour @ np.array([0.299, 0.587, 0.114])  # ITU-R BT.601
        np.testing.assert_allclose(image, luma, atol=2)


def test_16_bit_grey_is_scaled_to_8_not_clipped():
    wide = np.tile(np.linspace(0, 65535, 64).astype(np.uint16), (64, 1))
    image = decode_image(encode(wide), 64)
    np.testing.assert_allclose(image, wide / 257, atol=1)
    assert (image.min(), image.max()) == (0, 255)


@pytest.mark.parametrize("bits", [8, 10, 12, 14, 16])
def test_16_bit_files_are_scaled_by_the_bits_that_they_use(bits):
    most = 2**bits - 1
    used = np.tile(np.linspace(0, most, 64).astype(np.uint16), (64, 1))
    image = decode_image(encode(used), 64)
    np.testing.assert_allclose(image, used * (255 / most), atol=1)
    assert (image.min(), image.max()) == (0, 255)


def test_16_bit_files_of_one_value_are_scaled_by_the_next_number_of_bits():
    for value, expected in ((0, 0), (255, 255), (256, 63), (1023, 255), (1024, 63), (4096, 63), (16384, 63)):
        image = decode_image(encode(np.full((20, 20), value, np.uint16)), 16)
        np.testing.assert_array_equal(image, expected)


@pytest.mark.parametrize(("format", "mode"), [("JPEG", None), ("JPEG", "RGB"), ("PNG", None), ("PNG", "RGB")])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_turns_the_image_as_a_viewer_does(format, mode, orientation):
    pixels = smooth_pixels(300, 400)
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    data = encode(pixels, format, mode, exif=exif, **({"quality": 95} if format == "JPEG" else {}))
    with Image.open(io.BytesIO(data)) as stored:
        shown = np.asarray(ImageOps.exif_transpose(stored).convert("L"))
    assert shown.shape == ((300, 400) if orientation < 5 else (400, 300))
    assert np.abs(decode_image(data, 32).astype(float) - squeeze(shown, 32)).mean() < 3  # wrong orientation: > 20


def test_exif_orientation_of_16_bit_files_is_applied_too():
    pixels = smooth_pixels(30, 40).astype(np.uint16) * 257
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    turned = decode_image(encode(pixels, exif=exif), 24)
    np.testing.assert_array_equal(turned, np.rot90(decode_image(encode(pixels), 24), -1))


@pytest.mark.parametrize("exif", [b"Exif\0\0nonsense", b"Exif\0\0II*\0\xff\xff\xff\xff", b"Exif\0\0"])
def test_a_damaged_exif_block_is_ignored(exif):
    pixels = smooth_pixels(30, 40)
    np.testing.assert_array_equal(
        decode_image(encode(pixels, "JPEG", exif=exif), 24), decode_image(encode(pixels, "JPEG"), 24)
    )


@pytest.mark.parametrize("format", ["GIF", "TIFF", "BMP", "WEBP", "PPM"])
def test_other_formats_are_refused(format):
    with pytest.raises(OSError, match="^it is neither JPEG nor PNG$"):
        decode_image(encode(smooth_pixels(20, 20), format), 16)


@pytest.mark.parametrize("format", ["GIF", "TIFF", "JPEG", "PNG"])
def test_the_builder_refuses_what_the_decoder_refuses_with_the_same_reason(format):
    data = encode(smooth_pixels(20, 20), format)
    data = data[: -len(data) // 3] if format in ("JPEG", "PNG") else data
    with pytest.raises(OSError, match=".") as decoder:
        decode_image(data, 16)
    with pytest.raises(SourceError) as builder:
        sources.read_facts(types.SimpleNamespace(name="source", read=lambda path: data), "image")
    assert str(builder.value) == f"image in source does not decode: {decoder.value}."


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "LA"])
def test_16_bit_colour_is_refused_because_only_half_of_its_bits_would_be_read(mode):
    channels = {"RGB": 3, "RGBA": 4, "LA": 2}[mode]
    rows = np.zeros((4, 1 + 4 * channels * 2), np.uint8).tobytes()  # Each row starts with its filter type.
    header = struct.pack(">IIBBBBB", 4, 4, 16, {"RGB": 2, "RGBA": 6, "LA": 4}[mode], 0, 0, 0)
    with pytest.raises(OSError, match="16 bits per channel in colour or with transparency; save it as 16-bit grey"):
        decode_image(write_png((b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")), 16)


@pytest.mark.parametrize("side", [7_072, 10_000, 14_000, 60_000])
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_images_above_the_pixel_limit_are_refused_before_they_are_decoded(monkeypatch, side):
    monkeypatch.setattr(ImageFile.ImageFile, "load", lambda image: pytest.fail("decoded"))
    header = struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
    bomb = write_png((b"IHDR", header), (b"IDAT", zlib.compress(b"\0" * 1000)), (b"IEND", b""))
    with pytest.raises(OSError, match="more than .*50,000,000"):
        decode_image(bomb, 16)


@pytest.mark.parametrize(
    "data",
    [
        encode(smooth_pixels(640, 520), "JPEG", quality=90),
        encode(smooth_pixels(310, 450), "JPEG", "RGB", quality=90),
        encode(smooth_pixels(100, 150)),
        encode(smooth_pixels(100, 150), "PNG", "RGB"),
    ],
    ids=["JPEG", "colour JPEG", "PNG", "colour PNG"],
)
def test_8_bit_files_give_bitwise_the_pixels_on_which_published_figures_rest(data):
    image = Image.open(io.BytesIO(data))
    drafted = image.draft("L", (32, 32))
    expected = image.convert("L").resize((32, 32), Image.Resampling.BILINEAR, drafted[1] if drafted else None)
    np.testing.assert_array_equal(decode_image(data, 32), expected)


@pytest.mark.parametrize("format", ["PNG", "JPEG"])
def test_any_damage_to_a_file_is_an_os_error_or_a_whole_image(format):
    # Pillow has other errors too: SyntaxError and ValueError for some broken PNG files.
    rng = np.random.default_rng(0)
    data = encode(smooth_pixels(24, 20), format)
    damaged = [data[: round(share * len(data))] for share in np.linspace(0, 1, 40)]
    for place in rng.integers(0, len(data), 300):
        damaged.append(data[:place] + bytes([rng.integers(256)]) + data[place + 1 :])
    # In PNG, the lengths of the chunks of the header and of the pixels.
    damaged += [data[:11] + b"\x00" + data[12:], data[:36] + b"\x00" + data[37:]]
    failed = 0
    for one in damaged:
        try:
            assert decode_image(one, 16).shape == (16, 16)
        except OSError:
            failed += 1
    assert failed > 20


def test_the_sentence_for_a_damaged_file_names_it():
    good = encode(smooth_pixels(60, 60), "JPEG")
    png = encode(smooth_pixels(60, 60))
    for bad in (good[: len(good) // 2], b"", b"no image", png[:36] + b"\x00" + png[37:]):
        with pytest.raises(UserError, match="^second.jpeg cannot be decoded as a JPEG or PNG image"):
            decode_images([good, bad, good], ["first.jpeg", "second.jpeg", "third.jpeg"], 16)


def test_many_are_decoded_in_order_each_read_once(monkeypatch):
    reads, lock = [], threading.Lock()

    class Files:
        def __len__(self):
            return 50

        def __getitem__(self, i):
            with lock:
                reads.append(i)
            return encode(smooth_pixels(20 + i, 30, seed=i), "JPEG")

    files = Files()
    one_by_one = np.stack([decode_image(files[i], 16) for i in range(50)])
    reads.clear()
    monkeypatch.setattr(decode.os, "cpu_count", lambda: 8)
    np.testing.assert_array_equal(decode_images(files, ["name"] * 50, 16), one_by_one)
    assert sorted(reads) == list(range(50))


def test_no_files_make_an_empty_array():
    assert decode_images([], [], 16).shape == (0, 16, 16)
