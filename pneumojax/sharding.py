"""The device mesh, which has one axis, and the placement of arrays on it."""

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


# On CPU, Eigen computes the convolutions. In jax 0.10, YNNPACK computes those with 64 channels or fewer on one core,
# and it was not faster on any shape that we tried. These are the other two of the three kinds of fusion for YNNPACK.
_XLA_FLAGS = "--xla_cpu_experimental_ynn_fusion_type=LIBRARY_FUSION_TYPE_INDIVIDUAL_DOT,LIBRARY_FUSION_TYPE_REDUCE"
# XLA aborts on unknown flags. These versions know the flag; libtpu contains an XLA of its own.
_KNOWS_FLAGS = (0, 10) <= jax.__version_info__ < (0, 13) and importlib.util.find_spec("libtpu") is None

# Words in JAX's errors when another process is lost: status codes of its coordinator, names of collective libraries.
_LOST_WORDS = ("UNAVAILABLE", "DEADLINE_EXCEEDED", "ABORTED", "Gloo", "NCCL")


def initialize(multihost: bool) -> None:
    """Prepares JAX: sets XLA's flags and the compilation cache, and connects the processes.

    Call it before any computation. The compilation cache is in $JAX_COMPILATION_CACHE_DIR or ~/.cache/pneumojax. It
    lets a second start of a run skip compilation.

    Args:
      multihost: whether this is one of several processes.

    Raises:
      UserError: the processes cannot connect.
    """
    if _KNOWS_FLAGS and _XLA_FLAGS not in (given := os.environ.get("XLA_FLAGS", "")):
        os.environ["XLA_FLAGS"] = f"{_XLA_FLAGS} {given}"  # The last flag counts: the user's.
    if not jax.config.jax_compilation_cache_dir:  # type: ignore[attr-defined]  # JAX adds its options at run time.
        cache_home = os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache"
        jax.config.update("jax_compilation_cache_dir", str(pathlib.Path(cache_home) / "pneumojax" / "compiled"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
    if multihost and not jax.distributed.is_initialized():
        try:
            # JAX itself reads only the coordinator's address. Under a cluster's launcher it needs none of the three.
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
    """Converts JAX's errors about a lost process into a clear message.

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
    """Whether an error means that another process of the run is lost."""
    reason = str(error.__cause__ or error)  # An error of a checkpoint wraps its cause.
    return jax.process_count() > 1 and any(word in reason for word in _LOST_WORDS)


def make_mesh() -> Mesh:
    """Makes a mesh of all devices of all processes on one axis."""
    return jax.make_mesh((jax.device_count(),), (AXIS,), axis_types=(AxisType.Auto,))


def replicas_partitioned(replicas: int, mesh: Mesh) -> bool:
    """Whether the replicas are partitioned over the devices; otherwise each batch is, and each device has them all."""
    return replicas % mesh.size == 0


def replicated(mesh: Mesh) -> NamedSharding:
    """The sharding that copies an array to every device."""
    return NamedSharding(mesh, PartitionSpec())


def put(array: np.ndarray, mesh: Mesh, axis: int | None = None) -> jax.Array:
    """Puts a host array on the devices. Every process passes the same array.

    Args:
      array: any shape.
      mesh: the devices.
      axis: the array axis that is sharded over the devices; None: a copy on each device.
    """
    spec = PartitionSpec() if axis is None else PartitionSpec(*[None] * axis, AXIS)
    with jax.transfer_guard("allow"):  # JAX takes this call for a hidden transfer.
        return jax.make_array_from_callback(array.shape, NamedSharding(mesh, spec), lambda index: array[index])


def measure_free_bytes(mesh: Mesh) -> int:
    """Measures the free memory of a device of this process, in bytes. CPU devices share that of the machine."""
    stats = mesh.local_devices[0].memory_stats()
    if stats and "bytes_limit" in stats:
        return stats["bytes_limit"] - stats["bytes_in_use"]
    try:
        lines = pathlib.Path("/proc/meminfo").read_text().splitlines()
        free = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))  # in KiB
    except (OSError, StopIteration):  # macOS reports the total memory only.
        free = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return free // mesh.size
