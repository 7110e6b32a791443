"""Reads the pixels of DICOM files as a display would show them. It needs the packages of the extra `dicom`."""

import io
import struct
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from pneumojax.data.decode import scale_to_8_bits
from tfds_builder.kermany_pneumonia.images import MAX_PIXELS

if TYPE_CHECKING:
    import pydicom

# The syntax whose whole data set is compressed. pydicom would inflate it without a limit.
DEFLATED = b"1.2.840.10008.1.2.1.99"

# Elements without which the pixels have no meaning, besides Rows and PixelData.
REQUIRED = ("Columns", "BitsAllocated", "PhotometricInterpretation")

# {start of a notice about the header: flag of an image for which the network is not made}.
HEADER_FLAGS = {
    "the header says that text is burnt into the image": "burnt_in_text",
    "the header says that it is a lateral view": "lateral",
    "the header says that it is not a radiograph": "not_radiograph",
}

# Names of lateral views in the tag View Position (DICOM PS3.3, C.8.1.10.1.1 and C.8.11.5.1.1).
LATERAL_VIEWS = ("LATERAL", "LL", "RL", "LLD", "RLD")


def is_dicom(data: bytes) -> bool:
    """Returns whether the bytes of a file start as a DICOM file does: 128 arbitrary bytes and the word DICM."""
    return data[128:132] == b"DICM"


def read_dicom(data: bytes) -> tuple[np.ndarray, tuple[str, ...]]:
    """Reads the first frame of a DICOM file, with 0 as black.

    Stored values become shown values by the modality LUT or the rescale slope, and then by the VOI LUT or the window of
    the file. A file without a usable window is scaled by the number of bits that it uses, as a 16-bit PNG is by
    `decode.decode_image`. MONOCHROME1 is inverted.

    Args:
      data: the bytes of a DICOM file.

    Returns:
      (grey, notices): [H, W] uint8, 0 (black) .. 255 (white), and sentences about the file.

    Raises:
      OSError: pydicom or the plug-in for the compression is missing, the file is damaged, has no pixels or more than
        MAX_PIXELS, or its pixels are of a kind that is not supported.

    References:
      NEMA, DICOM PS3.3, section C.11: the look-up tables and the window.
    """
    try:
        import pydicom
    except ImportError as error:
        raise OSError(
            "it is a DICOM file, which needs the extra dicom of this project: scripts/run pip install -e '.[dicom]'"
        ) from error
    if DEFLATED in data:
        raise OSError("it is a deflated DICOM file, which is not supported; convert it to another transfer syntax")
    try:
        dataset = pydicom.dcmread(io.BytesIO(data))
        notices = _describe(dataset)
        grey = _show(_read_first_frame(dataset), dataset, notices)
    except OSError:
        raise
    except Exception as error:  # pydicom and its plug-ins raise many types for damaged files.
        raise OSError(_describe_error(error)) from error
    return grey, tuple(notices)


def _describe(dataset: "pydicom.Dataset") -> list[str]:
    """Lists what the header says about the suitability of the image."""
    notices = []
    burnt_in_text, lateral, not_radiograph = HEADER_FLAGS
    if (frames := int(dataset.get("NumberOfFrames") or 1)) > 1:
        notices.append(f"the file has {frames} frames: the first one was read")
    if dataset.get("BurnedInAnnotation") == "YES":
        notices.append(burnt_in_text)
    if str(dataset.get("ViewPosition", "")).upper() in LATERAL_VIEWS:
        notices.append(lateral)
    if (modality := str(dataset.get("Modality") or "")) not in ("", "CR", "DX", "RG"):
        notices.append(f"{not_radiograph} (modality {modality})")
    return notices


def _read_first_frame(dataset: "pydicom.Dataset") -> np.ndarray:
    """Decodes the first frame: [H, W] integers, or [H, W, 3] uint8 RGB.

    Raises:
      OSError: there are no pixels, too many, or of a kind that is not supported.
    """
    from pydicom.encaps import get_frame
    from pydicom.pixels import apply_color_lut, pixel_array

    if "PixelData" not in dataset or "Rows" not in dataset:
        raise OSError("it is a DICOM file without pixels, or it is cut short")
    missing = [name for name in REQUIRED if name not in dataset]
    missing += [] if "TransferSyntaxUID" in dataset.file_meta else ["TransferSyntaxUID"]
    if missing:
        raise OSError(f"it is a DICOM file without {' and '.join(missing)} in its header")
    height, width, bits = int(dataset.Rows), int(dataset.Columns), int(dataset.BitsAllocated)
    if bits not in (8, 16):
        raise OSError(f"it is a DICOM file with {bits} bits per pixel, which is not supported")
    sizes = [(height, width)]
    syntax = dataset.file_meta.TransferSyntaxUID
    try:
        is_compressed = syntax.is_encapsulated
    except ValueError as error:
        raise OSError(f"it has the transfer syntax {syntax}, which is not supported") from error
    if is_compressed:
        frames = int(dataset.get("NumberOfFrames") or 1)
        # The size in the compressed data can be larger than the size in the header.
        frame = get_frame(dataset.PixelData, 0, number_of_frames=frames)
        sizes += read_compressed_size(frame)
        # JPEG and JPEG-LS end with a marker. Their decoders do not notice that it is missing, and invent the rest.
        if frame.startswith(b"\xff\xd8") and b"\xff\xd9" not in frame:
            raise OSError("its compressed pixels are cut short")
    for height, width in sizes:
        if height * width > MAX_PIXELS:
            raise OSError(f"it has {width} x {height} pixels, more than the limit of {MAX_PIXELS:,}")
    pixels = pixel_array(dataset, index=0)
    if dataset.PhotometricInterpretation == "PALETTE COLOR":
        colours = apply_color_lut(pixels, dataset)
        return (colours >> 8).astype(np.uint8) if colours.dtype == np.uint16 else colours
    if pixels.ndim == 3 and pixels.dtype != np.uint8:
        raise OSError("it is a colour DICOM file with more than 8 bits per channel, which is not supported")
    return pixels


