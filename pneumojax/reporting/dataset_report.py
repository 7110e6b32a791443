"""The report on a data set: classes, average images, sizes, brightness, patients and samples.

It shows training images only. For the other splits, it reports only the counts in the metadata.
"""

import pathlib

import numpy as np

from pneumojax.config import DataConfig
from pneumojax.data.dataset import SUBTYPES, Split, ensure_prepared, load_split
from pneumojax.files import write_text
from pneumojax.reporting.caveats import describe_synthetic
from pneumojax.reporting.figures.data import (
    save_average_images,
    save_class_counts,
    save_distributions,
    save_images,
    save_images_per_patient,
    save_sizes,
)
from pneumojax.reporting.html import Picture, Section, load_picture, render_page
from pneumojax.reporting.tables import Table

SAMPLE_SEED = 0
SAMPLES, SAMPLE_COLUMNS = 24, 6

LEFT_OUT = {
    "left_out_redundant": "byte-identical training images left out",
    "left_out_in_test": "training images left out that are also in test",
    "left_out_contradictory": "byte-identical images left out that are labelled with two classes",
    "marked_in_test": "byte-identical test images, kept and marked",
}


def explore(config: DataConfig, directory: pathlib.Path) -> list[Table]:
    """Writes explore.html and its figures.

    Args:
      config: the data set, its folder and the image size.
      directory: folder to write to.

    Returns:
      Three tables: the splits, the classes of the training images, and the files that were left out.

    Raises:
      UserError: the data set is not prepared or is damaged.
    """
    metadata, train = ensure_prepared(config), load_split(config, "train")
    directory.mkdir(parents=True, exist_ok=True)
    tables = [_tabulate_splits(metadata), _tabulate_classes(train), _tabulate_left_out(metadata)]
    title = f"train, {len(train):,} images"
    numbers = np.unique(train.patient_ids, return_counts=True)[1]
    brightness = train.images.mean(axis=(1, 2))

    save_class_counts(directory / "classes.png", metadata["counts"])
    save_average_images(directory / "averages.png", _average(train), title)
    save_sizes(directory / "sizes.png", train.widths, train.heights, train.subtypes, SUBTYPES, title)
    save_distributions(
        directory / "brightness.png",
        brightness,
        train.subtypes,
        SUBTYPES,
        "Mean grey level of an image, 0 to 255",
        f"Brightness\n{title}",
    )
    save_images_per_patient(directory / "patients.png", numbers, title)
    samples = {}
    for name, chosen in _choose_samples(train).items():
        path = directory / f"samples_{name.lower()}.png"
        save_images(path, train.images[chosen], SAMPLE_COLUMNS, title=f"{name}, {len(chosen)} images of train")
        samples[name] = load_picture(path, f"images of {name}, chosen at random")

    pictures = {
        "classes": load_picture(directory / "classes.png", "share of each class in each split", wide=True),
        "averages": load_picture(
            directory / "averages.png",
            "average image of each class, and differences",
            "An average shows what the images of a class have in common: the position of the body, the settings of the "
            "machine, and where markers are. Differences at the edge are no sign of pneumonia.",
            True,
        ),
        "sizes": load_picture(directory / "sizes.png", "width and height of the original files by class"),
        "brightness": load_picture(directory / "brightness.png", "distribution of brightness by class"),
        "patients": load_picture(directory / "patients.png", "number of patients by their number of images"),
    }
    write_text(directory / "explore.html", _render(config, metadata, tables, pictures, samples))
    return tables


def _average(train: Split) -> dict[str, np.ndarray]:
    """Returns {class: average image, [H, W] float64} for each class that has images."""
    return {SUBTYPES[c]: train.images[train.subtypes == c].mean(axis=0) for c in np.unique(train.subtypes)}


def _choose_samples(train: Split) -> dict[str, np.ndarray]:
    """Returns {class: indices of some images}, chosen with a fixed seed."""
    rng = np.random.default_rng(SAMPLE_SEED)
    by_class = {SUBTYPES[c]: np.flatnonzero(train.subtypes == c) for c in np.unique(train.subtypes)}
    return {name: np.sort(rng.choice(of, min(SAMPLES, len(of)), replace=False)) for name, of in by_class.items()}


def _tabulate_splits(metadata: dict) -> Table:
    splits = list(metadata["counts"])
    images = {split: sum(metadata["counts"][split].values()) for split in splits}
    rows = [[name, *(f"{metadata['counts'][split][name]:,}" for split in splits)] for name in SUBTYPES]
    rows.append(["images", *(f"{images[split]:,}" for split in splits)])
    rows.append(["patients", *(f"{metadata['groups'][split]:,}" for split in splits)])
    rows.append(["images of a patient", *(f"{images[split] / metadata['groups'][split]:.2f}" for split in splits)])
    rows.append(["colour files", *(f"{metadata['rgb'][split]:,}" for split in splits)])
    for dimension in ("width", "height"):
        rows.append([f"{dimension} in px", *(_format_range(**metadata["sizes"][split][dimension]) for split in splits)])
    return Table(("split", *splits), rows)


def _format_range(min: float, median: float, max: float) -> str:
    return f"{min:.0f}" if min == max else f"{min:.0f} to {max:.0f}, median {median:.0f}"


def _tabulate_classes(train: Split) -> Table:
    rows = []
    brightness = train.images.mean(axis=(1, 2))
    for c, name in enumerate(SUBTYPES):
        of_class = train.subtypes == c
        values = (brightness, train.widths, train.heights)
        rows.append([name, f"{len(np.unique(train.patient_ids[of_class])):,}"])
        if of_class.any():
            rows[-1] += [f"{np.median(value[of_class]):.0f}" for value in values]
    columns = ("class of train", "patients", "brightness, 0 to 255", "width in px", "height in px")
    return Table(columns, rows, "Medians of the class's images.")


def _tabulate_left_out(metadata: dict) -> Table:
    numbers = {words: metadata["duplicates"][name] for name, words in LEFT_OUT.items()}
    numbers |= {f"files ignored: {reason}": number for reason, number in metadata["skipped"].items()}
    numbers["images left out that could not be decoded"] = len(metadata["bad_images"])
    return Table(
        ("when the data were prepared", "files"), [[words, f"{number:,}"] for words, number in numbers.items()]
    )


def _render(
    config: DataConfig, metadata: dict, tables: list[Table], pictures: dict[str, Picture], samples: dict[str, Picture]
) -> str:
    splits, classes, left_out = tables
    images, patients = sum(sum(of.values()) for of in metadata["counts"].values()), sum(metadata["groups"].values())
    lead = [
        f"{images:,} images of {patients:,} patients, from {metadata['source']}, at "
        f"{config.image_px} x {config.image_px} pixels.",
        "The first table counts the images of all splits. Everything else shows training images only, so that nobody "
        "learns from the images on which networks are evaluated.",
    ]
    sections = [
        Section("Splits and classes", blocks=[pictures["classes"], splits]),
        Section("Average images", blocks=[pictures["averages"]]),
        Section(
            "Size and brightness",
            ["If these differ between the classes, a network can distinguish the classes without the lungs."],
            [pictures["sizes"], pictures["brightness"], classes],
        ),
        Section(
            "Patients and duplicates",
            ["No patient is in two splits. Confidence intervals resample patients, not images."],
            [pictures["patients"], left_out],
        ),
        Section("Samples", [f"Up to {SAMPLES} images of each class, chosen at random."], list(samples.values())),
    ]
    return render_page(f"The data set {config.dataset}", lead, sections, describe_synthetic(metadata))
