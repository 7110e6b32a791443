"""Tests of the targets that a step can be compiled for."""

import importlib.metadata

import pytest

from pneumojax.errors import UserError
from pneumojax.training import targets
from pneumojax.training.chips import CHIPS
from pneumojax.training.targets import check_packages, parse_target


def install(monkeypatch, **versions):
    """Makes it look as if only these packages were installed."""

    def find(name):
        if name not in versions:
            raise importlib.metadata.PackageNotFoundError(name)
        return versions[name]

    monkeypatch.setattr(importlib.metadata, "version", find)


@pytest.mark.parametrize(
    ("name", "platform", "count", "kind"),
    [
        ("h100", "cuda", 1, "NVIDIA H100 80GB HBM3"),
        ("h200:8", "cuda", 8, "NVIDIA H200"),
        ("v5e:2x4", "tpu", 8, "TPU v5 lite"),
        ("v5p:2x2x1", "tpu", 4, "TPU v5"),
        ("v6e:16x16", "tpu", 256, "TPU v6 lite"),
    ],
)
def test_a_target_is_found_by_its_name(name, platform, count, kind):
    target = parse_target(name)
    assert (target.name, target.platform, target.count, target.device_kind) == (name, platform, count, kind)
    share = 0.75 if platform == "cuda" else 1
    assert target.usable_bytes == share * CHIPS[kind].memory_bytes


@pytest.mark.parametrize("name", ["", "h300", "v5e", "v5e:3x3", "v5p:2x4", "h100:3", "h100:x", "H100", "v6e:2x2x1"])
def test_an_unknown_target_is_named_with_all_known_ones(name):
    with pytest.raises(UserError, match=rf"target '{name}' is unknown.*h100, h200, a100.*v5e: with 1x1.*16x16.*v6e"):
        parse_target(name)


def test_a_missing_compiler_is_named_with_the_extra_that_has_it(monkeypatch):
    install(monkeypatch, jaxlib="0.10.2")
    with pytest.raises(UserError, match=r"jax-cuda13-plugin or .* is not installed.*pip install -e '\.\[aot-cuda\]'"):
        check_packages(parse_target("h100"))
    with pytest.raises(UserError, match=r"libtpu is not installed.*extra aot-tpu"):
        check_packages(parse_target("v5e:1x1"))


def test_a_compiler_of_another_version_is_named_with_both_versions(monkeypatch):
    install(monkeypatch, **{"jaxlib": "0.12.0", "jax-cuda13-plugin": "0.10.2", "libtpu": "0.0.42"})
    with pytest.raises(UserError, match=r"jax-cuda13-plugin 0\.10\.2 .* jaxlib is 0\.12\.0.*with-cuda\]==0\.12\.0'"):
        check_packages(parse_target("h200"))
    assert check_packages(parse_target("v5e:1x1")) == {"libtpu": "0.0.42"}
    install(monkeypatch, **{"jaxlib": "0.12.0", "jax-cuda12-plugin": "0.12.0"})
    assert check_packages(parse_target("a100")) == {"jax-cuda12-plugin": "0.12.0"}


def test_each_target_is_a_chip_with_published_rates():
    names = [*targets._GPUS, *(f"{name}:{slices[-1]}" for name, (_, slices) in targets._TPUS.items())]
    assert {parse_target(name).device_kind for name in names} <= CHIPS.keys()
