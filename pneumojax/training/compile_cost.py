"""Compiles a chunk of steps ahead of its first call, and measures its cost: FLOP, bytes, memory and compile time."""

import time
from typing import Any

import jax

from pneumojax.ops.xla import algorithms, uses_cpu_algorithms


def compile_chunk(
    train_chunk: jax.stages.Wrapped, arguments: tuple, devices: int, mapped: bool, count_flops: bool = True
) -> tuple[jax.stages.Compiled, dict[str, float]]:
    """Compiles a chunk of steps and reports its cost.

    Args:
      train_chunk: jitted function, such as the result of `steps.make_train_chunk`.
      arguments: arguments of the call. Only their shapes, dtypes and shardings matter.
      devices: number of devices that a step is sharded over.
      mapped: True if the program is written for one device's shard of the batch (shard_map, pmap), False if it is
        written for the global batch (jit).
      count_flops: count the FLOP of a step. On CPU this traces the chunk a second time, which takes 0.4 to 1.2 s.

    Returns:
      (compiled, costs). `compiled` accepts only arguments of these shapes and shardings. `costs` is a dict, in which
      values that the backend does not report are missing.

        perf/compile_seconds: time of tracing and compilation. It is short if the compilation cache has the program.
        perf/flops_per_step: FLOP of all devices together. They are counted before optimisation, with XLA's own
          algorithms, so they do not depend on the algorithms for the backend.
        perf/bytes_per_step: bytes that each device reads and writes, counted after fusion. They are missing on CPU,
          where convolutions run in loops and XLA counts the body of a loop only once.
        perf/peak_memory_bytes: memory of each device for arguments, results and temporaries.
    """
    started = time.perf_counter()
    compiled = train_chunk.lower(*arguments).compile()
    costs = {"perf/compile_seconds": time.perf_counter() - started}
    numbers: dict[str, Any] = {}
    # XLA counts the body of the loop over steps once, so these are the costs of one step (tested in jax 0.10 to 0.12).
    if not uses_cpu_algorithms():
        numbers["bytes_per_step"] = (compiled.cost_analysis() or {}).get("bytes accessed")
    if count_flops:
        with algorithms("xla"):
            lowered = train_chunk.lower(*arguments)
        numbers["flops_per_step"] = (lowered.cost_analysis() or {}).get("flops", 0) * (devices if mapped else 1)
    numbers["peak_memory_bytes"] = _sum_memory(compiled.memory_analysis())
    return compiled, costs | {f"perf/{name}": float(number) for name, number in numbers.items() if number}


def _sum_memory(memory: Any) -> int | None:
    if not memory:
        return None
    return (
        memory.argument_size_in_bytes
        + memory.output_size_in_bytes
        - memory.alias_size_in_bytes  # Donated arguments share their memory with the results.
        + memory.temp_size_in_bytes
    )
