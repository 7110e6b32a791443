"""Tests a training on a GPU or TPU. The other tests run on simulated CPU devices."""

import jax
import numpy as np
import pytest
from trainer import BATCH, SGD, Trainer, draw_batches


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_training_on_the_accelerator_learns_and_stays_there(dtype):
    if jax.default_backend() == "cpu":
        pytest.skip("there is no accelerator")
    training = Trainer(1, model="cnn", dtype=dtype, **SGD)
    losses = np.concatenate([training.train(draw_batches(4))["loss"] / BATCH for _ in range(10)])
    assert np.isfinite(losses).all() and losses[-4:].mean() < losses[:4].mean()
    platforms = {device.platform for leaf in jax.tree.leaves(training.state) for device in leaf.devices()}
    assert platforms == {jax.default_backend()}