def _show(pixels: np.ndarray, dataset: "pydicom.Dataset", notices: list[str]) -> np.ndarray:
    """Converts stored values to the grey values that a display shows. Appends to `notices`."""
    if pixels.ndim == 3:
        return np.asarray(Image.fromarray(pixels).convert("L"))
    low, high = int(pixels.min()), int(pixels.max())
    if high - low >= 2**16:
        raise OSError(f"its pixels are {low} to {high}, more than 16 bits")
    # Each possible value is converted once, because an image has millions of pixels.
    table = _make_table(np.arange(low, high + 1), dataset, notices)
    if dataset.PhotometricInterpretation == "MONOCHROME1":
        table = 255 - table
    return table[pixels.astype(np.int32) - low]


def _make_table(values: np.ndarray, dataset: "pydicom.Dataset", notices: list[str]) -> np.ndarray:
    """Converts ascending stored values [N] to grey values [N] uint8. Appends to `notices`."""
    from pydicom.pixels import apply_modality_lut, apply_voi, apply_windowing

    has_table, has_window = "VOILUTSequence" in dataset, "WindowCenter" in dataset and "WindowWidth" in dataset
    try:
        rescaled = apply_modality_lut(values, dataset)
        if has_table:
            shown = apply_voi(rescaled, dataset)
            black, white = 0, 2 ** int(dataset.VOILUTSequence[0].LUTDescriptor[2]) - 1
        elif has_window:
            with np.errstate(all="ignore"):  # The values far below and far above a window are infinite in a sigmoid.
                black, white = apply_windowing(np.array([-1e30, 1e30]), dataset)
                shown = apply_windowing(rescaled, dataset)
        if has_table or has_window:
            with np.errstate(all="ignore"):
                shown = (shown.astype(np.float64) - black) / (white - black)
            if np.isfinite(shown).all() and (np.ptp(shown) > 0 or len(values) == 1):
                return np.round(255 * np.clip(shown, 0, 1)).astype(np.uint8)
            reason = "it shows the whole image as one grey"
    except Exception as error:  # pydicom raises many types for tables and windows that contradict the standard.
        reason = _describe_error(error)
    if has_table or has_window:
        notices.append(f"the window of the file was ignored ({reason})")
    else:
        notices.append("the file has no window: the image was scaled by the number of bits that it uses")
    # As a 16-bit PNG in training. Signed values start at the lowest of the image.
    return scale_to_8_bits(values - min(values[0], 0))


def _describe_error(error: Exception) -> str:
    """Makes one line of a message of pydicom, which can have several lines and end with a traceback."""
    return " ".join(str(error).split("Traceback (most")[0].split()) or type(error).__name__


def read_compressed_size(frame: bytes) -> list[tuple[int, int]]:
    """Reads the size that the header of compressed data declares.

    Args:
      frame: the bytes of a frame: JPEG, JPEG-LS, JPEG 2000 or another compression.

    Returns:
      A list with the (height, width), or an empty list if the data are of another compression.

    References:
      ITU-T T.81, section B.2.2, and T.87, section C.2.2: the frame header. ITU-T T.800, section A.5.1: the marker SIZ.
    """
    start = frame.find(b"\xff\x4f\xff\x51")
    if start >= 0:  # JPEG 2000, perhaps in a JP2 file.
        if len(frame) < start + 24:
            return []
        right, bottom, left, top = struct.unpack(">4I", frame[start + 8 : start + 24])
        return [(max(bottom - top, 0), max(right - left, 0))]
    place = 2 if frame[:2] == b"\xff\xd8" else len(frame)
    while place + 9 <= len(frame) and frame[place] == 0xFF:
        marker, length = struct.unpack(">BH", frame[place + 1 : place + 4])
        # Frame headers. 0xC4, 0xC8 and 0xCC have other meanings; 0xF7 is JPEG-LS.
        if (0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC)) or marker == 0xF7:
            return [struct.unpack(">HH", frame[place + 5 : place + 9])]
        place += 2 + length
    return []
