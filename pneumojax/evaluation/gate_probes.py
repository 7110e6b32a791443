"""Images on which the gate is measured: made from validation images, photographs, text, noise and harmless changes.

The gate learns from none of these images. The pictures come with scikit-image and scikit-learn.
"""

import dataclasses
import functools
import io
from collections.abc import Callable, Iterator

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from pneumojax.evaluation.corruptions import CORRUPTIONS
from pneumojax.evaluation.defects import DEFECTS, make_unsuitable

# The gate learns from images with another seed.
SEED = 1

# Number of crops of each picture, and the smallest share of its width and height that they show.
CROPS, SMALLEST_CROP = 20, 0.4

GENERATED_IMAGES = 100

DEFECT, UNFORESEEN, FOREIGN, HARMLESS = "defect", "unforeseen", "foreign", "harmless"

# Functions of skimage.data whose pictures are part of the package. The others would be downloaded.
PHOTOGRAPHS = ("astronaut", "cat", "coffee", "rocket", "camera", "coins", "clock", "moon")
TEXTURES = ("brick", "grass", "gravel", "cell", "immunohistochemistry", "retina", "microaneurysms", "hubble_deep_field")
SCANNED_TEXT = ("page", "text")


@dataclasses.dataclass(frozen=True)
class Probe:
    """Images of one kind.

    Attributes:
      kind: DEFECT (the gate learns this kind), UNFORESEEN (X-rays with other defects), FOREIGN (no X-rays) or HARMLESS
        (X-rays that should not be flagged).
      title: what the images are, in a few words.
      flag: the flag that names the images; None: there is none.
      make_files: returns the bytes of the image files.
    """

    kind: str
    title: str
    flag: str | None
    make_files: Callable[[], list[bytes]]


def list_probes(images: np.ndarray) -> Iterator[Probe]:
    """Lists all probes.

    Args:
      images: [N, H, W] uint8, suitable images on which the gate was not trained.

    Yields:
      The probes. Those of X-rays have N files.
    """

    def change(kind: str, title: str, flag: str | None, make: Callable[[np.ndarray], np.ndarray]) -> Probe:
        return Probe(kind, title, flag, lambda: [encode_png(image) for image in make(images)])

    for name, defect in DEFECTS.items():
        yield change(DEFECT, defect.title, name, functools.partial(_make_with_defect, name))
    yield change(UNFORESEEN, "upside down: top and bottom exchanged", None, lambda some: some[:, ::-1])
    yield change(UNFORESEEN, "rotated by 45 degrees", None, functools.partial(_rotate, 45))
    yield change(UNFORESEEN, "inverted and mirrored", None, lambda some: 255 - some[:, :, ::-1])
    yield change(UNFORESEEN, "squeezed to half of the width, black on both sides", None, _narrow)
    yield from _list_foreign()
    for degrees in (5, 10):
        yield change(HARMLESS, f"rotated by {degrees} degrees", None, functools.partial(_rotate, degrees))
    for corruption in CORRUPTIONS.values():
        yield change(HARMLESS, corruption.title, None, corruption.change)


def _list_foreign() -> Iterator[Probe]:
    rng = np.random.default_rng(SEED)
    yield Probe(
        FOREIGN, "photographs in colour", "colour", lambda: _crop_pictures(PHOTOGRAPHS[:4], "RGB", samples=True)
    )
    yield Probe(FOREIGN, "photographs in grey", "picture", lambda: _crop_pictures(PHOTOGRAPHS, "L", samples=True))
    yield Probe(FOREIGN, "faces in grey, 25 x 25 pixels", "picture", _load_faces)
    yield Probe(
        FOREIGN, "textures, micrographs, sky and retina in grey", "picture", lambda: _crop_pictures(TEXTURES, "L")
    )
    yield Probe(FOREIGN, "scanned text", "text", lambda: _crop_pictures(SCANNED_TEXT, "L"))
    yield Probe(FOREIGN, "text in another font, black on white", "text", lambda: _draw_pages(rng, 255, 0))
    yield Probe(FOREIGN, "text in another font, white on black", "text", lambda: _draw_pages(rng, 0, 255))
    yield Probe(FOREIGN, "white noise", None, lambda: [encode_png(image) for image in _draw_noise(rng)])
    yield Probe(
        FOREIGN,
        "one grey without noise",
        "blank",
        lambda: [encode_png(np.full((224, 224), grey, np.uint8)) for grey in np.linspace(0, 255, GENERATED_IMAGES)],
    )


