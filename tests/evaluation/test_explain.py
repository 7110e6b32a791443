"""Tests of explanations: pictures of files and of a split, and which images of a split are chosen."""

import csv

import numpy as np
import pytest
from encoded_images import encode, smooth_pixels

from pneumojax.data.dataset import load_split
from pneumojax.data.image_sources import find_images
from pneumojax.evaluation.ensemble import Ensemble
from pneumojax.evaluation.explain import (
    BATCH_SIZE,
    choose_certain,
    choose_random,
    explain_errors,
    explain_files,
    explain_split,
    make_batches,
    make_explainer,
)
from pneumojax.evaluation.run import open_run

pytest.importorskip("tensorflow_datasets")


@pytest.mark.slow
def test_files_that_cannot_be_read_are_rows_and_names_do_not_leave_the_folder(workdir, tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    for i, name in enumerate(("a b.png", "é\n$x^2.png", "..png")):
        (folder / name).write_bytes(encode(smooth_pixels(40, 50, i)))
    (folder / "notes.txt").write_text("no image")
    paths = [str(folder / name) for name in ("a b.png", "notes.txt", "é\n$x^2.png", "..png", "gone.png")]
    out = tmp_path / "out"
    rows = explain_files(open_run(workdir), find_images(paths), out)
    assert [row["file"] for row in rows] == paths
    assert [row["error"] is not None for row in rows] == [False, True, False, False, True]
    pictures = {row["picture"] for row in rows if row["picture"]}
    assert {path.name for path in out.iterdir()} == pictures | {"explanations.csv"}
    assert rows[0]["picture"] == "0001_a_b.png" and rows[2]["picture"].startswith("0003_")
    with (out / "explanations.csv").open(newline="") as file:
        assert [row["file"] for row in csv.DictReader(file)] == paths


@pytest.mark.slow
def test_a_split_is_explained_in_more_than_one_batch(workdir, tmp_path):
    rows = explain_split(open_run(workdir), "validation", BATCH_SIZE + 1, "random", tmp_path / "out")
    assert len({row["picture"] for row in rows}) == BATCH_SIZE + 1
    rows = explain_split(open_run(workdir), "validation", 2, "certain", tmp_path / "certain")
    assert len(rows) == 2


@pytest.mark.slow
def test_the_maps_of_an_image_do_not_depend_on_its_batch(workdir):
    run = open_run(workdir)
    images = np.asarray(load_split(run.config.data, "validation").images[: BATCH_SIZE + 3])
    positive = np.arange(len(images)) % 2 == 0
    explainer = make_explainer(run)
    for method in explainer.methods:
        together = explainer.explain(method, images, positive)
        alone = explainer.explain(method, images[-1:], positive[-1:])
        np.testing.assert_allclose(together[-1:], alone, rtol=1e-4, atol=1e-5)


def test_batches_have_one_size():
    images, positive = np.arange(20, dtype=np.uint8)[:, None, None], np.arange(20) < 10
    batches = list(make_batches(images, positive))
    assert [(len(batch), kept) for batch, _, kept in batches] == [(BATCH_SIZE, BATCH_SIZE), (BATCH_SIZE, 4)]
    assert batches[1][0][:4, 0, 0].tolist() == [16, 17, 18, 19]
    assert batches[0][1].tolist() == [1] * 10 + [-1] * 6


def test_a_perceptron_is_explained_without_grad_cam(make_run, caplog):
    with caplog.at_level("WARNING", "pneumojax"):
        explainer = make_explainer(open_run(make_run()))
    assert list(explainer.methods) == ["occlusion", "integrated_gradients"]
    assert "Grad-CAM is left out: it needs a layer with spatial positions, which mlp does not have." in caplog.text


def test_half_of_the_certain_images_are_wrong_decisions(workdir):
    split = load_split(open_run(workdir).config.data, "validation")
    positive = split.subtypes > 0
    normal, sick = np.flatnonzero(~positive), np.flatnonzero(positive)
    scores = np.where(positive, 0.8, 0.2)
    scores[normal[0]], scores[sick[:2]], scores[sick[3]] = 0.9, (0.4, 0.05), 0.99
    assert choose_certain(split, scores, 0.5, 4)[:3].tolist() == [sick[1], normal[0], sick[3]]
    assert choose_certain(split, scores, 0.01, 2)[0] in normal


def test_random_images_are_distinct_and_at_most_all():
    assert choose_random(5, 9).tolist() == [0, 1, 2, 3, 4]
    assert len(set(choose_random(100, 10))) == 10


def test_the_wrong_decisions_of_a_run_have_its_occlusion_maps(make_run):
    run = open_run(make_run(), test_time_views=2)
    split = load_split(run.config.data, "validation")
    scores = np.full(len(split), 0.9)
    scores[split.subtypes > 0] = 0.1
    normal, sick = np.flatnonzero(split.subtypes == 0)[0], np.flatnonzero(split.subtypes > 0)[0]
    explained = explain_errors(run, split, scores, scores >= 0.5)
    assert len(explained.maps) == sum(min(8, np.sum((split.subtypes > 0) == ill)) for ill in (False, True)) > 10
    assert "without those of its other views" in explained.note
    for i, positive in ((normal, True), (sick, False)):
        expected = make_explainer(run).explain("occlusion", split.images[i : i + 1], np.array([positive]))[0]
        np.testing.assert_allclose(explained.maps[i], expected, rtol=1e-4, atol=1e-5)
    right = explain_errors(run, split, 1 - scores, scores < 0.5)
    assert (right.maps, right.note) == ({}, "")


def test_the_maps_of_an_ensemble_are_means_and_networks_of_other_sizes_have_none(make_run, tmp_path):
    members = tuple(open_run(make_run(seed=seed)) for seed in (0, 1))
    split = load_split(members[0].config.data, "validation")
    scores = np.where(split.subtypes > 0, 0.9, 0.1)
    wrong = int(np.flatnonzero(split.subtypes == 0)[2])
    scores[wrong] = 0.8
    arguments = split, scores, scores >= 0.5
    explained = explain_errors(Ensemble(tmp_path, members), *arguments)
    alone = [explain_errors(run, *arguments).maps[wrong] for run in members]
    assert np.abs(alone[0] - alone[1]).max() > 1e-3
    np.testing.assert_allclose(explained.maps[wrong], np.mean(alone, axis=0), rtol=1e-5, atol=1e-6)
    assert list(explained.maps) == [wrong] and explained.note == "The map is the mean of the maps of 2 networks."
    others = explain_errors(Ensemble(tmp_path, (members[0], open_run(make_run(image_px=24)))), *arguments)
    assert not others.maps and "the networks see different images" in others.note
