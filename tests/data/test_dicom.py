"""Tests of the reader of DICOM files, with files made in the tests: windows, compressions and damage."""

import io
import struct
import sys

import numpy as np
import pytest
from encoded_images import count_refused, damage, encode, smooth_pixels

from pneumojax.data.dicom import is_dicom, read_compressed_size, read_dicom
from pneumojax.data.image_files import read_image

pydicom = pytest.importorskip("pydicom", reason="DICOM files need the extra dicom")

from pydicom import uid  # noqa: E402
from pydicom.dataset import Dataset, FileMetaDataset  # noqa: E402
from pydicom.encaps import encapsulate, get_frame  # noqa: E402
from pydicom.pixels import apply_modality_lut, apply_voi_lut  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore")  # pydicom warns about values that contradict the standard.

NO_WINDOW = "the file has no window: the image was scaled by the number of bits that it uses"


def make_dataset(pixels, bits=None, **tags):
    """Makes an uncompressed DICOM file of pixels [H, W], [H, W, 3] or [N, H, W] with tags."""
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = uid.ExplicitVRLittleEndian
    dataset.SOPClassUID = dataset.file_meta.MediaStorageSOPClassUID = uid.DigitalXRayImageStorageForPresentation
    dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = "1.2.3"
    dataset.Modality = "DX"
    colour = pixels.ndim == 3 and pixels.shape[-1] == 3
    frames = pixels.shape[0] if pixels.ndim == 3 and not colour else None
    dataset.Rows, dataset.Columns = pixels.shape[1:] if frames else pixels.shape[:2]
    if frames:
        dataset.NumberOfFrames = frames
    dataset.SamplesPerPixel = 3 if colour else 1
    if colour:
        dataset.PlanarConfiguration = 0
    dataset.PhotometricInterpretation = "RGB" if colour else "MONOCHROME2"
    dataset.BitsAllocated = 8 * pixels.dtype.itemsize
    dataset.BitsStored = bits or dataset.BitsAllocated
    dataset.HighBit = dataset.BitsStored - 1
    dataset.PixelRepresentation = int(pixels.dtype.kind == "i")
    dataset.PixelData = pixels.tobytes()
    for name, value in tags.items():
        setattr(dataset, name, value)
    return dataset


def save(dataset):
    file = io.BytesIO()
    dataset.save_as(file, enforce_file_format=True)
    return file.getvalue()


def make_file(pixels, bits=None, **tags):
    return save(make_dataset(pixels, bits, **tags))


def test_grey_of_8_to_16_bits_is_scaled_by_its_bits():
    pixels = smooth_pixels(40, 50)
    for bits, type in ((8, np.uint8), (10, np.uint16), (12, np.uint16), (14, np.uint16), (16, np.uint16)):
        stored = np.round(pixels.astype(float) * (2**bits - 1) / 255).astype(type)
        grey, notices = read_dicom(make_file(stored, bits))
        np.testing.assert_allclose(grey.astype(int), pixels, atol=1)
        assert notices == (NO_WINDOW,)
        if bits > 8:  # As in training.
            np.testing.assert_array_equal(
                read_image(encode(stored), 40).pixels, read_image(make_file(stored), 40).pixels
            )


def test_signed_pixels_are_shifted():
    pixels = smooth_pixels(40, 50).astype(np.int16)
    grey, _ = read_dicom(make_file(pixels * 16 - 2048, 12))
    np.testing.assert_allclose(grey.astype(int), pixels, atol=1)


def test_monochrome1_is_inverted():
    pixels = smooth_pixels(40, 50)
    grey, _ = read_dicom(make_file(pixels, PhotometricInterpretation="MONOCHROME1"))
    np.testing.assert_array_equal(grey, 255 - pixels)


@pytest.mark.parametrize("rescale", [None, (2.0, -100.0), (-1.0, 4095.0)])
@pytest.mark.parametrize("function", ["LINEAR", "LINEAR_EXACT", "SIGMOID"])
def test_the_window_is_that_of_the_standard(function, rescale):
    pixels = smooth_pixels(40, 50).astype(np.uint16) * 16
    dataset = make_dataset(pixels, 12, WindowCenter=[1800, 1], WindowWidth=[900, 1], VOILUTFunction=function)
    if rescale:
        dataset.RescaleSlope, dataset.RescaleIntercept = rescale
    grey, notices = read_dicom(save(dataset))
    values = pixels * rescale[0] + rescale[1] if rescale else pixels.astype(float)
    shown = {
        "LINEAR": (values - 1799.5) / 899 + 0.5,
        "LINEAR_EXACT": (values - 1800) / 900 + 0.5,
        "SIGMOID": 1 / (1 + np.exp(-4 * (values - 1800) / 900)),
    }[function]
    np.testing.assert_allclose(grey.astype(int), 255 * np.clip(shown, 0, 1), atol=1)
    assert notices == () and np.ptp(grey) > 100
    if rescale is None:
        theirs = apply_voi_lut(apply_modality_lut(pixels, dataset), dataset)
        np.testing.assert_allclose(grey.astype(int), theirs * (255 / 4095), atol=1)


