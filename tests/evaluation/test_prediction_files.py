"""Tests of pneumojax.evaluation.prediction_files: reading, damaged files, and comparison of the images."""

import pytest
from scored import make_pair, write_evaluation

from pneumojax.errors import UserError
from pneumojax.evaluation.prediction_files import check_same_images, read_predictions


@pytest.mark.parametrize(
    ("images", "changes", "sentence"),
    [
        (8, {}, r"2 of 10 images are only in .*a \(image8.jpeg, image9.jpeg\)"),
        (10, {"rows": {"image3.jpeg": ["person1", "neither"]}}, "damaged"),
        (
            10,
            {"rows": {"image3.jpeg": ["person77", None]}},
            "different patients, the first of them image3",
        ),
        (
            10,
            {"rows": {"image3.jpeg": ["person1", "other"]}},
            "different labels, the first of them image3",
        ),
        (10, {"fingerprint": "g"}, "files of the same name contain different images"),
    ],
)
def test_runs_of_different_data_are_refused(tmp_path, images, changes, sentence):
    labels, a, b = make_pair(10)
    for row in changes.get("rows", {}).values():
        own, other = ("PNEUMONIA", "NORMAL") if labels[3] else ("NORMAL", "PNEUMONIA")
        row[1] = {None: own, "other": other}.get(row[1], row[1])
    write_evaluation(tmp_path / "a", labels, a)
    write_evaluation(tmp_path / "b", labels[:images], b[:images], **changes)
    with pytest.raises(UserError, match=sentence):
        check_same_images(read_predictions(tmp_path / "a", "test"), read_predictions(tmp_path / "b", "test"))


def test_cut_predictions_are_damaged(tmp_path):
    labels, a, _ = make_pair(10)
    path = write_evaluation(tmp_path / "a", labels, a) / "evaluation" / "test" / "predictions.csv"
    path.write_text("\n".join(path.read_text().splitlines()[:6]))
    with pytest.raises(UserError, match="5 rows, but 10 images were scored"):
        read_predictions(tmp_path / "a", "test")


@pytest.mark.parametrize(("content", "sentence"), [("nan", "must be between 0 and 1"), (None, "has 0 rows")])
def test_predictions_that_are_no_numbers_or_missing_are_damaged(tmp_path, content, sentence):
    labels, a, _ = make_pair(10)
    path = write_evaluation(tmp_path / "a", labels, a) / "evaluation" / "test" / "predictions.csv"
    lines = path.read_text().splitlines()
    lines = [lines[0], *(line.replace(repr(float(1 - a[3])), content) for line in lines[1:] if content)]
    path.write_text("\n".join(lines))
    with pytest.raises(UserError, match=f"damaged.*{sentence}"):
        read_predictions(tmp_path / "a", "test")
