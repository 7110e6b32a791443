"""Images that are unsuitable for a network of children's chest X-rays, made from suitable ones.

The gate learns from these images what to flag (see `gate_training`), and its detection is measured on them (see
`gate_report`). The functions that make one image map an image [H, W] uint8 and a random generator to an image of the
same shape. `vary` makes suitable images, which should not be flagged.
"""

import dataclasses
from collections.abc import Callable

import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageFont

LETTERS = list("abcdefghijklmnopqrstuvwxyz")

# Width and height of the page on which text is drawn before it is resized, in pixels.
PAGE_PX = 224


@dataclasses.dataclass(frozen=True)
class Defect:
    """A reason why an image is unsuitable.

    Attributes:
      title: what is wrong with the image, in a few words.
      make: function from an image [H, W] uint8 and a random generator to an unsuitable image [H, W] uint8.
    """

    title: str
    make: Callable[[np.ndarray, np.random.Generator], np.ndarray]


def clip_exposure(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Stretches the grey values so that 25 % to 50 % of the pixels become black, or that many become white."""
    grey, share = image.astype(np.float32), rng.uniform(0.25, 0.5)
    if _toss(rng):
        black, white = np.quantile(grey, share), grey.max()
    else:
        black, white = grey.min(), np.quantile(grey, 1 - share)
    return np.rint(np.clip((grey - black) / max(white - black, 1) * 255, 0, 255)).astype(np.uint8)


def crop_corner(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Crops to one corner, 45 % to 60 % of both axes, and enlarges the crop."""
    return _crop(image, rng.uniform(0.45, 0.6), _toss(rng), rng.uniform(0.45, 0.6), _toss(rng))


def crop_half(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Crops to the left or right 50 % to 60 % of the width and stretches the crop.

    One lung and the spine at the edge remain, which is the nearest to a lateral view that can be made from frontal
    views.
    """
    return _crop(image, rng.uniform(0.5, 0.6), _toss(rng), 1.0, False)


def _toss(rng: np.random.Generator) -> bool:
    return bool(rng.integers(2))


def _crop(image: np.ndarray, width: float, right: bool, height: float, bottom: bool) -> np.ndarray:
    """Crops to a share of each axis, at its start or its end, and resizes the crop to the size of the image."""
    rows, columns = image.shape
    left, top = right * (1 - width) * columns, bottom * (1 - height) * rows
    box = (left, top, left + width * columns, top + height * rows)
    return np.asarray(Image.fromarray(image).resize((columns, rows), Image.Resampling.BILINEAR, box))


def collimate_corner(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Makes all black but one corner, 45 % to 65 % of both axes."""
    row_slice, column_slice = (_choose_end(size, rng.uniform(0.45, 0.65), _toss(rng)) for size in image.shape)
    dark = np.zeros_like(image)
    dark[row_slice, column_slice] = image[row_slice, column_slice]
    return dark


def _choose_end(size: int, share: float, last: bool) -> slice:
    kept = round(share * size)
    return slice(size - kept, size) if last else slice(0, kept)


def widen_field(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Shrinks the image to 45 % to 65 % of both axes, anywhere on a dark background.

    A small child fills such a part of the field of view for an adult.
    """
    rows, columns = (round(size * rng.uniform(0.45, 0.65)) for size in image.shape)
    top, left = (
        round((size - part) * rng.uniform(0.3, 0.7)) for size, part in zip(image.shape, (rows, columns), strict=True)
    )
    field = np.full_like(image, rng.integers(0, 60))
    shrunk = Image.fromarray(image).resize((columns, rows), Image.Resampling.BILINEAR)
    field[top : top + rows, left : left + columns] = np.asarray(shrunk)
    return field


def draw_blank(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Draws one grey with a slight gradient and slight noise."""
    rows, columns = (np.linspace(-1, 1, size) * rng.uniform(-8, 8) for size in image.shape)
    noise = rng.normal(0, rng.uniform(0, 4), image.shape)
    grey = rng.uniform(0, 255) + rows[:, None] + columns + noise
    return np.rint(np.clip(grey, 0, 255)).astype(np.uint8)


def draw_text_page(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Draws dark lines of random words on white."""
    page = Image.new("L", (PAGE_PX, PAGE_PX), int(rng.integers(220, 256)))
    draw, font_px = ImageDraw.Draw(page), int(rng.integers(7, 17))
    font, margin, ink = ImageFont.load_default(font_px), int(rng.integers(5, 30)), int(rng.integers(0, 80))
    for top in range(margin, PAGE_PX - margin, round(1.4 * font_px)):
        if rng.random() < 0.85:  # Otherwise the line stays empty, as between paragraphs.
            words = ("".join(rng.choice(LETTERS, rng.integers(2, 10))) for _ in range(rng.integers(3, 10)))
            draw.text((margin, top), " ".join(words), ink, font)
    return np.asarray(page.resize(image.shape[::-1], Image.Resampling.BILINEAR))


def draw_picture(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Draws overlapping discs and rectangles of many sizes, blurred, with a gradient and noise, as a photograph.

    References:
      Lee, Mumford and Huang, "Occlusion Models for Natural Images", 2001: such pictures have the statistics of
        photographs.
    """
    height, width = image.shape
    page = Image.new("L", (width, height), int(rng.integers(256)))
    draw = ImageDraw.Draw(page)
    for size in np.sort(0.02 + 0.04 * rng.pareto(1.5, int(rng.integers(5, 200))))[::-1]:
        x, y = rng.uniform(0, width), rng.uniform(0, height)
        radius_x, radius_y = min(size, 0.6) * rng.uniform(0.4, 1.6, 2) * width
        shape = draw.ellipse if _toss(rng) else draw.rectangle
        shape((x - radius_x, y - radius_y, x + radius_x, y + radius_y), int(rng.integers(256)))
    blurred = np.asarray(page.filter(ImageFilter.GaussianBlur(rng.uniform(0, 0.02) * width)))
    rows, columns = (np.linspace(-1, 1, size) * rng.uniform(-60, 60) for size in image.shape)
    grey = blurred + rows[:, None] + columns + rng.normal(0, rng.uniform(0, 15), image.shape)
    return np.rint(np.clip(grey, 0, 255)).astype(np.uint8)


# A flag of the prediction table is one of these names, "far" or "colour".
DEFECTS = {
    "rotated_90": Defect("rotated by 90 degrees, counterclockwise", lambda image, rng: np.rot90(image, 1)),
    "rotated_180": Defect("rotated by 180 degrees", lambda image, rng: np.rot90(image, 2)),
    "rotated_270": Defect("rotated by 90 degrees, clockwise", lambda image, rng: np.rot90(image, 3)),
    "inverted": Defect("inverted grey values: bones are black", lambda image, rng: 255 - image),
    "mirrored": Defect("mirrored: the heart is on the other side", lambda image, rng: image[:, ::-1]),
    "clipped": Defect("clipped exposure: a large part is black or white", clip_exposure),
    "corner": Defect("only one corner of the chest", crop_corner),
    "collimated": Defect("collimated to a corner: the rest is black", collimate_corner),
    "half": Defect("only one half of the chest, or a lateral view", crop_half),
    "wide_field": Defect("a field of view that is too large for the child", widen_field),
    "blank": Defect("blank", draw_blank),
    "text": Defect("a page of text", draw_text_page),
    "picture": Defect("a picture, not a radiograph", draw_picture),
}


def vary(images: np.ndarray, seed: int) -> np.ndarray:
    """Changes images as another hospital might: position, field of view, exposure and contrast.

    Args:
      images: [N, H, W] uint8, square.
      seed: each image has its own random generator from this seed and its index.

    Returns:
      [N, H, W] uint8, suitable images.
    """
    return np.stack([_vary_one(image, np.random.default_rng((seed, i))) for i, image in enumerate(images)])


def _vary_one(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Rotates by up to 10 degrees, zooms by up to 1.2 in or out with black edges, and changes contrast and exposure."""
    zoom, degrees, centre = rng.uniform(-0.18, 0.18), rng.uniform(-10, 10), np.array(image.shape[::-1]) / 2
    cosine, sine = np.exp(-zoom) * np.cos(np.radians(degrees)), np.exp(-zoom) * np.sin(np.radians(degrees))
    matrix = np.array([[cosine, sine], [-sine, cosine]])
    left, top = centre - matrix @ centre
    data = (cosine, sine, left, -sine, cosine, top)
    moved = Image.fromarray(image).transform(image.shape[::-1], Image.Transform.AFFINE, data, Image.Resampling.BILINEAR)
    grey = np.asarray(moved, np.float32)
    grey = (grey - grey.mean()) * np.exp(rng.uniform(-0.35, 0.35)) + grey.mean() + rng.uniform(-30, 30)
    return np.rint(np.clip(grey, 0, 255)).astype(np.uint8)


def make_unsuitable(name: str, images: np.ndarray, seed: int) -> np.ndarray:
    """Makes an unsuitable image of each image.

    Args:
      name: a key of DEFECTS.
      images: [N, H, W] uint8, square.
      seed: each image has its own random generator from this seed and its index.

    Returns:
      [N, H, W] uint8.
    """
    make = DEFECTS[name].make
    return np.stack([make(image, np.random.default_rng((seed, i))) for i, image in enumerate(images)])
