"""Tests of compiling for a target: what is checked before, and what is computed from the program."""

import pytest

from pneumojax.config import config_from_dict
from pneumojax.errors import UserError
from pneumojax.training.ahead import check_config, compute_roofline, count_flops, find_chunk_steps, find_missing_memory
from pneumojax.training.targets import parse_target

PLAIN = dict.fromkeys(("rotate_degrees", "shift", "zoom", "brightness", "contrast", "gamma"), 0.0)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"batch_size": 12}, "batch_size 12 is not divisible by the 8 devices of v5e:2x4. Use a multiple of 8"),
        ({"batch_size": 16, "parallel": "pmap"}, "parallel=pmap .*Set --parallel=jit or shard_map"),
        ({"batch_size": 16, "replicas": 2}, "replicas: only the step of a plain training"),
        ({"batch_size": 16, "cached_views": 2, "model": "resnet18", "frozen": ["stem"]}, "cached_views|frozen"),
    ],
)
def test_a_config_that_cannot_be_compiled_is_an_error_before_anything_is_compiled(fields, message):
    with pytest.raises(UserError, match=message):
        check_config(config_from_dict(fields), parse_target("v5e:2x4"))


def test_a_config_that_can_be_compiled_is_accepted():
    check_config(config_from_dict({"batch_size": 16, "dtype": "bfloat16"}), parse_target("v5e:2x4"))


def test_the_bound_is_the_longer_of_arithmetic_and_memory():
    config, target = config_from_dict({"batch_size": 64, "dtype": "bfloat16"}), parse_target("h100:2")
    by_flops = compute_roofline(config, target, 2 * 989.4e12, 3350)
    assert by_flops == {"seconds_bound": 1.0, "images_per_second_bound": 64.0, "bound_by": "FLOP"}
    by_bytes = compute_roofline(config, target, 2 * 989.4e12, 4 * 3350 * 10**9)
    assert by_bytes == {"seconds_bound": 4.0, "images_per_second_bound": 16.0, "bound_by": "bytes"}


def test_flop_are_those_of_all_images_and_do_not_depend_on_how_they_are_sharded():
    fields = PLAIN | {"model": "mlp", "mlp_widths": [64], "image_px": 32, "batch_size": 64}
    flops = count_flops(config_from_dict(fields), 200)
    # Two products in the first layer, the forward pass and the kernel's gradient, and small ones in the head.
    assert flops == pytest.approx(2 * 2 * 64 * 32**2 * 64, rel=0.2)
    sharded = config_from_dict(fields | {"parallel": "shard_map", "batch_norm": "local", "chunk_steps": 1})
    assert count_flops(sharded, 200) == pytest.approx(flops, rel=1e-3)


def test_the_memory_that_is_missing_is_read_from_the_compiler_error():
    first = (
        "RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm. Used 18.50G of 15.75G hbm. Exceeded hbm capacity"
    )
    usable = int(15.75 * 2**30)
    assert find_missing_memory(first) == {"needed": int(18.5 * 2**30), "usable": usable}
    second = "the total memory required for HLO temporaries (79.98G) exceeds available HBM (15.75G)."
    assert find_missing_memory(second) == {"needed": int(79.98 * 2**30), "usable": usable}
    assert find_missing_memory("Used 900 of 800.0K hbm") == {"needed": 900, "usable": 800 * 1024}
    assert find_missing_memory("INVALID_ARGUMENT: something else") is None


def test_a_chunk_has_the_steps_of_an_epoch_at_most():
    assert find_chunk_steps(config_from_dict({"batch_size": 32, "chunk_steps": 4}), 1000) in (3, 4)
    assert find_chunk_steps(config_from_dict({"batch_size": 512}), 1100) == 2
    assert find_chunk_steps(config_from_dict({"batch_size": 512}), 100) == 1
