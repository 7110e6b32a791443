"""The sections of a report that show the worst errors of a network as images, with maps that explain them."""

import dataclasses
import io
from collections.abc import Mapping, Sequence

import numpy as np
from PIL import Image

from pneumojax.data.dataset import Split
from pneumojax.reporting import html
from pneumojax.reporting.figures.explanation import overlay_map
from pneumojax.reporting.format import format_score

# Largest number of images that are shown of each kind of error.
SHOWN_ERRORS = 8

# The method of the maps, which passed the tests of experiments/results/explain.md best.
MAP_METHOD = "occlusion"


@dataclasses.dataclass(frozen=True)
class ErrorMaps:
    """The maps that are shown next to the errors.

    Attributes:
      maps: {index of an image in the split: [H, W] float}, positive where the image supports the decision. Images that
        are not in it are shown without a map.
      note: sentences about the maps of this network, or the reason why there are none; "" for none.
    """

    maps: Mapping[int, np.ndarray] = dataclasses.field(default_factory=dict)
    note: str = ""


def find_errors(split: Split, scores: np.ndarray, positive: np.ndarray, missed: bool) -> np.ndarray:
    """Finds the wrong decisions of one kind.

    Args:
      split: the evaluated split.
      scores: [N] float, 0..1, higher for pneumonia.
      positive: [N] bool, whether the image is called pneumonia.
      missed: True for false negatives, False for false positives.

    Returns:
      The indices of the images, int. The most certain errors come first.
    """
    wrong = np.flatnonzero((split.subtypes > 0) & ~positive if missed else (split.subtypes == 0) & positive)
    # A stable sort: of images with equal scores, the first in the split comes first.
    return wrong[np.argsort(scores[wrong] if missed else -scores[wrong], kind="stable")]


def find_shown(split: Split, scores: np.ndarray, positive: np.ndarray) -> np.ndarray:
    """Returns the indices of all images that `show_errors` shows; arguments as in `find_errors`."""
    return np.concatenate([find_errors(split, scores, positive, missed)[:SHOWN_ERRORS] for missed in (False, True)])


def show_errors(
    split: Split, kinds: Sequence[str], scores: np.ndarray, positive: np.ndarray, missed: bool, explained: ErrorMaps
) -> html.Section:
    """Shows the wrong decisions of one kind, as the network saw the images, and the maps that explain them.

    Args:
      split: the evaluated split.
      kinds: the names of the classes by `split.subtypes`.
      scores: [N] float, 0..1, higher for pneumonia.
      positive: [N] bool, whether the image is called pneumonia.
      missed: True for false negatives, False for false positives.
      explained: the maps.
    """
    wrong = find_errors(split, scores, positive, missed)
    shown = wrong[:SHOWN_ERRORS]
    heading = "Missed" if missed else "False alarms"
    images, called = ("Images with pneumonia", "NORMAL") if missed else ("NORMAL images", "pneumonia")
    text = f"{images} that were called {called}: {len(wrong) or 'none'}"
    if not len(wrong):
        return html.Section(heading, [f"{text}."])
    if len(shown) < len(wrong):
        text += f", of which the {len(shown)} with the worst scores are shown"
    pixels = f"The network saw {split.images.shape[1]} x {split.images.shape[2]} pixels, as shown here."
    pictures = []
    for i in shown:
        caption = f"{kinds[split.subtypes[i]]}, score {format_score(scores[i])}\n{split.filenames[i]}"
        image, overlay = np.asarray(split.images[i]), b""
        if i in explained.maps:
            overlay = _encode_png(overlay_map(image, explained.maps[i], MAP_METHOD))
        pictures.append(html.Picture(_encode_png(image), caption, caption, small=not overlay, overlay=overlay))
    about = [_describe_maps(called)] if explained.maps else []
    about += [explained.note] if explained.note else []
    return html.Section(heading, [f"{text}. {pixels}", *about], pictures)


def _describe_maps(called: str) -> str:
    return (
        f"On the right is a map of the decision. Without a red area, the network would be less sure of {called}; "
        "without a blue area, surer. The colours are scaled for each image. This method, occlusion, was tested in "
        "experiments/results/explain.md. A map does not prove that a decision has a medical reason."
    )


def _encode_png(image: np.ndarray) -> bytes:
    """Converts an image, [H, W] or [H, W, 3] uint8, to the bytes of a PNG file."""
    file = io.BytesIO()
    Image.fromarray(image).save(file, format="PNG", optimize=True)
    return file.getvalue()
