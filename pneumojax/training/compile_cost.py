"""What a compiled chunk of steps costs, what its device could do, and how long the device waited for the host."""

import concurrent.futures
import contextlib
import dataclasses
import threading
import time
from collections.abc import Callable
from typing import Any

import jax

from pneumojax.ops.convolution import uses_xla_algorithms, xla_algorithms


@dataclasses.dataclass(frozen=True)
class Chip:
    """What one JAX device can do at most.

    Attributes:
      flops: {compute type of the config: FLOP/s of dense matrix products}. One that the chip does not compute in is
        missing; "float32" counts products in whatever XLA computes float32 in by default.
      bytes_per_second: of its memory.
    """

    flops: dict[str, float]
    bytes_per_second: float


def _gpu(tflops_float32: float, tflops_bfloat16: float | None, gigabytes_per_second: float) -> Chip:
    flops = {"float32": tflops_float32 * 1e12} | ({"bfloat16": tflops_bfloat16 * 1e12} if tflops_bfloat16 else {})
    return Chip(flops, gigabytes_per_second * 1e9)


def _tpu(tflops: float, gigabytes_per_second: float) -> Chip:
    # A float32 product on a TPU is computed in bfloat16 unless a higher precision is asked for.
    return Chip({"float32": tflops * 1e12, "bfloat16": tflops * 1e12}, gigabytes_per_second * 1e9)


# By jax.Device.device_kind. Dense products, so half of what NVIDIA prints "with sparsity".
# GPUs, from the data sheets named: bfloat16 is that of the tensor cores; float32 is TensorFloat-32 from Ampere on, in
# which XLA computes float32 there, and plain float32 on V100 and T4, which do not compute in bfloat16.
# TPUs, from the pages "TPU v3", "TPU v4", ... of Google's Cloud TPU documentation: bfloat16, whatever the compute type.
# A device of v3 is a core, half a chip. v2 is missing, as its page has no figures.
CHIPS = {
    "NVIDIA H200": _gpu(494.7, 989.4, 4800),  # "NVIDIA H200 Tensor Core GPU", 2024
    "NVIDIA H100 80GB HBM3": _gpu(494.7, 989.4, 3350),  # "NVIDIA H100 Tensor Core GPU", 2023, SXM
    "NVIDIA H100 PCIe": _gpu(378, 756, 2000),  # the same, PCIe
    "NVIDIA H100 NVL": _gpu(417.5, 835, 3900),  # the same, NVL
    "NVIDIA A100-SXM4-40GB": _gpu(156, 312, 1555),  # "NVIDIA A100 Tensor Core GPU", 2020
    "NVIDIA A100-SXM4-80GB": _gpu(156, 312, 2039),  # the same of 2021, which also has the PCIe card of 80 GB
    "NVIDIA A100-PCIE-40GB": _gpu(156, 312, 1555),
    "NVIDIA A100 80GB PCIe": _gpu(156, 312, 1935),
    "NVIDIA L4": _gpu(60, 121, 300),  # "NVIDIA L4 Tensor Core GPU", 2023: 120 and 242 with sparsity
    "Tesla T4": _gpu(8.1, None, 320),  # "NVIDIA T4 Tensor Core GPU", 2019
    "Tesla V100-SXM2-16GB": _gpu(15.7, None, 900),  # "NVIDIA V100 Tensor Core GPU", 2020
    "Tesla V100-SXM2-32GB": _gpu(15.7, None, 900),
    "Tesla V100-PCIE-16GB": _gpu(14.0, None, 900),
    "Tesla V100-PCIE-32GB": _gpu(14.0, None, 900),
    "TPU v3": _tpu(123 / 2, 900 / 2),
    "TPU v4": _tpu(275, 1200),
    "TPU v5 lite": _tpu(197, 819),  # v5e
    "TPU v5": _tpu(459, 2765),  # v5p
    "TPU v5p": _tpu(459, 2765),
    "TPU v6 lite": _tpu(918, 1638),  # v6e
    "TPU v6e": _tpu(918, 1638),
}


def find_peak_flops(device_kind: str, dtype: str) -> float | None:
    """FLOP/s that one device can reach at most in a compute type; None where the table does not know it."""
    chip = CHIPS.get(device_kind)
    return chip.flops.get(dtype) if chip else None


def compile_chunk(train_chunk: Callable, arguments: tuple, devices: int, mapped: bool) -> tuple[Callable, dict]:
    """Compiles a chunk of steps before its first call, and tells what it costs.

    Args:
      train_chunk: of `steps.make_train_chunk`.
      arguments: as it will be called with; only shapes, types and places count.
      devices: that a step is spread over.
      mapped: whether the program is written for one device's share of the batch (shard_map, pmap) or for the whole.

    Returns:
      (compiled, costs): the compiled chunk, which takes arguments like these only, and

        perf/compile_seconds: of tracing and compiling; little where the compile cache has it.
        perf/flops_per_step: of all devices together, counted before XLA optimises, in the forms that are XLA's own:
          what the method asks for, whatever form the convolutions take on this backend.
        perf/bytes_per_step: read and written by each device, counted after XLA has fused what it can; missing on CPU,
          where convolutions run in loops, of which XLA counts one turn.
        perf/peak_memory_bytes: of each device: arguments, results and what lies between.

      What a backend does not tell is missing.
    """
    started = time.perf_counter()
    lowered = train_chunk.lower(*arguments)
    compiled = lowered.compile()
    seconds = time.perf_counter() - started
    # XLA counts the body of a loop once, which is one step (jax 0.10 to 0.12); a test notices when that changes.
    made, memory = compiled.cost_analysis() or {}, compiled.memory_analysis()
    if not uses_xla_algorithms():
        made = {}
        with xla_algorithms(True):
            lowered = train_chunk.lower(*arguments)
    flops = (lowered.cost_analysis() or {}).get("flops", 0) * (devices if mapped else 1)
    peak = memory and (
        memory.argument_size_in_bytes
        + memory.output_size_in_bytes
        - memory.alias_size_in_bytes  # The state's memory is taken over.
        + memory.temp_size_in_bytes
    )
    numbers = {"flops_per_step": flops, "bytes_per_step": made.get("bytes accessed"), "peak_memory_bytes": peak}
    costs = {f"perf/{name}": float(number) for name, number in numbers.items() if number}
    return compiled, {"perf/compile_seconds": seconds} | costs


@dataclasses.dataclass(frozen=True)
class Watch:
    """When arrays were dispatched, and when they are ready, both on time.perf_counter().

    Attributes:
      dispatched: the moment in seconds.
      wait_end: waits until they are ready and gives that moment.
    """

    dispatched: float
    wait_end: Callable[[], float]


def watch(arrays: Any) -> Watch:
    """Notes when arrays that were just dispatched are ready, in a thread of its own: their owner need not wait.

    Args:
      arrays: any tree of arrays.
    """
    dispatched, ended = time.perf_counter(), concurrent.futures.Future()

    def wait() -> None:
        with contextlib.suppress(Exception):  # A failed computation is told to who fetches its results.
            jax.block_until_ready(arrays)
        ended.set_result(time.perf_counter())

    # No daemon: one that still waits inside JAX when Python ends aborts the process.
    threading.Thread(target=wait).start()
    return Watch(dispatched, ended.result)