def encode_png(image: np.ndarray) -> bytes:
    """Encodes an image, [H, W] or [H, W, 3] uint8, as PNG."""
    file = io.BytesIO()
    Image.fromarray(image).save(file, "PNG", compress_level=1)
    return file.getvalue()


def _make_with_defect(name: str, images: np.ndarray) -> np.ndarray:
    return make_unsuitable(name, images, SEED)


def _rotate(degrees: float, images: np.ndarray) -> np.ndarray:
    """Rotates images [N, H, W] and fills the corners with black."""
    return np.stack([np.asarray(Image.fromarray(one).rotate(degrees, Image.Resampling.BILINEAR)) for one in images])


def _narrow(images: np.ndarray) -> np.ndarray:
    """Squeezes images [N, H, W] to the middle half of the width, on black."""
    height, width = images.shape[1:]
    narrow, left = np.zeros_like(images), width // 4
    for made, image in zip(narrow, images, strict=True):
        squeezed = Image.fromarray(image).resize((width // 2, height), Image.Resampling.BILINEAR)
        made[:, left : left + width // 2] = np.asarray(squeezed)
    return narrow


def _crop_pictures(names: tuple[str, ...], mode: str, samples: bool = False) -> list[bytes]:
    """Crops pictures of scikit-image and, if `samples`, the two photographs of scikit-learn. The first crop is all."""
    import skimage.data
    import sklearn.datasets

    pictures = [getattr(skimage.data, name)() for name in names]
    pictures += sklearn.datasets.load_sample_images().images if samples else []
    rng, files = np.random.default_rng(SEED), []
    for picture in pictures:
        image = Image.fromarray(picture).convert(mode)
        for i in range(CROPS):
            share = rng.uniform(SMALLEST_CROP, 1) if i else 1.0
            left, top = rng.uniform(0, 1 - share, 2) * image.size
            crop = image.crop((left, top, left + share * image.width, top + share * image.height))
            files.append(encode_png(np.asarray(crop)))
    return files


def _load_faces() -> list[bytes]:
    import skimage.data

    # The other 100 images of this array show no face.
    return [encode_png(np.rint(255 * face).astype(np.uint8)) for face in skimage.data.lfw_subset()[:100]]


def _draw_pages(rng: np.random.Generator, paper: int, ink: int) -> list[bytes]:
    """Draws pages of 600 x 800 pixels with English text in the font DejaVu Serif, which comes with Matplotlib."""
    from matplotlib.font_manager import findfont

    words, path, files = (np.ndarray.__doc__ or "").split(), findfont("DejaVu Serif"), []
    for _ in range(GENERATED_IMAGES):
        page, font_px = Image.new("L", (600, 800), paper), int(rng.integers(14, 40))
        font, draw = ImageFont.truetype(path, font_px), ImageDraw.Draw(page)
        for top in range(40, 760 - font_px, round(1.3 * font_px)):
            start, length = int(rng.integers(len(words))), int(rng.integers(2, 14))
            draw.text((40, top), " ".join(words[start : start + length]), ink, font)
        files.append(encode_png(np.asarray(page)))
    return files


def _draw_noise(rng: np.random.Generator) -> np.ndarray:
    return rng.integers(0, 256, (GENERATED_IMAGES, 224, 224), np.uint8)