def test_a_voi_lut_comes_before_the_window():
    table = Dataset()
    table.LUTDescriptor = [4096, 0, 16]
    curve = np.sqrt(np.linspace(0, 1, 4096))
    table.LUTData = np.round(curve * 65535).astype("<u2").tobytes()
    pixels = smooth_pixels(40, 50).astype(np.uint16) * 16
    tags = {"VOILUTSequence": [table], "WindowCenter": 10, "WindowWidth": 5}
    grey, notices = read_dicom(make_file(pixels, 12, **tags))
    np.testing.assert_allclose(grey.astype(int), curve[pixels] * 255, atol=1)
    assert notices == ()


@pytest.mark.parametrize(
    ("center", "width"),
    [(100, 0), (100, -5), (1e9, 10), (-1e9, 10), (float("nan"), 100), (2000, float("nan")), ("", "")],
)
def test_a_nonsense_window_is_ignored_with_a_notice(center, width):
    pixels = smooth_pixels(40, 50).astype(np.uint16) * 16
    dataset = make_dataset(pixels, 12)
    dataset.WindowCenter, dataset.WindowWidth = (None, None) if center == "" else (center, width)
    grey, notices = read_dicom(save(dataset))
    np.testing.assert_array_equal(grey, read_dicom(make_file(pixels, 12))[0])
    assert len(notices) == 1 and notices[0].startswith("the window of the file was ignored (")


def test_the_first_of_several_frames_is_read():
    frames = np.stack([smooth_pixels(40, 50, seed) for seed in range(3)])
    grey, notices = read_dicom(make_file(frames))
    np.testing.assert_array_equal(grey, frames[0])
    assert notices[0] == "the file has 3 frames: the first one was read"


def test_colours_become_their_luma():
    pixels = np.stack([smooth_pixels(40, 50, seed) for seed in range(3)], axis=-1)
    luma = pixels @ np.array([0.299, 0.587, 0.114])  # ITU-R BT.601
    np.testing.assert_allclose(read_dicom(make_file(pixels))[0], luma, atol=1)
    palette = {"PhotometricInterpretation": "PALETTE COLOR"}
    for name, factor in (("Red", 256), ("Green", 256), ("Blue", 256)):
        palette[f"{name}PaletteColorLookupTableDescriptor"] = [256, 0, 16]
        palette[f"{name}PaletteColorLookupTableData"] = (np.arange(256) * factor).astype("<u2").tobytes()
    grey, _ = read_dicom(make_file(pixels[..., 0].copy(), **palette))
    np.testing.assert_allclose(grey.astype(int), pixels[..., 0], atol=1)


def compress(pixels, syntax, bits=None):
    dataset = make_dataset(pixels, bits)
    if syntax == uid.JPEGBaseline8Bit:
        dataset.PixelData = encapsulate([encode(pixels, "JPEG", quality=98)])
        dataset["PixelData"].VR = "OB"
        dataset.file_meta.TransferSyntaxUID = syntax
    else:
        dataset.compress(syntax)
    return save(dataset)


@pytest.mark.parametrize("bits", [8, 12])
@pytest.mark.parametrize("name", ["RLELossless", "JPEGBaseline8Bit", "JPEG2000Lossless"])
def test_compressed_pixels_are_those_without_compression(name, bits):
    if name == "JPEG2000Lossless":
        pytest.importorskip("openjpeg", reason="JPEG 2000 needs the extra dicom")
    if name == "JPEGBaseline8Bit" and bits == 12:
        pytest.skip("this compression has 8 bits")
    pixels = smooth_pixels(40, 50) if bits == 8 else smooth_pixels(40, 50).astype(np.uint16) * 16
    grey, _ = read_dicom(compress(pixels, getattr(uid, name), bits))
    expected, _ = read_dicom(make_file(pixels, bits))
    np.testing.assert_allclose(grey.astype(int), expected, atol=6 if name == "JPEGBaseline8Bit" else 0)


