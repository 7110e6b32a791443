"""Devices: one mesh with one axis, and how arrays lie on it."""

import contextlib
import importlib.util
import os
import pathlib
from collections.abc import Iterator

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from pneumojax.errors import LostProcessError, UserError

AXIS = "data"


# On CPU, convolutions by Eigen: in jax 0.10 YNNPACK's run on one core where they have 64 channels or fewer, and on none
# of the shapes that we tried were they faster. What is left to YNNPACK are the other two of its three kinds.
_XLA_FLAGS = "--xla_cpu_experimental_ynn_fusion_type=LIBRARY_FUSION_TYPE_INDIVIDUAL_DOT,LIBRARY_FUSION_TYPE_REDUCE"
# XLA aborts at a flag that it does not know: those versions are known to know it. libtpu is an XLA of its own.
_KNOWS_FLAGS = (0, 10) <= jax.__version_info__ < (0, 13) and importlib.util.find_spec("libtpu") is None

# What JAX's errors hold when another process is gone: codes of its coordinator, names of the libraries that reduce.
_LOST = ("UNAVAILABLE", "DEADLINE_EXCEEDED", "ABORTED", "Gloo", "NCCL")


def initialize(multihost: bool) -> None:
    """Prepares JAX: flags, compile cache, and with `multihost` the other processes. Call before the first computation.

    The cache lies in $JAX_COMPILATION_CACHE_DIR or ~/.cache/pneumojax; a second start of a run then skips compilation.

    Raises:
      UserError: the processes do not find each other.
    """
    if _KNOWS_FLAGS and _XLA_FLAGS not in (given := os.environ.get("XLA_FLAGS", "")):
        os.environ["XLA_FLAGS"] = f"{_XLA_FLAGS} {given}"  # What is given wins.
    if not jax.config.jax_compilation_cache_dir:
        cache_home = os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache"
        jax.config.update("jax_compilation_cache_dir", str(pathlib.Path(cache_home) / "pneumojax" / "compiled"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
    if multihost and not jax.distributed.is_initialized():
        try:
            # JAX itself reads the first of the three only; under a cluster's launcher it needs none of them.
            processes, process = (
                int(os.environ[name]) if name in os.environ else None
                for name in ("JAX_NUM_PROCESSES", "JAX_PROCESS_ID")
            )
            jax.distributed.initialize(num_processes=processes, process_id=process)
        except (RuntimeError, ValueError, IndexError) as error:  # The last for an address without a port.
            raise UserError(
                f"multihost: the processes do not find each other ({error}). Start it under Slurm, Open MPI, GKE or "
                "Cloud TPU, or set JAX_COORDINATOR_ADDRESS (host:port), JAX_NUM_PROCESSES and JAX_PROCESS_ID in each "
                "process."
            ) from error


@contextlib.contextmanager
def name_lost_process() -> Iterator[None]:
    """Turns what JAX raises where another process is gone into a sentence.

    Raises:
      LostProcessError: another process of the run is gone.
    """
    try:
        yield
    except Exception as error:
        if not tells_lost_process(error):
            raise
        reason = str(error.__cause__ or error).splitlines()[0]
        raise LostProcessError(
            f"another process of this run has ended or cannot be reached ({reason}). Start all processes again with "
            "the same command: the run goes on from its last checkpoint."
        ) from error


def tells_lost_process(error: Exception) -> bool:
    """Whether an error means that another process of the run is gone."""
    reason = str(error.__cause__ or error)  # An error of checkpoints stands for its cause.
    return jax.process_count() > 1 and any(word in reason for word in _LOST)


def make_mesh() -> Mesh:
    """All devices of all processes on one axis."""
    return jax.make_mesh((jax.device_count(),), (AXIS,), axis_types=(AxisType.Auto,))


def replicated(mesh: Mesh) -> NamedSharding:
    """The same array on every device."""
    return NamedSharding(mesh, PartitionSpec())


def put(array: np.ndarray, mesh: Mesh, axis: int | None = None) -> jax.Array:
    """Puts a host array, the same in every process, on the devices.

    Args:
      array: any shape.
      mesh: the devices.
      axis: the array axis that is cut over the devices; None: a whole copy on each.
    """
    spec = PartitionSpec() if axis is None else PartitionSpec(*[None] * axis, AXIS)
    with jax.transfer_guard("allow"):  # JAX counts this call as a hidden transfer; it is what the function is for.
        return jax.make_array_from_callback(array.shape, NamedSharding(mesh, spec), lambda index: array[index])


def measure_free_bytes(mesh: Mesh) -> int:
    """Memory that is free on a device of this process; CPU devices share what the machine has."""
    stats = mesh.local_devices[0].memory_stats()
    if stats and "bytes_limit" in stats:
        return stats["bytes_limit"] - stats["bytes_in_use"]
    try:
        lines = pathlib.Path("/proc/meminfo").read_text().splitlines()
        free = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))  # in KiB
    except (OSError, StopIteration):  # macOS tells how much there is, not how much is free.
        free = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return free // mesh.size
