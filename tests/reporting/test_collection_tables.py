"""Tests of the tables of a collection."""

from pneumojax.reporting.collection_tables import describe_collection, make_collection_tables

ROW = {"title": "exposure", "reference": [1.0, 2.0, 3.0], "collection": [2.0, 3.0, 4.0], "auroc": 0.75}
SAME = {"target": 0.95, "threshold": 0.25, "sensitivity": 0.95, "specificity": 0.5}


def make_results(**changes):
    collection = {"kinds_known": True, "patients_known": True, "unreadable": [], "reason": None}
    collection |= {"reference": "validation", "shift": {"exposure": ROW}, "same_sensitivity": SAME}
    return {
        "collection": collection | changes,
        "counts": {"classes": {"NORMAL": 3, "PNEUMONIA": 4}},
        "metrics": {"sensitivity": {"value": 0.9}, "specificity": {"value": None}},
        "threshold": {"value": 0.4},
    }


def test_the_threshold_that_would_be_needed_is_marked():
    shift, thresholds = make_collection_tables(make_results())
    assert shift.rows == [("exposure", "2 (1 to 3)", "3 (2 to 4)", "0.750")]
    assert thresholds.rows[0] == ("as stored", "0.4", "0.900", "-")
    assert "not for reporting" in thresholds.rows[1][0] and "Do not report" in thresholds.caption


def test_without_validation_there_are_no_tables_but_the_reason():
    results = make_results(shift=None, same_sensitivity=None, reason="Not compared.")
    assert make_collection_tables(results) == []
    assert describe_collection(results)[-1] == "Not compared."


def test_files_that_were_left_out_and_unknown_patients_are_named():
    text = " ".join(describe_collection(make_results(patients_known=False, unreadable=[["a.png", "it is empty"]])))
    assert "1 file was left out as unreadable. The first: a.png (it is empty)." in text
    assert "each image counts as a patient" in text