def open_example(name):
    """Opens an example file that is part of pydicom."""
    path = pydicom.data.get_testdata_file(name, download=False)
    if path is None:
        pytest.skip("the installed pydicom has no example files")
    return pydicom.dcmread(path)


def read_example(name):
    with open(open_example(name).filename, "rb") as file:
        return read_dicom(file.read())


@pytest.mark.parametrize("compression", ["RLE", "jpeg_ls_lossless", "jp2klossless", "bigendian", "implicit"])
def test_an_example_of_each_lossless_compression_has_the_same_pixels(compression):
    pytest.importorskip("libjpeg", reason="JPEG-LS needs the extra dicom")
    expected, notices = read_example("MR_small.dcm")
    grey, _ = read_example(f"MR_small_{compression}.dcm")
    np.testing.assert_array_equal(grey, expected)
    assert "the header says that it is not a radiograph (modality MR)" in notices
    assert np.ptp(grey) > 100


@pytest.mark.parametrize(
    "name",
    ["JPGExtended", "JPEGLSNearLossless_16", "JPEG2000", "examples_palette", "examples_ybr_color", "SC_rgb_jpeg_dcmtk"],
)
def test_examples_of_other_kinds_are_read(name):
    pytest.importorskip("libjpeg", reason="12-bit JPEG needs the extra dicom")
    grey, _ = read_example(f"{name}.dcm")
    assert grey.dtype == np.uint8 and np.ptp(grey) > 60


@pytest.mark.parametrize(
    "name",
    [
        "JPGExtended",
        "JPEGLSNearLossless_16",
        "MR_small_RLE",
        "MR_small_jp2klossless",
        "MR_small_jpeg_ls_lossless",
        "SC_rgb_jpeg_dcmtk",
        "SC_rgb_jpeg_gdcm",
    ],
)
@pytest.mark.parametrize("share", [0.5, 0.95])
def test_compressed_pixels_that_are_cut_short_are_refused(name, share):
    pytest.importorskip("libjpeg", reason="12-bit JPEG needs the extra dicom")
    dataset = open_example(f"{name}.dcm")
    data = save(dataset)
    with pytest.raises(OSError, match="cut short"):
        read_dicom(data[: data.index(b"\xe0\x7f\x10\x00O") + round(share * len(dataset.PixelData))])
    frame = get_frame(dataset.PixelData, 0, number_of_frames=1)
    dataset.PixelData = encapsulate([frame[: round(share * len(frame))]])
    with pytest.raises(OSError, match="cut short|exceptions were raised|is not consistent|less than expected"):
        read_dicom(save(dataset))


def test_the_square_is_resized_as_that_of_a_png():
    pixels = smooth_pixels(300, 400)
    image = read_image(make_file(pixels), 64)
    np.testing.assert_array_equal(image.pixels, read_image(encode(pixels), 64).pixels)
    assert image.notices == (NO_WINDOW,)


def test_the_header_gives_notices():
    pixels = smooth_pixels(40, 50)
    for tags, notice in (
        ({"BurnedInAnnotation": "YES"}, "the header says that text is burnt into the image"),
        ({"ViewPosition": "LL"}, "the header says that it is a lateral view"),
        ({"Modality": "CT"}, "the header says that it is not a radiograph (modality CT)"),
    ):
        assert read_dicom(make_file(pixels, **tags))[1][0] == notice
    assert len(read_dicom(make_file(pixels, ViewPosition="AP", BurnedInAnnotation="NO", Modality="CR"))[1]) == 1


def test_what_cannot_be_read_has_a_reason():
    pixels = smooth_pixels(40, 50)
    good = make_file(pixels)
    without = make_dataset(pixels)
    del without.PixelData
    huge = make_dataset(pixels, Rows=40_000, Columns=40_000)
    wide = make_dataset(pixels.astype(np.uint32))
    exotic = make_dataset(pixels)
    exotic.file_meta.TransferSyntaxUID = uid.MPEG2MPML
    exotic.PixelData, exotic["PixelData"].VR = encapsulate([b"\0" * 100]), "OB"
    deflated = make_dataset(pixels)
    deflated.file_meta.TransferSyntaxUID = uid.DeflatedExplicitVRLittleEndian
    for data, message in (
        (save(without), "^it is a DICOM file without pixels, or it is cut short$"),
        (save(huge), "^it has 40000 x 40000 pixels, more than the limit of 50,000,000$"),
        (save(wide), "^it is a DICOM file with 32 bits per pixel"),
        (save(exotic), "MPEG2|Unable to decode|not supported"),
        (save(deflated), "^it is a deflated DICOM file"),
        (good[: len(good) - 500], "."),
        (good[:140], "."),
        (b"\0" * 128 + b"DICM", "."),
    ):
        with pytest.raises(OSError, match=message) as raised:
            read_image(data, 16)
        assert "\n" not in str(raised.value)


