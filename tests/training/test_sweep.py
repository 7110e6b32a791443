"""Tests of the configs of replicas."""

import pytest

from pneumojax.config import (
    config_from_dict,
)
from pneumojax.errors import UserError
from pneumojax.training.sweep import plan_replicas


def test_replicas_are_runs_with_seeds_in_a_row_and_the_values_of_the_sweep(tmp_path):
    plain = config_from_dict({"seed": 5, "epochs": 7})
    assert plan_replicas(plain) == [plain]
    assert plan_replicas(config_from_dict({"seed": 5, "epochs": 7, "replicas": 3})) == [
        config_from_dict({"seed": seed, "epochs": 7}) for seed in (5, 6, 7)
    ]
    path = tmp_path / "sweep.toml"
    path.write_text("learning_rate = [1e-3, 1]\nweight_decay = [0, 0.5]\nseed = [2, 2]\naugment_strength = [0, 1.5]")
    assert plan_replicas(config_from_dict({"replicas": 2, "sweep": str(path)})) == [
        config_from_dict({"seed": 2, "learning_rate": 1e-3, "weight_decay": 0.0, "augment_strength": 0.0}),
        config_from_dict({"seed": 2, "learning_rate": 1.0, "weight_decay": 0.5, "augment_strength": 1.5}),
    ]


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (None, r"sweep: .*sweep\.toml cannot be read as TOML \(.*No such file"),
        ("learning_rate = [", r"sweep: .*sweep\.toml cannot be read as TOML"),
        ("epochs = [1, 2]", r"sweep: .* lists epochs, which cannot be swept. These fields can: seed, learning_rate, "),
        ("learning_rate = [1e-3]", r"sweep: .* has 1 values for learning_rate; replicas=2 needs a list of 2\."),
        ("learning_rate = 1e-3", r"sweep: .* has no list for learning_rate; replicas=2 needs a list of 2\."),
        ("learning_rate = [1e-3, true]", r"sweep: .* has True for learning_rate, which must be a number\."),
        ("seed = [1, 1.5]", r"sweep: .* has 1\.5 for seed, which must be a whole number\."),
        ("learning_rate = [1e-3, 0]", r"sweep\.toml, replica 1: learning_rate must be greater than 0\.0, not 0\.0\."),
        ("augment_strength = [1, 11]", r"replica 1: augment_strength times zoom must be less than 1\.0, not 1\.1"),
    ],
)
def test_a_bad_sweep_is_refused_in_a_sentence(tmp_path, text, sentence):
    path = tmp_path / "sweep.toml"
    if text is not None:
        path.write_text(text)
    with pytest.raises(UserError, match=sentence):
        plan_replicas(config_from_dict({"replicas": 2, "sweep": str(path)}))


def test_replicas_need_seeds_that_there_are_and_their_own_way_to_spread():
    with pytest.raises(UserError, match="^replica 1: seed must be at most"):
        plan_replicas(config_from_dict({"replicas": 2, "seed": 2**31 - 1}))
    for fields in ({"parallel": "pmap"}, {"parallel": "shard_map"}, {"multihost": True}):
        with pytest.raises(UserError, match="^replicas=2 needs parallel=jit and no multihost"):
            config_from_dict({"replicas": 2, **fields})
    with pytest.raises(UserError, match="^cached_views stores the features of one network"):
        config_from_dict({"replicas": 2, "cached_views": 1, "mixup_alpha": 0.0})
    with pytest.raises(UserError, match="^sweep needs replicas"):
        config_from_dict({"sweep": "sweep.toml"})
