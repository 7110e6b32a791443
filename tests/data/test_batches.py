"""Tests of the batches of an epoch and of an evaluation."""

import itertools

import numpy as np
import pytest

from pneumojax.data.batches import make_epoch_batches, make_eval_batches, split_epoch
from pneumojax.errors import UserError


@pytest.mark.parametrize("num_images", [32, 33, 101, 5216])
@pytest.mark.parametrize("batch_size", [1, 7, 32])
@pytest.mark.parametrize("chunk_steps", [1, 4, 16, 10**9])
def test_an_epoch_is_cut_into_equal_chunks_that_waste_little(num_images, batch_size, chunk_steps):
    chunks, steps = split_epoch(num_images, batch_size, chunk_steps)
    possible = num_images // batch_size
    assert chunks >= 1
    assert steps >= 1
    assert possible - chunks < chunks * steps <= possible
    if chunk_steps == 10**9:
        assert (chunks, steps) == (1, possible)
    else:
        assert steps <= 2 * chunk_steps


def test_a_prime_number_of_steps_is_not_one_step_a_chunk():
    assert split_epoch(163 * 32, 32, 16) == (10, 16)


def test_a_batch_larger_than_the_split_is_refused():
    with pytest.raises(UserError, match="batch_size 33 is larger than the training split of 32 images"):
        split_epoch(32, 33, 16)


def test_an_epoch_takes_each_image_at_most_once_and_depends_on_seed_and_epoch_alone():
    chunks, steps = split_epoch(101, 7, 4)
    batches = make_epoch_batches(101, 7, chunks, steps, seed=0, epoch=0)
    assert (batches.shape, batches.dtype) == ((chunks, steps, 7), np.int32)
    assert len(np.unique(batches)) == batches.size
    assert batches.min() >= 0
    assert batches.max() < 101
    np.testing.assert_array_equal(batches, make_epoch_batches(101, 7, chunks, steps, seed=0, epoch=0))
    orders = [make_epoch_batches(101, 7, chunks, steps, seed, epoch) for seed in (0, 1) for epoch in (0, 1)]
    for one, other in itertools.combinations(orders, 2):
        assert (one != other).mean() > 0.9


def test_the_images_that_sit_out_change_from_epoch_to_epoch():
    taken = [set(make_epoch_batches(101, 7, 1, 14, 0, epoch).reshape(-1).tolist()) for epoch in range(20)]
    assert {len(epoch) for epoch in taken} == {98}
    assert set.intersection(*taken) != taken[0]
    assert set.union(*taken) == set(range(101))


@pytest.mark.parametrize("num_images", [1, 7, 8, 16, 101])
@pytest.mark.parametrize("batch_size", [1, 7, 8, 128])
@pytest.mark.parametrize("devices", [1, 8])
def test_evaluation_batches_hold_every_image_once_in_order(num_images, batch_size, devices):
    batches = make_eval_batches(num_images, batch_size, devices)
    assert batches.dtype == np.int32
    np.testing.assert_array_equal(batches.reshape(-1)[:num_images], np.arange(num_images))
    assert not batches.reshape(-1)[num_images:].any()
    assert batches.shape[1] % devices == 0
    assert batches.shape[1] < min(batch_size, num_images) + devices
    assert batches.size - num_images < batches.shape[1]
