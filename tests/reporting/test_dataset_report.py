"""Tests of the data set report: its numbers are correct, and it shows training images only."""

import numpy as np
import pytest
from PIL import Image

from pneumojax.config import DataConfig
from pneumojax.data.dataset import SUBTYPES, load_split
from pneumojax.reporting import dataset_report

PICTURES = {"averages", "brightness", "classes", "patients", "sizes", *(f"samples_{name.lower()}" for name in SUBTYPES)}


@pytest.fixture(scope="module")
def config(data_dir):
    return DataConfig(dataset="phantom", data_dir=str(data_dir), image_px=32)


@pytest.fixture(scope="module")
def explored(config, draw_pictures, tmp_path_factory):
    """Returns (tables, folder, names of the loaded splits, average images in the figure)."""
    folder, loaded, averages = tmp_path_factory.mktemp("explored") / "new", [], {}
    with draw_pictures(), pytest.MonkeyPatch.context() as patch:
        draw = dataset_report.save_average_images
        patch.setattr(dataset_report, "load_split", lambda of, name: loaded.append(name) or load_split(of, name))
        patch.setattr(
            dataset_report, "save_average_images", lambda path, of, *rest: averages.update(of) or draw(path, of, *rest)
        )
        return dataset_report.explore(config, folder), folder, loaded, averages


def test_facts_are_those_of_the_splits(config, explored):
    splits, classes, left_out = explored[0]
    rows = {row[0]: row[1:] for row in splits.rows}
    assert splits.columns == ("split", "train", "validation", "test")
    for i, name in enumerate(splits.columns[1:]):
        split = load_split(config, name)
        assert [int(rows[of][i]) for of in SUBTYPES] == np.bincount(split.subtypes, minlength=3).tolist()
        assert (int(rows["images"][i]), int(rows["patients"][i])) == (len(split), len(set(split.patient_ids)))
        assert rows["images of a patient"][i] == f"{len(split) / len(set(split.patient_ids)):.2f}"
        assert int(rows["colour files"][i]) == np.sum(split.channels == 3)
        assert rows["width in px"][i].startswith(f"{split.widths.min()} to {split.widths.max()}, median ")
    train = load_split(config, "train")
    for c, (name, patients, brightness, width, height) in enumerate(classes.rows):
        of = train.subtypes == c
        assert (name, int(patients)) == (SUBTYPES[c], len(set(train.patient_ids[of])))
        assert int(brightness) == round(float(np.median([image.mean() for image in train.images[of]])))
        assert abs(int(width) - np.median(train.widths[of])) <= 0.5
        assert abs(int(height) - np.median(train.heights[of])) <= 0.5
    assert ["byte-identical training images left out", "1"] in left_out.rows


def test_the_page_holds_all_pictures_and_needs_no_other_file(explored):
    folder = explored[1]
    assert {path.name for path in folder.iterdir()} == {f"{name}.png" for name in PICTURES} | {"explore.html"}
    for name in PICTURES:
        with Image.open(folder / f"{name}.png") as image:
            image.load()
            assert min(image.size) > 200
    page = (folder / "explore.html").read_text()
    assert page.count('src="data:image/png;base64,') == page.count("<img") == len(PICTURES)
    assert "http" not in page and "synthetic radiographs" in page


def test_only_training_images_are_looked_at_and_averages_are_means(config, explored):
    _, _, loaded, averages = explored
    assert loaded == ["train"]
    train = load_split(config, "train")
    for c, name in enumerate(SUBTYPES):
        images = [image.astype(np.float64) for image, of in zip(train.images, train.subtypes, strict=True) if of == c]
        np.testing.assert_allclose(averages[name], sum(images) / len(images))


def test_samples_are_of_their_class_and_the_same_each_time(config):
    train = load_split(config, "train")
    samples = dataset_report._choose_samples(train)
    for c, name in enumerate(SUBTYPES):
        assert set(train.subtypes[samples[name]]) == {c}
        assert len(set(samples[name])) == min(dataset_report.SAMPLES, np.sum(train.subtypes == c))
        np.testing.assert_array_equal(samples[name], dataset_report._choose_samples(train)[name])
