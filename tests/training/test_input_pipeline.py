"""Tests of the input pipeline: resident and streamed images give the same training."""

import jax
import numpy as np
import pytest
from run_files import assert_same_run, stop_at

from pneumojax import parallel
from pneumojax.data.batches import make_epoch_batches
from pneumojax.training.fit import fit
from pneumojax.training.input_pipeline import make_chunk_inputs
from pneumojax.training.plan import make_plan


@pytest.mark.slow
def test_a_streamed_run_is_bitwise_the_resident_one_stopped_or_not(make_config, compile_as_users_do, tmp_path):
    config = make_config(loader="stream")
    with compile_as_users_do():
        fit(make_config(), tmp_path / "resident")
        assert fit(config, tmp_path / "streamed", report=stop_at(8)).step < 18
        fit(config, tmp_path / "streamed")
    assert_same_run(tmp_path / "streamed", tmp_path / "resident")


@pytest.mark.slow
@pytest.mark.parametrize("parallel", ["shard_map", "pmap"])
def test_mapped_streams_are_bitwise_the_resident_runs(make_config, tmp_path, parallel):
    for loader in ("resident", "stream"):
        fit(make_config(parallel=parallel, loader=loader, epochs=1), tmp_path / loader)
    assert_same_run(tmp_path / "stream", tmp_path / "resident")


def test_a_hidden_copy_in_the_loop_is_an_error(make_config, tmp_path, monkeypatch):
    monkeypatch.setattr(parallel, "put_batches", lambda batches, config, mesh: batches)
    with pytest.raises(jax.errors.JaxRuntimeError, match="host-to-device"):
        fit(make_config(), tmp_path)


@pytest.mark.parametrize("first_step", [0, 8])
def test_chunks_are_those_of_the_epochs_from_the_first_step_on(make_config, first_step):
    config = make_config(epochs=2)
    plan, key = make_plan(config), jax.random.key(1)
    images, labels = plan.data.images, plan.labels()
    epochs = [make_epoch_batches(len(images), 16, plan.chunks, 2, config.train.seed, epoch) for epoch in range(2)]
    expected = np.concatenate(epochs)[first_step // 2 :]
    chunks = [*make_chunk_inputs(plan, (images, labels), key, first_step)]
    assert len(chunks) == len(expected) == (plan.total_steps - first_step) // 2
    for (on_devices, of_all, batches, given_key), wanted in zip(chunks, expected, strict=True):
        np.testing.assert_array_equal(batches, wanted)
        assert on_devices is chunks[0][0] and of_all is chunks[0][1] and given_key is key
    np.testing.assert_array_equal(chunks[0][0], images)
    streamed = make_plan(make_config(epochs=2, loader="stream"))
    for (rows, of_rows, _), wanted in zip(
        make_chunk_inputs(streamed, (images, labels), key, first_step), expected, strict=True
    ):
        np.testing.assert_array_equal(rows, images[wanted])
        np.testing.assert_array_equal(of_rows, labels[wanted])
