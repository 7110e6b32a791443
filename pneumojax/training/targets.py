"""Accelerators that a training step can be compiled for on a machine that does not have them.

XLA's compilers for TPU and for NVIDIA's GPUs are in packages that can be installed anywhere: libtpu and jax's CUDA
plugin. `jax.experimental.topologies` describes devices to them that are not there.
"""

import dataclasses
import importlib.metadata
import importlib.util
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from pneumojax.errors import UserError
from pneumojax.sharding import AXIS
from pneumojax.training.chips import CHIPS

# Environment variables of a process that compiles for targets. They must be set before JAX is imported. The first keeps
# the CPU as the default backend. The second stops the CUDA plugin from looking for a driver. The cache is off because
# compile times are measured. The fourth lets several processes compile for TPU at the same time. The others stand for
# the metadata server of a TPU host.
ENVIRONMENT = {
    "JAX_PLATFORMS": "cpu",
    "JAX_SKIP_CUDA_CONSTRAINTS_CHECK": "1",
    "JAX_ENABLE_COMPILATION_CACHE": "false",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-8",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_WORKER_ID": "0",
}

# JAX reserves this share of a GPU's memory for arrays and programs, unless XLA_PYTHON_CLIENT_MEM_FRACTION is set.
GPU_MEMORY_SHARE = 0.75


@dataclasses.dataclass(frozen=True)
class _Gpu:
    """What XLA's compiler must know of a GPU, besides what `chips.CHIPS` has."""

    device_kind: str
    multiprocessors: int
    float32_units: int  # Of a multiprocessor.
    shared_bytes: int  # Of a multiprocessor, of which a block of threads can use all but 1 KiB.
    cache_bytes: int  # L2
    clock_ghz: float
    capability: int  # Major version of the compute capability.


# Sources: NVIDIA H100 Tensor Core GPU Architecture (2022), NVIDIA A100 Tensor Core GPU Architecture (2020), and the
# chapter "Compute Capabilities" of the CUDA C++ Programming Guide. H200 has the processor of the H100 SXM.
_GPUS = {
    "h100": _Gpu("NVIDIA H100 80GB HBM3", 132, 128, 228 * 1024, 50 * 2**20, 1.98, 9),
    "h200": _Gpu("NVIDIA H200", 132, 128, 228 * 1024, 50 * 2**20, 1.98, 9),
    "a100": _Gpu("NVIDIA A100-SXM4-80GB", 108, 64, 164 * 1024, 40 * 2**20, 1.41, 8),
}
_GPU_COUNTS = (1, 2, 4, 8)

# {name: (device kind, slices)}. Source: the pages "TPU v5e", "TPU v5p" and "TPU v6e" of Google's Cloud TPU
# documentation. Of v5p, which has many slices, those of up to 64 chips are listed.
_FLAT_SLICES = ("1x1", "2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16")
_TPUS = {
    "v5e": ("TPU v5 lite", _FLAT_SLICES),
    "v5p": ("TPU v5", ("2x2x1", "2x2x2", "2x2x4", "2x4x4", "4x4x4")),
    "v6e": ("TPU v6 lite", _FLAT_SLICES),
}

# {platform: (extra of pyproject.toml, packages of which one is needed)}
_PACKAGES = {"cuda": ("aot-cuda", ("jax-cuda13-plugin", "jax-cuda12-plugin")), "tpu": ("aot-tpu", ("libtpu",))}


@dataclasses.dataclass(frozen=True)
class Target:
    """Devices of one kind that a program is compiled for.

    Attributes:
      name: such as h100 or v5e:2x4.
      platform: cuda or tpu.
      generation: the part of the name before the colon.
      sizes: number of chips along each axis of the topology.
    """

    name: str
    platform: str
    generation: str
    sizes: tuple[int, ...]

    @property
    def device_kind(self) -> str:
        """Key of the devices in `chips.CHIPS`."""
        return _GPUS[self.generation].device_kind if self.platform == "cuda" else _TPUS[self.generation][0]

    @property
    def count(self) -> int:
        """Number of devices."""
        return int(np.prod(self.sizes))

    @property
    def usable_bytes(self) -> int:
        """Memory of a device that a program can use. The TPU compiler refuses a program that needs more."""
        return int(CHIPS[self.device_kind].memory_bytes * (GPU_MEMORY_SHARE if self.platform == "cuda" else 1))


