"""Figures of explanations: an image, and the maps of its decision on top of it."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from pneumojax.reporting.figures.style import (
    COLOURS,
    GREY,
    REFERENCE,
    join_heading,
    make_figure,
    save_figure,
    use_style,
)

TITLES = {"grad_cam": "Grad-CAM", "occlusion": "Occlusion", "integrated_gradients": "Integrated gradients"}

# Standard deviation of the blur of a map, as a share of its height. It removes the edges of the occluded squares and
# the noise of single pixels. Only the pictures are blurred.
BLUR_SHARES = {"grad_cam": 0.0, "occlusion": 0.05, "integrated_gradients": 0.025}

# The map is scaled by this quantile of its absolute values. The opacity grows faster than the value, so that the
# anatomy stays visible where the map is weak.
SCALE_QUANTILE, OPACITY, OPACITY_EXPONENT = 0.995, 0.75, 1.5


def save_explanation(
    path: str | Path, image: np.ndarray, maps: Mapping[str, np.ndarray], title: str, name: str
) -> None:
    """Shows an image beside its maps.

    Args:
      path: PNG file to write. Its folder must exist.
      image: [H, W] uint8, 0..255.
      maps: {method: [H, W] float}, positive where the image supports the decision.
      title: the decision and its probability.
      name: the file, shown in small letters.

    Raises:
      OSError: the file cannot be written.
    """
    with use_style():
        figure = make_figure(2.3 * (1 + len(maps)), 2.95)
        figure.set_layout_engine("constrained", w_pad=0.04, h_pad=0.04, wspace=0, hspace=0)
        figure.suptitle(title, x=0.01, ha="left", size=10)
        panels = figure.subplots(1, 1 + len(maps), squeeze=False)[0]
        for axes, method in zip(panels, ("image", *maps), strict=True):
            axes.set_axis_off()
            axes.imshow(image, cmap="gray", vmin=0, vmax=255, interpolation="bilinear")
            axes.set_title(TITLES.get(method, "Image as the network sees it"), x=0.5, ha="center", size=8, pad=3)
            if method in maps:
                axes.imshow(colour_map(maps[method], BLUR_SHARES[method]), interpolation="bilinear")
        shown = "".join(character if character.isprintable() else "?" for character in name)[-90:]
        caption = f"{shown}\nRed supports the decision, blue contradicts it."
        figure.supxlabel(caption, x=0.01, ha="left", size=7, color=GREY, parse_math=False)
        save_figure(figure, path)


def overlay_map(image: np.ndarray, values: np.ndarray, method: str) -> np.ndarray:
    """Paints a map on top of its image, without a figure around it.

    Args:
      image: [H, W] uint8, 0..255.
      values: [H, W] float, positive where the image supports the decision.
      method: the method of the map, a key of BLUR_SHARES.

    Returns:
      [H, W, 3] uint8, 0..255: red, green and blue.
    """
    coloured = colour_map(values, BLUR_SHARES[method])
    colours, opacity = 255 * coloured[..., :3], coloured[..., 3:]
    return np.round(opacity * colours + (1 - opacity) * image[..., None]).astype(np.uint8)


def colour_map(values: np.ndarray, blur_share: float) -> np.ndarray:
    """Colours a map: red is positive, blue is negative, and values near 0 are transparent.

    Args:
      values: [H, W] float.
      blur_share: standard deviation of the blur, as a share of the height.

    Returns:
      [H, W, 4] float, 0..1: red, green, blue and opacity.
    """
    import matplotlib
    from scipy import ndimage

    blurred = ndimage.gaussian_filter(np.asarray(values, np.float64), blur_share * len(values))
    scale = np.quantile(np.abs(blurred), SCALE_QUANTILE)
    scaled = np.clip(blurred / scale, -1, 1) if scale > 0 else blurred
    coloured = matplotlib.colormaps["RdBu_r"](0.5 + 0.42 * np.sign(scaled))  # The ends of the colour map are too dark.
    coloured[..., 3] = OPACITY * np.abs(scaled) ** OPACITY_EXPONENT
    return coloured


def save_cascade(path: str | Path, methods: Mapping[str, Mapping], title: str) -> None:
    """Draws how much the maps still agree with those of the trained network, while its layers become random.

    Args:
      path: PNG file to write. Its folder must exist.
      methods: {method: {"cascade": {stage: {"value", "ci95"}}}}, from the output to the input. A method with an empty
        cascade is left out.
      title: description of the images.

    Raises:
      OSError: the file cannot be written.
    """
    cascades = {method: row["cascade"] for method, row in methods.items() if row["cascade"]}
    stages = list(next(iter(cascades.values())))
    with use_style():
        figure = make_figure(6.2, 3.2)
        axes = figure.add_subplot()
        axes.set_title(join_heading("Do the maps change when the layers become random?", title))
        axes.axhline(0, **REFERENCE)
        for i, (colour, (method, cascade)) in enumerate(zip(COLOURS, cascades.items(), strict=False)):
            means = [1.0] + [np.nan if row["value"] is None else row["value"] for row in cascade.values()]
            bounds = [(1.0, 1.0)] + [
                row["ci95"] or (mean, mean) for row, mean in zip(cascade.values(), means[1:], strict=True)
            ]
            reach = np.abs(np.transpose(bounds) - means)
            x = np.arange(len(means)) + 0.06 * (i - 1)  # Shifted, so that no interval hides another.
            axes.errorbar(
                x, means, yerr=reach, fmt="o-", markersize=4, color=colour, elinewidth=1.2, label=TITLES[method]
            )
        names = ["none", *stages[:-1], f"{stages[-1]} (all)"]
        axes.set_xticks(range(len(names)), names)
        axes.set(ylabel="rank correlation", xlabel="random layers: from this one to the output")
        axes.legend(frameon=False)
        save_figure(figure, path)
