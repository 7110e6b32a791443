"""Tests of pneumojax.reporting.figures: every split has all figures, and none is incomplete."""

import signal
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from pneumojax.evaluation import calibration, curves, decision_curve, metrics, point_metrics
from pneumojax.evaluation.bootstrap import PatientBootstrap
from pneumojax.reporting.figures import data, evaluation, intervals, search, style, training

PICTURES = ["confusion.png", "decision.png", "pr.png", "predictive.png", "reliability.png", "roc.png"]


@pytest.fixture(autouse=True)
def drawn(draw_pictures):
    with draw_pictures():
        yield


def draw_all(folder, labels, probabilities, threshold):
    """Writes the figures of a split as an evaluation does, and returns the files."""
    bootstrap = PatientBootstrap(np.arange(len(labels)), 50)
    scores = point_metrics.compute_binary_scores(probabilities)
    result = metrics.compute_metrics(labels, probabilities, threshold, bootstrap)
    roc = curves.compute_roc_curve(labels, scores, bootstrap)
    pr = curves.compute_pr_curve(labels, scores, bootstrap)
    confusion = point_metrics.compute_confusion(labels, probabilities.argmax(axis=1), probabilities.shape[1])
    evaluation.save_roc(folder / "roc.png", roc, result, threshold, title="test")
    evaluation.save_precision_recall(folder / "pr.png", pr, result, threshold, title="test")
    evaluation.save_confusion_matrix(folder / "confusion.png", confusion, "ABC"[: len(confusion)])
    fitted = calibration.compute_calibration(labels, probabilities, bootstrap)
    bins = calibration.compute_reliability(labels, scores)
    evaluation.save_reliability(
        folder / "reliability.png",
        {"before": bins, "after": bins},
        {"before": fitted, "after": fitted, "temperature": 1.2},
    )
    curve = decision_curve.compute_decision_curve(labels, scores, bootstrap)
    evaluation.save_decision_curve(folder / "decision.png", curve, title="test")
    grid = calibration.PREVALENCE_GRID
    values = calibration.compute_predictive_values(labels, scores, threshold, grid, bootstrap)
    counts = {"images": len(labels), "classes": {"NORMAL": labels.count(0) if isinstance(labels, list) else 20}}
    evaluation.save_predictive_values(folder / "predictive.png", {"prevalence": grid} | values, counts, threshold)
    return sorted(file.name for file in folder.iterdir())


def is_picture(path, colour="#FFFFFF", top=1.0):
    """Returns whether a PNG can be decoded and has a colour in its upper part."""
    with Image.open(path) as image:
        assert image.format == "PNG"
        pixels = np.asarray(image.convert("RGB"))
    assert min(pixels.shape[:2]) > 200
    return np.all(pixels[: int(top * len(pixels))] == tuple(bytes.fromhex(colour[1:])), axis=-1).any()


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("classes", [2, 3])
def test_pictures_of_a_split(tmp_path, classes):
    labels = np.arange(60) % classes
    probabilities = (np.random.default_rng(0).dirichlet(np.ones(classes), size=60) + np.eye(classes)[labels]) / 2
    assert draw_all(tmp_path, labels, probabilities, 0.5) == PICTURES
    for name in ("pr.png", "roc.png"):
        assert is_picture(tmp_path / name, style.BLUE)  # the curve
        assert is_picture(tmp_path / name, style.ORANGE, top=0.5)  # the operating point, whose text is below
    assert is_picture(tmp_path / "confusion.png")
    assert is_picture(tmp_path / "reliability.png", style.BLUE)
    assert is_picture(tmp_path / "decision.png", style.BLUE, top=0.5)
    assert is_picture(tmp_path / "decision.png", style.ORANGE, top=0.5)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("labels", [[0], [1], [0, 0, 0], [1, 1, 1], [0, 1]])
@pytest.mark.parametrize("threshold", [0.0, 0.5, 0.99999, 1.0])
def test_pictures_of_splits_that_lack_something(tmp_path, labels, threshold):
    probabilities = np.full((len(labels), 2), 0.5)
    assert draw_all(tmp_path, labels, probabilities, threshold) == PICTURES
    assert is_picture(tmp_path / "roc.png", style.BLUE) == (len(set(labels)) == 2)
    assert is_picture(tmp_path / "pr.png", style.BLUE) == (1 in labels)
    assert is_picture(tmp_path / "reliability.png", style.BLUE)
    # All images have the same score and the same prediction, so only one predictive value exists.
    both, all_positive = len(set(labels)) == 2, threshold <= 0.5
    curves = [is_picture(tmp_path / "predictive.png", colour, top=0.7) for colour in (style.ORANGE, style.BLUE)]
    assert curves == [both and all_positive, both and not all_positive]


