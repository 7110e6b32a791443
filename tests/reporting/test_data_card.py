"""Tests of data cards."""

from records import COUNTS, make_evaluation, make_record

from pneumojax.reporting.data_card import make_data_card


def test_a_card_of_the_kermany_data_names_source_licence_and_shortcuts():
    card = make_data_card(make_record())
    for text in ("Mendeley Data", "CC BY 4.0", "archive.zip", "**Aspect**", "# Data card of the run a", "f" * 64):
        assert text in card


def test_images_and_patients_of_each_class_and_split():
    patients = {name: {kind: n - 1 for kind, n in one.items()} | {"all": 8} for name, one in COUNTS.items()}
    card = make_data_card(make_record(patients=patients))
    assert "| train | 10 (9) | 20 (19) | 10 (9) | 40 (8) | 75.0 % |" in card
    card = make_data_card(make_record())
    assert "| train | 10 | 20 | 10 | 40 | 75.0 % |" in card and "Missing: the numbers of patients" in card


def test_label_noise_is_the_estimate_of_the_evaluation():
    card = make_data_card(make_record(evaluations={"test": make_evaluation()}))
    assert "test: the network contradicts 12.5 % of 8 labels" in card
    older = make_evaluation()
    del older["label_noise"]
    assert "Missing: the estimated share" in make_data_card(make_record(evaluations={"test": older}))


def test_other_splits_than_usual_are_described():
    assert "cross-validation" not in make_data_card(make_record())
    card = make_data_card(make_record(config={"folds": 5, "fold": 2, "train_share": 0.5}))
    assert "`test` is fold 2 of 5" in card and "a share of 0.5" in card
    record = make_record()
    record.info["data"]["counts"] = {"train": COUNTS["train"]}
    assert "no test folder" in make_data_card(record)


def test_a_card_of_synthetic_radiographs_does_not_describe_children():
    card = make_data_card(make_record(synthetic=True))
    assert "synthetic radiographs" in card and "Guangzhou" not in card and "CC BY" not in card
