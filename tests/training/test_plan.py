"""Tests of the plan of a training."""

import pytest

from pneumojax.errors import UserError
from pneumojax.training.fit import fit


def test_batches_that_do_not_fit_are_refused_before_anything_is_written(make_config, tmp_path):
    with pytest.raises(UserError, match="batch_size 4096 is larger than the training split of"):
        fit(make_config(batch_size=4096), tmp_path / "run")
    with pytest.raises(UserError, match="batch_size 20 is not divisible by the 8 devices"):
        fit(make_config(batch_size=20), tmp_path / "run")
    assert not (tmp_path / "run").exists()
