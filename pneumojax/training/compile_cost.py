"""Compiles a chunk of steps ahead of its first call, and measures its cost: FLOP, bytes, memory and compile time."""

import time
from typing import Any

import jax

from pneumojax.ops.xla import algorithms, uses_cpu_algorithms


def compile_chunk(train_chunk: jax.stages.Wrapped, arguments: tuple) -> tuple[jax.stages.Compiled, dict[str, float]]:
    """Compiles a chunk of steps and reports its cost.

    Args:
      train_chunk: jitted function, such as the result of `steps.make_train_chunk`.
      arguments: arguments of the call. Only their shapes, dtypes and shardings matter.

    Returns:
      (compiled, costs). `compiled` accepts only arguments of these shapes and shardings. `costs` is a dict, in which
      values that the backend does not report are missing.

        perf/compile_seconds: time of tracing and compilation. It is short if the compilation cache has the program.
        perf/bytes_per_step: bytes that each device reads and writes, counted after fusion. They are missing on CPU,
          where convolutions run in loops and XLA counts the body of a loop only once.
        perf/peak_memory_bytes: memory of each device for arguments, results and temporaries.
    """
    started = time.perf_counter()
    compiled = train_chunk.lower(*arguments).compile()
    seconds = time.perf_counter() - started
    # XLA counts the body of the loop over steps once, so these are the costs of one step (tested in jax 0.10 to 0.12).
    accessed = None if uses_cpu_algorithms() else (compiled.cost_analysis() or {}).get("bytes accessed")
    memory = _sum_memory(compiled.memory_analysis())
    costs = {"compile_seconds": seconds, "bytes_per_step": accessed, "peak_memory_bytes": memory}
    return compiled, {f"perf/{name}": float(cost) for name, cost in costs.items() if cost}


def count_step_flops(train_chunk: jax.stages.Wrapped, arguments: tuple, devices: int, mapped: bool) -> dict[str, float]:
    """Counts the FLOP of a step before optimisation, with XLA's own algorithms instead of those for the backend.

    Args:
      train_chunk: as in `compile_chunk`.
      arguments: as in `compile_chunk`. They may have been donated.
      devices: number of devices that a step is sharded over.
      mapped: whether the program is written for one device's shard of the batch (shard_map, pmap).

    Returns:
      {"perf/flops_per_step": FLOP of all devices together}, or nothing if the backend does not report them.
    """
    with algorithms("xla"):
        costs = train_chunk.lower(*arguments).cost_analysis() or {}
    return {"perf/flops_per_step": float(costs["flops"] * (devices if mapped else 1))} if costs.get("flops") else {}


def _sum_memory(memory: Any) -> int | None:
    if not memory:
        return None
    return (
        memory.argument_size_in_bytes
        + memory.output_size_in_bytes
        - memory.alias_size_in_bytes  # Donated arguments share their memory with the results.
        + memory.temp_size_in_bytes
    )