@pytest.mark.filterwarnings("error")
def test_predictive_values_with_their_bands(tmp_path):
    labels = np.arange(40) % 2
    decisions = np.where(np.arange(40) < 10, 1 - labels, labels)
    values = calibration.compute_predictive_values(
        labels, decisions, 0.5, [0.1, 0.5, 0.9], PatientBootstrap(np.arange(40), 50)
    )
    counts = {"images": 40, "classes": {"NORMAL": 20}}
    evaluation.save_predictive_values(tmp_path / "a.png", {"prevalence": [0.1, 0.5, 0.9]} | values, counts, 0.5)
    for colour in (style.BLUE, style.ORANGE):
        assert is_picture(tmp_path / "a.png", colour, top=0.7)  # the curves, whose text is below


@pytest.mark.filterwarnings("error")
def test_learning_curves_of_a_log(tmp_path):
    path = tmp_path / "learning_curves.png"
    rows = [{"step": s, "epoch": s / 10, "train/loss": 1 / s, "perf/images_per_second": 900.0} for s in range(1, 31)]
    rows += [{"step": s, "epoch": s / 10, "val/loss": 0.5, "val/auroc": 0.9, "val/accuracy": 0.8} for s in (10, 20, 30)]
    training.save_learning_curves(path, rows, title="cnn")
    assert is_picture(path, style.BLUE) and is_picture(path, style.ORANGE)
    with Image.open(path) as image:
        three_panels = image.width
    training.save_learning_curves(path, rows[:30])
    with Image.open(path) as image:
        assert image.width < three_panels / 2
    assert is_picture(path, style.BLUE)
    training.save_learning_curves(path, [])
    assert is_picture(path) and not is_picture(path, style.BLUE)


def test_a_search_with_trials_of_every_state(tmp_path):
    values = [{"learning_rate": 10.0**-i, "model": model} for i, model in enumerate(("mlp", "cnn", "cnn", "mlp"))]
    states, aurocs = ("complete", "pruned", "diverged", "diverged"), (0.9, 0.8, 0.7, None)
    rows = [
        {"name": f"trial_{i}", "state": state, "auroc": auroc, "values": of_trial}
        for i, (state, auroc, of_trial) in enumerate(zip(states, aurocs, values, strict=True))
    ]
    scales = {"learning_rate": "log", "model": "choices"}
    search.save_search(tmp_path / "search.png", rows, scales, {"model": 0.6, "learning_rate": 0.4})
    assert is_picture(tmp_path / "search.png", style.BLUE)
    assert is_picture(tmp_path / "search.png", style.ORANGE)
    search.save_search(tmp_path / "none.png", rows[3:], scales, None)
    assert is_picture(tmp_path / "none.png")


def test_log_of_a_resumed_run_is_read_by_step():
    rows = [
        {"step": 1, "epoch": 0.5, "val/auroc": 0.6},
        {"step": 2, "epoch": 1.0, "val/auroc": 0.7},
        {"step": 3, "epoch": 1.5, "val/auroc": None, "val/loss": 0.3},
        {"step": 2, "epoch": 1.0, "val/auroc": 0.8},
        {"step": 4, "epoch": 2.0, "val/auroc": float("nan")},
    ]
    epochs, values = training._read_curve(rows, "val/auroc")
    assert epochs.tolist() == [0.5, 1.0]
    assert values.tolist() == [0.6, 0.8]


def test_a_failed_picture_leaves_the_old_one(tmp_path, monkeypatch):
    path = tmp_path / "confusion.png"
    evaluation.save_confusion_matrix(path, np.eye(2, dtype=int), ("NORMAL", "PNEUMONIA"))
    before = path.read_bytes()

    def fail(descriptor):
        raise OSError("No space left on device")

    monkeypatch.setattr("os.fsync", fail)
    with pytest.raises(OSError, match="No space left"):
        evaluation.save_confusion_matrix(path, np.zeros((2, 2), int), ("NORMAL", "PNEUMONIA"))
    assert [file.name for file in tmp_path.iterdir()] == ["confusion.png"]
    assert path.read_bytes() == before