def list_targets() -> str:
    """Lists all targets in a sentence, for messages and help texts."""
    gpus = f"{', '.join(_GPUS)} (of several in one host: {', '.join(f'h100:{n}' for n in _GPU_COUNTS[1:])})"
    tpus = "; ".join(f"{name}: with {', '.join(slices)}" for name, (_, slices) in _TPUS.items())
    return f"{gpus}; {tpus}"


def parse_target(name: str) -> Target:
    """Finds a target by its name.

    Raises:
      UserError: there is no such target. The message lists all.
    """
    generation, _, shape = name.partition(":")
    if generation in _GPUS and (shape or "1") in map(str, _GPU_COUNTS):
        return Target(name, "cuda", generation, (1, 1, int(shape or 1)))
    if generation in _TPUS and shape in _TPUS[generation][1]:
        return Target(name, "tpu", generation, tuple(map(int, shape.split("x"))))
    raise UserError(f"target {name!r} is unknown. The targets are {list_targets()}.")


def check_packages(target: Target) -> dict[str, str]:
    """Checks that the compiler of a target is installed in a version that fits JAX.

    Returns:
      {package: version} of the compiler.

    Raises:
      UserError: the package is missing, or has another version than jaxlib.
    """
    extra, packages = _PACKAGES[target.platform]
    versions = {}
    for package in packages:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    jaxlib = importlib.metadata.version("jaxlib")
    if not versions:
        raise UserError(
            f"target {target.name}: {' or '.join(packages)} is not installed, which has the compiler. Install the "
            f"extra {extra}: pip install -e '.[{extra}]'."
        )
    # libtpu has versions of its own, and its interface is stable. JAX ignores a CUDA plugin of another version.
    if target.platform == "cuda" and jaxlib not in versions.values():
        found = ", ".join(f"{package} {version}" for package, version in versions.items())
        raise UserError(
            f"target {target.name}: {found} is installed, but jaxlib is {jaxlib}, and they must have one version. "
            f"Install it: pip install '{next(iter(versions))}[with-cuda]=={jaxlib}'."
        )
    return versions


def make_target_mesh(target: Target) -> Mesh:
    """Makes a mesh of the devices of a target on one axis, as `sharding.make_mesh` does with real devices.

    The process needs the variables of ENVIRONMENT.

    Raises:
      UserError: the compiler does not accept the target.
    """
    from jax.experimental import topologies

    shape = "x".join(map(str, target.sizes))
    options: dict[str, Any]
    if target.platform == "cuda":
        options = {"topology_name": shape, "topology": shape, "target_config": _describe_gpu(target)}
    else:
        # A host of v5e and v6e has up to 4 chips, and a slice of one chip is on a host with one chip.
        options = {"topology_name": f"{target.generation}:{shape}"}
        if target.count == 1:
            options["chips_per_host_bounds"] = [1, 1, 1]
    try:
        devices = topologies.get_topology_desc(platform=target.platform, **options).devices
    except (jax.errors.JaxRuntimeError, RuntimeError, NotImplementedError) as error:
        raise UserError(
            f"target {target.name}: the compiler does not accept it ({str(error).splitlines()[0]})."
        ) from error
    return Mesh(np.array(devices), (AXIS,))


def _describe_gpu(target: Target) -> str:
    """Returns XLA's description of a GPU: a GpuTargetConfigProto as text."""
    gpu = _GPUS[target.generation]
    chip = CHIPS[gpu.device_kind]
    device = {
        "threads_per_block_limit": 1024,
        "threads_per_warp": 32,
        "shared_memory_per_block": 48 * 1024,
        "shared_memory_per_core": gpu.shared_bytes,
        "threads_per_core_limit": 2048,
        "core_count": gpu.multiprocessors,
        "fpus_per_core": gpu.float32_units,
        "block_dim_limit_x": 2**31 - 1,
        "block_dim_limit_y": 2**16 - 1,
        "block_dim_limit_z": 2**16 - 1,
        "memory_bandwidth": int(chip.bytes_per_second),
        "l2_cache_size": gpu.cache_bytes,
        "clock_rate_ghz": gpu.clock_ghz,
        "device_memory_size": chip.memory_bytes,
        "shared_memory_per_block_optin": gpu.shared_bytes - 1024,
        "registers_per_core_limit": 2**16,
        "registers_per_block_limit": 2**16,
    }
    lines = "\n".join(f"{name}: {value}" for name, value in device.items())
    return (
        f"gpu_device_info {{ {lines}\ncuda_compute_capability {{ major: {gpu.capability} }} }}\n"
        'platform_name: "CUDA"\ndnn_version_info { major: 9 minor: 12 patch: 0 }\n'
        f'device_description_str: "{gpu.device_kind}"'
    )
