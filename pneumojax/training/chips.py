"""Published peak rates of accelerators, for utilisation and rooflines."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Chip:
    """Peak rates of one JAX device.

    Attributes:
      flops: {compute type of the config: FLOP/s of dense matrix products}. A type that the chip does not support is
        missing. "float32" is the rate of the type that XLA uses for float32 products by default.
      bytes_per_second: memory bandwidth.
      memory_bytes: size of the memory.
    """

    flops: dict[str, float]
    bytes_per_second: float
    memory_bytes: int


def _gpu(tflops_float32: float, tflops_bfloat16: float | None, gigabytes_per_second: float, gibibytes: int) -> Chip:
    flops = {"float32": tflops_float32 * 1e12} | ({"bfloat16": tflops_bfloat16 * 1e12} if tflops_bfloat16 else {})
    return Chip(flops, gigabytes_per_second * 1e9, gibibytes * 2**30)


def _tpu(tflops: float, gigabytes_per_second: float, gibibytes: int) -> Chip:
    # A TPU computes float32 products in bfloat16 unless a higher precision is requested.
    return Chip({"float32": tflops * 1e12, "bfloat16": tflops * 1e12}, gigabytes_per_second * 1e9, gibibytes * 2**30)


# Keys are values of jax.Device.device_kind. Rates are for dense products, half of NVIDIA's rates "with sparsity".
# GPUs (source: the data sheet named in each line): bfloat16 is the rate of the tensor cores. float32 is TensorFloat-32
# from Ampere on, which XLA uses there, and plain float32 on V100 and T4, which do not support bfloat16.
# TPUs (source: the pages "TPU v3", "TPU v4", ... of Google's Cloud TPU documentation): bfloat16 for both types. A JAX
# device of v3 is one core, half a chip. v2 is missing because its page gives no rates.
# The same sources give the memory. They write GB for GiB; a driver or a compiler keeps about 1 % of it for itself.
CHIPS = {
    "NVIDIA H200": _gpu(494.7, 989.4, 4800, 141),  # "NVIDIA H200 Tensor Core GPU", 2024
    "NVIDIA H100 80GB HBM3": _gpu(494.7, 989.4, 3350, 80),  # "NVIDIA H100 Tensor Core GPU", 2023, SXM
    "NVIDIA H100 PCIe": _gpu(378, 756, 2000, 80),  # the same, PCIe
    "NVIDIA H100 NVL": _gpu(417.5, 835, 3900, 94),  # the same, NVL
    "NVIDIA A100-SXM4-40GB": _gpu(156, 312, 1555, 40),  # "NVIDIA A100 Tensor Core GPU", 2020
    "NVIDIA A100-SXM4-80GB": _gpu(156, 312, 2039, 80),  # the same of 2021, which also has the PCIe card of 80 GB
    "NVIDIA A100-PCIE-40GB": _gpu(156, 312, 1555, 40),
    "NVIDIA A100 80GB PCIe": _gpu(156, 312, 1935, 80),
    "NVIDIA L4": _gpu(60, 121, 300, 24),  # "NVIDIA L4 Tensor Core GPU", 2023: 120 and 242 with sparsity
    "Tesla T4": _gpu(8.1, None, 320, 16),  # "NVIDIA T4 Tensor Core GPU", 2019
    "Tesla V100-SXM2-16GB": _gpu(15.7, None, 900, 16),  # "NVIDIA V100 Tensor Core GPU", 2020
    "Tesla V100-SXM2-32GB": _gpu(15.7, None, 900, 32),
    "Tesla V100-PCIE-16GB": _gpu(14.0, None, 900, 16),
    "Tesla V100-PCIE-32GB": _gpu(14.0, None, 900, 32),
    "TPU v3": _tpu(123 / 2, 900 / 2, 16),
    "TPU v4": _tpu(275, 1200, 32),
    "TPU v5 lite": _tpu(197, 819, 16),  # v5e
    "TPU v5": _tpu(459, 2765, 95),  # v5p
    "TPU v5p": _tpu(459, 2765, 95),
    "TPU v6 lite": _tpu(918, 1638, 32),  # v6e
    "TPU v6e": _tpu(918, 1638, 32),
}


def find_peak_flops(device_kind: str, dtype: str) -> float | None:
    """Returns the peak FLOP/s of a device for a compute dtype, or None if CHIPS does not list it.

    Args:
      device_kind: value of `jax.Device.device_kind`.
      dtype: float32 or bfloat16.
    """
    chip = CHIPS.get(device_kind)
    return chip.flops.get(dtype) if chip else None
