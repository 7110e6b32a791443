"""Starts JAX, and places arrays on a mesh with one axis."""

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


# On CPU, convolutions are computed by Eigen. In jax 0.10, YNNPACK would compute those with up to 64 channels, on one
# core, and was not faster for any shape that was measured. This flag enables only its other two kinds of fusion.
_XLA_FLAGS = "--xla_cpu_experimental_ynn_fusion_type=LIBRARY_FUSION_TYPE_INDIVIDUAL_DOT,LIBRARY_FUSION_TYPE_REDUCE"
# XLA aborts on unknown flags. These versions know the flag. libtpu has its own version of XLA.
_KNOWS_FLAGS = (0, 10) <= jax.__version_info__ < (0, 13) and importlib.util.find_spec("libtpu") is None

# Words in JAX's errors if another process is lost: status codes of the coordinator, and names of collective libraries.
_LOST_WORDS = ("UNAVAILABLE", "DEADLINE_EXCEEDED", "ABORTED", "Gloo", "NCCL")


def initialize(multihost: bool) -> None:
    """Prepares JAX: sets XLA's flags and the compilation cache, and connects the processes.

    It must be called before any computation. The compilation cache is in $JAX_COMPILATION_CACHE_DIR or
    ~/.cache/pneumojax. With it, a second start of a run skips compilation.

    Args:
      multihost: whether this process is one of several.

    Raises:
      UserError: the processes cannot connect.
    """
    if _KNOWS_FLAGS and _XLA_FLAGS not in (given := os.environ.get("XLA_FLAGS", "")):
        os.environ["XLA_FLAGS"] = f"{_XLA_FLAGS} {given}"  # Flags of the user come last and therefore take precedence.
    if not jax.config.jax_compilation_cache_dir:  # type: ignore[attr-defined]  # JAX adds its options at run time.
        cache_home = os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache"
        jax.config.update("jax_compilation_cache_dir", str(pathlib.Path(cache_home) / "pneumojax" / "compiled"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
    if multihost and not jax.distributed.is_initialized():
        try:
            # JAX itself reads only the coordinator's address. Under the launcher of a cluster it needs no variable.
            processes, process = (
                int(os.environ[name]) if name in os.environ else None
                for name in ("JAX_NUM_PROCESSES", "JAX_PROCESS_ID")
            )
            jax.distributed.initialize(num_processes=processes, process_id=process)
        except (RuntimeError, ValueError, IndexError) as error:  # IndexError: an address without a port.
            raise UserError(
                f"multihost: the processes cannot connect ({error}). Start them under Slurm, Open MPI, GKE or "
                "Cloud TPU, or set JAX_COORDINATOR_ADDRESS (host:port), JAX_NUM_PROCESSES and JAX_PROCESS_ID in each "
                "process."
            ) from error


@contextlib.contextmanager
def name_lost_process() -> Iterator[None]:
    """Converts JAX's errors about a lost process into a LostProcessError.

    Raises:
      LostProcessError: another process of the run has ended or cannot be reached.
    """
    try:
        yield
    except Exception as error:
        if not is_lost_process(error):
            raise
        reason = str(error.__cause__ or error).splitlines()[0]
        raise LostProcessError(
            f"another process of this run has ended or cannot be reached ({reason}). Start all processes again with "
            "the same command: the run resumes from its last checkpoint."
        ) from error


def is_lost_process(error: Exception) -> bool:
    """Returns whether an error means that another process of the run is lost."""
    reason = str(error.__cause__ or error)  # An error of a checkpoint wraps its cause.
    return jax.process_count() > 1 and any(word in reason for word in _LOST_WORDS)


def make_mesh() -> Mesh:
    """Makes a mesh of all devices of all processes on one axis."""
    return jax.make_mesh((jax.device_count(),), (AXIS,), axis_types=(AxisType.Auto,))


def replicas_partitioned(replicas: int, mesh: Mesh) -> bool:
    """Returns whether the replicas are partitioned over the devices. Otherwise each batch is sharded instead."""
    return replicas % mesh.size == 0


def replicated(mesh: Mesh) -> NamedSharding:
    """Returns the sharding that copies an array to every device."""
    return NamedSharding(mesh, PartitionSpec())


def put(array: np.ndarray, mesh: Mesh, axis: int | None = None) -> jax.Array:
    """Puts a host array on the devices. Every process must pass the same array.

    Args:
      array: an array of any shape.
      mesh: the devices.
      axis: the axis of the array that is sharded over the devices; None: each device gets a copy.
    """
    spec = PartitionSpec() if axis is None else PartitionSpec(*[None] * axis, AXIS)
    with jax.transfer_guard("allow"):  # The transfer guard would treat this call as an implicit transfer.
        return jax.make_array_from_callback(array.shape, NamedSharding(mesh, spec), lambda index: array[index])


def measure_free_bytes(mesh: Mesh) -> int:
    """Measures the free memory of a device of this process, in bytes. CPU devices share the memory of the machine."""
    stats = mesh.local_devices[0].memory_stats()
    if stats and "bytes_limit" in stats:
        return stats["bytes_limit"] - stats["bytes_in_use"]
    try:
        lines = pathlib.Path("/proc/meminfo").read_text().splitlines()
        free = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))  # in KiB
    except (OSError, StopIteration):  # macOS reports the total memory only.
        free = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return free // mesh.size
