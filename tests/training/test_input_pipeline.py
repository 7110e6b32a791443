"""Tests of the input pipeline: resident and streamed images give the same training."""

import jax
import pytest
from run_files import assert_same_run, stop_at

from pneumojax import parallel
from pneumojax.training.fit import fit


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
