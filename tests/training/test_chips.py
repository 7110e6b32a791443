"""Tests of the peak rates of chips."""

import jax
import numpy as np

from pneumojax.training import chips
from pneumojax.training.chips import find_peak_flops


def test_peaks_are_of_known_chips_in_types_that_they_compute_in():
    assert find_peak_flops("NVIDIA H200", "bfloat16") == 989.4e12
    assert find_peak_flops("Tesla T4", "float32") == 8.1e12
    assert find_peak_flops("Tesla T4", "bfloat16") is None
    assert find_peak_flops(jax.devices()[0].device_kind, "float32") is None
    # No chip is faster in float32 than in bfloat16, and reaching the peak takes more FLOP than bytes.
    for chip in chips.CHIPS.values():
        assert chip.flops["float32"] <= chip.flops.get("bfloat16", np.inf)
        assert 10 < chip.flops["float32"] / chip.bytes_per_second < 1000
        # It takes 5 to 100 ms to read the whole memory.
        assert 0.005 < chip.memory_bytes / chip.bytes_per_second < 0.1
