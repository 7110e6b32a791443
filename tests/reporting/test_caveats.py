"""Tests of the warnings in reports."""

from pneumojax.reporting.caveats import describe_synthetic


def test_only_synthetic_data_have_the_warning():
    assert "say nothing about X-rays" in describe_synthetic({"synthetic": True})
    assert describe_synthetic({"synthetic": False}) == ""