@pytest.mark.parametrize("name", ["Columns", "BitsAllocated", "PhotometricInterpretation"])
def test_a_missing_element_is_named(name):
    dataset = make_dataset(smooth_pixels(40, 50))
    data = save(dataset)
    tag = struct.pack("<HH", dataset[name].tag.group, dataset[name].tag.element)
    with pytest.raises(OSError, match=f"^it is a DICOM file without {name} in its header$"):
        read_dicom(data.replace(tag, tag[:2] + b"\x99\x99"))  # An element that the standard does not define.


@pytest.mark.parametrize("syntax", [None, b"1.2.840.10008.1.2.4.110", b"1.2.840.10008.1.2.4.999", b"1.2.3.4"])
def test_a_missing_or_unknown_syntax_is_refused(syntax):
    """One is JPEG XL, which pydicom does not know."""
    data = compress(smooth_pixels(40, 50), uid.RLELossless)
    start = data.index(b"\x02\x00\x10\x00UI")
    old = data[start : start + 8 + struct.unpack_from("<H", data, start + 6)[0]]
    syntax = syntax and syntax + b"\0" * (len(syntax) % 2)
    new = old[:6] + struct.pack("<H", len(syntax)) + syntax if syntax else b""
    header = data.index(b"\x02\x00\x00\x00UL") + 8  # The length of the rest of this group.
    (length,) = struct.unpack_from("<I", data, header)
    data = data[:header] + struct.pack("<I", length + len(new) - len(old)) + data[header + 4 :].replace(old, new)
    reason = f"transfer syntax {syntax.decode().strip(chr(0))}, which" if syntax else "without TransferSyntaxUID"
    with pytest.raises(OSError, match=reason):
        read_dicom(data)


def test_compressed_data_that_declare_more_pixels_than_the_header_are_refused():
    jpeg = bytearray(encode(smooth_pixels(40, 50), "JPEG"))
    start = jpeg.index(b"\xff\xc0")
    jpeg[start + 5 : start + 9] = struct.pack(">HH", 30_000, 30_000)
    assert read_compressed_size(bytes(jpeg)) == [(30_000, 30_000)]
    dataset = make_dataset(smooth_pixels(40, 50))
    dataset.file_meta.TransferSyntaxUID = uid.JPEGBaseline8Bit
    dataset.PixelData, dataset["PixelData"].VR = encapsulate([bytes(jpeg)]), "OB"
    with pytest.raises(OSError, match="it has 30000 x 30000 pixels"):
        read_dicom(save(dataset))


def test_the_size_in_compressed_data_is_found():
    pixels = smooth_pixels(40, 50)
    assert read_compressed_size(encode(pixels, "JPEG")) == [(40, 50)]
    assert read_compressed_size(encode(pixels, "JPEG", progressive=True)) == [(40, 50)]
    assert read_compressed_size(encode(pixels, "JPEG2000")) == [(40, 50)]
    for data in (b"", b"\xff\xd8", b"\xff\x4f\xff\x51", b"\0" * 100, b"\xff\xd8\xff"):
        assert read_compressed_size(data) == []


def test_a_missing_package_is_named(monkeypatch):
    data = make_file(smooth_pixels(40, 50))
    assert is_dicom(data) and not is_dicom(b"DICM") and not is_dicom(encode(smooth_pixels(40, 50)))
    monkeypatch.setitem(sys.modules, "pydicom", None)
    with pytest.raises(OSError, match="needs the extra dicom .*pip install -e '.\\[dicom\\]'"):
        read_dicom(data)


def test_any_damage_is_an_os_error_or_a_whole_image():
    rng = np.random.default_rng(0)
    pixels = smooth_pixels(24, 20)
    tags = {"WindowCenter": 100, "WindowWidth": 80}
    for data in (make_file(pixels, **tags), compress(pixels, uid.RLELossless), compress(pixels, uid.JPEGBaseline8Bit)):
        assert count_refused(damage(data, rng, first=128, cuts=20, changes=100)) > 10
