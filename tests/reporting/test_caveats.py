"""Tests of the warnings in reports."""

from records import make_evaluation

from pneumojax.reporting.caveats import describe_synthetic, describe_warnings


def test_only_synthetic_data_have_the_warning():
    assert "say nothing about X-rays" in describe_synthetic({"synthetic": True})
    assert describe_synthetic({"synthetic": False}) == ""


def test_the_last_epoch_was_not_chosen():
    results = make_evaluation("validation")
    assert describe_warnings(results)[0].startswith("Epoch, threshold and calibration were chosen")
    results["run"]["config"] = {"select_by": "last"}
    assert describe_warnings(results)[0].startswith("Threshold and calibration were chosen")
