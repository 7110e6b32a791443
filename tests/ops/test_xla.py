"""Compares XLA's convolution with its definition, and tests when XLA's own algorithms are used."""

import jax
import numpy as np
import pytest

from pneumojax.ops import xla


def convolve_by_definition(images, kernel, stride, padding, dilation):
    """Sums the products of each window in loops over the positions."""
    (top, bottom), (left, right) = padding
    padded = np.pad(images, ((0, 0), (top, bottom), (left, right), (0, 0)))
    size = [dilation * (k - 1) + 1 for k in kernel.shape[:2]]
    rows, columns = (
        (extent - width) // stride + 1 for extent, width in zip(padded.shape[1:3], size, strict=True)
    )  # fmt: skip
    result = np.zeros((len(images), rows, columns, kernel.shape[-1]))
    for i in range(rows):
        for j in range(columns):
            y, x = i * stride, j * stride
            window = padded[:, y : y + size[0] : dilation, x : x + size[1] : dilation]
            result[:, i, j] = np.einsum("bklc,klcd->bd", window, kernel)
    return result


@pytest.mark.parametrize("dilation", [1, 2])
@pytest.mark.parametrize("padding", [((0, 0), (0, 0)), ((1, 2), (0, 3))])
@pytest.mark.parametrize("stride", [1, 2])
def test_the_convolution_is_its_definition(stride, padding, dilation):
    rng = np.random.default_rng(0)
    images, kernel = rng.normal(size=(2, 7, 8, 3)), rng.normal(size=(3, 2, 3, 4))
    ours = xla.convolve(np.float32(images), np.float32(kernel), stride, padding, (dilation, dilation))
    np.testing.assert_allclose(ours, convolve_by_definition(images, kernel, stride, padding, dilation), atol=1e-4)


def test_the_algorithms_are_those_of_the_context_or_of_the_default_backend(monkeypatch):
    assert xla.find_algorithms() == jax.default_backend()
    monkeypatch.setattr(jax, "default_backend", lambda: "cpu")
    assert xla.uses_cpu_algorithms()
    with xla.algorithms("gpu"):
        assert xla.find_algorithms() == "gpu" and not xla.uses_cpu_algorithms()
        with xla.algorithms(None):
            assert xla.uses_cpu_algorithms()
    assert xla.uses_cpu_algorithms()
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert xla.find_algorithms() == "gpu"


def test_a_function_that_was_traced_outside_of_the_context_is_traced_again_inside():
    seen = []

    @jax.jit
    def look(x):
        seen.append(xla.find_algorithms())
        return x

    look(1.0)
    with xla.algorithms("tpu"):
        look(1.0)
    assert seen == [jax.default_backend(), "tpu"]