def test_what_a_killed_process_left_of_a_picture_is_gone_after_the_next(tmp_path):
    code = (
        "import os, signal; from pneumojax.reporting.figures import style;"
        "os.replace = lambda *paths: os.kill(os.getpid(), signal.SIGKILL);"
        f"style.save_figure(style.make_figure(1, 1), {str(tmp_path / 'a.png')!r})"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == -signal.SIGKILL
    assert [file.name for file in tmp_path.iterdir()] != []
    style.save_figure(style.make_figure(1, 1), tmp_path / "a.png")
    assert [file.name for file in tmp_path.iterdir()] == ["a.png"]


def test_equal_numbers_make_equal_files(tmp_path):
    for name in ("a.png", "b.png"):
        evaluation.save_confusion_matrix(tmp_path / name, np.eye(3, dtype=int), ("NORMAL", "BACTERIA", "VIRUS"))
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


def test_import_is_light_and_drawing_leaves_pyplot_alone(tmp_path):
    code = (
        "import sys; from pneumojax.evaluation import metrics;"
        "from pneumojax.reporting.figures import evaluation; import numpy as np;"
        "assert not {'matplotlib', 'sklearn', 'jax'} & set(sys.modules);"
        f"evaluation.save_confusion_matrix({str(tmp_path / 'a.png')!r}, np.eye(2, dtype=int), ('NORMAL', 'PNEUMONIA'));"
        "assert 'matplotlib.pyplot' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.filterwarnings("error")
def test_intervals_are_drawn_where_they_exist(tmp_path):
    groups = {
        "network": {"a": {"value": 0.9, "ci95": [0.8, 0.95]}, "b": {"value": 0.2, "ci95": None}},
        "linear": {"c": {"value": None, "ci95": None, "reason": "One size."}},
    }
    intervals.save_intervals(tmp_path / "intervals.png", groups, "test")
    assert is_picture(tmp_path / "intervals.png", style.BLUE)
    assert is_picture(tmp_path / "intervals.png", style.ORANGE)  # the heading
    nothing = {name: {"c": {"value": None, "ci95": None, "reason": "One class."}} for name in groups}
    intervals.save_intervals(tmp_path / "nothing.png", nothing)
    assert is_picture(tmp_path / "nothing.png")


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("classes", [1, 2, 3])
def test_pictures_of_data(tmp_path, classes):
    names = ("NORMAL", "BACTERIA", "VIRUS")
    rng = np.random.default_rng(0)
    images, of = rng.integers(0, 256, (30, 16, 16)).astype(np.uint8), np.arange(30) % classes
    averages = {names[c]: images[of == c].mean(axis=0) for c in range(classes)}
    data.save_average_images(tmp_path / "averages.png", averages)
    counts = {name: int(np.sum(of == c)) for c, name in enumerate(names)}
    data.save_class_counts(tmp_path / "counts.png", {"train": counts, "test": dict.fromkeys(names, 0)})
    data.save_distributions(tmp_path / "values.png", np.arange(30.0), of, names, "number")
    data.save_images(tmp_path / "images.png", images[:5], 3, ["caption"] * 5, "title")
    data.save_images_per_patient(tmp_path / "patients.png", np.array([1, 1, 4]))
    data.save_sizes(tmp_path / "sizes.png", rng.integers(300, 900, 30), rng.integers(300, 900, 30), of, names)
    for name in ("counts", "values"):
        for c, colour in enumerate(data.CLASS_COLOURS):
            assert is_picture(tmp_path / f"{name}.png", colour) == (c < classes)
    assert is_picture(tmp_path / "patients.png", style.BLUE)
    assert all(is_picture(path) for path in tmp_path.glob("*.png"))


def test_averages_of_one_class_and_files_of_one_size_are_told_not_drawn(tmp_path, monkeypatch):
    reasons = []
    monkeypatch.setattr(data, "save_reason", lambda path, heading, metric: reasons.append(metric["reason"]))
    data.save_average_images(tmp_path / "averages.png", {"VIRUS": np.ones((4, 4))})
    side = np.full(1200, 224)
    data.save_sizes(tmp_path / "sizes.png", side, side, np.arange(1200) % 3, ("A", "B", "C"))
    data.save_sizes(tmp_path / "sizes.png", side, np.arange(1200), np.arange(1200) % 3, ("A", "B", "C"))
    assert reasons == [
        "VIRUS is the only class, so there is nothing to compare.",
        "All 1,200 files have 224 x 224 pixels: they were resized before packaging.",
    ]


def test_images_keep_their_greys(tmp_path):
    """Tests that constant images are shown with their own grey value."""
    images = [np.full((8, 8), grey, np.uint8) for grey in (0, 100, 255)]
    data.save_images(tmp_path / "images.png", images, 3)
    for grey in (0, 100, 255):
        assert is_picture(tmp_path / "images.png", f"#{grey:02X}{grey:02X}{grey:02X}")


def test_reported_figures_stand_beside_ours_also_where_ours_does_not_exist(tmp_path):
    ours = [{"value": 0.8, "ci95": [0.7, 0.9]}, {"value": 0.5, "ci95": None}, {"value": None, "ci95": None}]
    rows = [{"name": f"system {i}", "reported": 0.6, "ours": one} for i, one in enumerate(ours)]
    intervals.save_reported(tmp_path / "reported.png", rows, "test")
    assert is_picture(tmp_path / "reported.png", style.BLUE)
    assert is_picture(tmp_path / "reported.png", style.ORANGE)
