"""Tests of the prediction of images."""

import dataclasses

import numpy as np

from pneumojax.evaluation.predict import compute_probabilities
from pneumojax.evaluation.run import open_run


def test_probabilities_of_sure_cases_stay_apart():
    sure = compute_probabilities(np.array([[0.0, 20.0], [0.0, 21.0], [-2000.0, 2000.0]]))
    assert sure[0, 1] < sure[1, 1] < 1
    np.testing.assert_allclose(sure.sum(1), 1)


def test_streamed_predictions_are_bitwise_the_resident_ones(trained, make_config):
    run = open_run(trained["binary"])
    images = np.random.default_rng(0).integers(0, 256, (37, 32, 32), np.uint8)
    logits = [
        dataclasses.replace(run, config=make_config(loader=loader, eval_batch_size=8)).predict(images)
        for loader in ("resident", "stream")
    ]
    assert logits[0].shape == (37, 2)
    np.testing.assert_array_equal(*logits)
