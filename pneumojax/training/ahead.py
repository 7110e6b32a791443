"""Compiles the training step of a config for a target, and reports what it needs and what bounds its speed."""

import dataclasses
import importlib.metadata
import re

import jax
import numpy as np
from jax.sharding import Mesh

from pneumojax import steps
from pneumojax.config import CLASS_NAMES, Config, replace_fields
from pneumojax.data.batches import split_epoch
from pneumojax.errors import UserError
from pneumojax.ops.xla import algorithms
from pneumojax.optimizer import make_optimizer
from pneumojax.sharding import AXIS
from pneumojax.training.chips import CHIPS
from pneumojax.training.compile_cost import compile_chunk, count_step_flops
from pneumojax.training.program_counts import StepCounts, count_step
from pneumojax.training.targets import Target, check_packages, make_target_mesh

# The optimizer's schedule needs a number of steps, which does not change the program.
SCHEDULE_STEPS = 10_000

_UNITS = {"B": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


def check_config(config: Config, target: Target) -> None:
    """Checks that a config can be compiled for a target, without compiling it.

    Raises:
      UserError: the target's devices do not divide the batch, or the config is not of a plain training.
    """
    if config.train.parallel == "pmap":
        raise UserError(
            "parallel=pmap uses the devices of this machine, so it cannot be compiled for others. Set --parallel=jit "
            "or shard_map."
        )
    for name, value in (("replicas", config.train.replicas > 1), ("cached_views", config.model.cached_views)):
        if value:
            raise UserError(f"{name}: only the step of a plain training is compiled for targets. Omit --{name}.")
    if config.train.batch_size % target.count:
        raise UserError(
            f"batch_size {config.train.batch_size} is not divisible by the {target.count} devices of {target.name}. "
            f"Use a multiple of {target.count}."
        )
    if config.model.dtype not in CHIPS[target.device_kind].flops:
        raise UserError(f"dtype={config.model.dtype} is not supported by {target.device_kind}.")


def compile_ahead(config: Config, target: Target, num_images: int) -> dict:
    """Compiles the chunk of training steps that `fit` would run on the devices of a target.

    The process needs the variables of `targets.ENVIRONMENT`.

    Args:
      config: the run. Its data set is not read.
      target: the devices.
      num_images: images of the training split, which are on each device with loader=resident.

    Returns:
      A dict that can be stored as JSON; all values are for one device, except for FLOP and images/s.

        "fits": whether a device has enough memory. "memory": {"needed", "usable"} in bytes, and "arguments" and
          "temporaries" if it is known. If it does not fit, a TPU has no further values.
        "compile_seconds": time of tracing and compilation.
        "flops_per_step": FLOP of all devices, counted before optimisation.
        "bytes_per_step", "bytes_per_image": bytes that a device reads and writes, see `StepCounts.bytes`.
        "xla_bytes_per_step": the same by XLA's own count, on TPU. It also counts the on-chip memory.
        "kernels", "convolutions", "transposes", "copies", "collectives": see `StepCounts`.
        "other_convolutions": see `count_other_convolutions`.
        "seconds_bound", "images_per_second_bound", "bound_by": see `compute_roofline`.
        "device": {"kind", "platform", "count"}; "versions": {package: version}.

    Raises:
      UserError: the compiler is missing or does not accept the target.
    """
    check_config(config, target)
    versions = check_packages(target)
    versions |= {name: importlib.metadata.version(name) for name in ("jax", "jaxlib", "flax", "optax")}
    device = {"kind": target.device_kind, "platform": target.platform, "count": target.count}
    row = {"device": device, "versions": dict(sorted(versions.items()))}
    # The default backend is the CPU, whose own algorithms must not get into the program of another device.
    with algorithms("gpu" if target.platform == "cuda" else target.platform):
        train_chunk, arguments = make_chunk(config, make_target_mesh(target), num_images)
        try:
            compiled, costs = compile_chunk(train_chunk, arguments)
        except jax.errors.JaxRuntimeError as error:
            if not (memory := find_missing_memory(str(error))):
                raise
            return row | {"fits": False, "memory": memory}
    shapes = [leaf.shape for leaf in jax.tree.leaves(arguments[0])]
    return row | describe_program(config, target, num_images, compiled, costs, shapes)


def describe_program(
    config: Config,
    target: Target,
    num_images: int,
    compiled: jax.stages.Compiled,
    costs: dict[str, float],
    weight_shapes: list[tuple[int, ...]],
) -> dict:
    """Returns the values of `compile_ahead` that describe a compiled program.

    Args:
      config: the run.
      target: the devices.
      num_images: as in `compile_ahead`.
      compiled: the program.
      costs: from `compile_cost.compile_chunk`.
      weight_shapes: shapes of the arrays of the state.
    """
    memory, text = compiled.memory_analysis(), compiled.as_text()
    assert memory and text  # The compilers of all targets report both.
    batch_size, needed = config.train.batch_size // target.count, int(costs["perf/peak_memory_bytes"])
    counts = count_step(text, find_chunk_steps(config, num_images), batch_size, weight_shapes)
    flops = count_flops(config, num_images)
    details = dataclasses.asdict(counts)
    own_bytes = {"xla_bytes_per_step": costs["perf/bytes_per_step"]} if "perf/bytes_per_step" in costs else {}
    return {
        "fits": needed <= target.usable_bytes,
        "memory": {
            "needed": needed,
            "usable": target.usable_bytes,
            "arguments": memory.argument_size_in_bytes,
            "temporaries": memory.temp_size_in_bytes,
        },
        "compile_seconds": costs["perf/compile_seconds"],
        "flops_per_step": flops,
        "bytes_per_step": details.pop("bytes"),
        "bytes_per_image": counts.bytes / batch_size,
        **own_bytes,
        "other_convolutions": count_other_convolutions(counts, config.model.dtype, target.platform),
        **details,
        **compute_roofline(config, target, flops, counts.bytes),
    }


def make_chunk(config: Config, mesh: Mesh, num_images: int) -> tuple[jax.stages.Wrapped, tuple]:
    """Makes the chunk of training steps, and the shapes and dtypes of its arguments.

    Args:
      config: the run.
      mesh: the devices, which need not exist.
      num_images: images of the training split.

    Returns:
      (train_chunk, arguments): see `steps.make_train_chunk`.
    """
    tx, graph = make_optimizer(config.optimizer, SCHEDULE_STEPS), steps.make_graph(config)
    class_weights = np.ones(len(CLASS_NAMES[config.model.task]), np.float32)
    train_chunk = steps.make_train_chunk(config, graph, tx, class_weights, mesh)
    key = jax.eval_shape(lambda: jax.random.key(0))
    state = jax.eval_shape(steps.make_init(config, tx, mesh), key)
    px = config.data.image_px
    batches = (find_chunk_steps(config, num_images), config.train.batch_size)
    if config.train.loader == "stream":
        return train_chunk, (state, _shape(*batches, px, px, dtype="uint8"), _shape(*batches), key)
    return train_chunk, (state, _shape(num_images, px, px, dtype="uint8"), _shape(num_images), _shape(*batches), key)


def find_chunk_steps(config: Config, num_images: int) -> int:
    """Returns the number of steps in a chunk. A batch that is larger than the training split is one step."""
    batch_size = config.train.batch_size
    return split_epoch(max(num_images, batch_size), batch_size, config.train.chunk_steps)[1]


def count_flops(config: Config, num_images: int) -> float:
    """Counts the FLOP of a step of all devices, before optimisation and with XLA's own algorithms."""
    # The program for one device does the same work. It is lowered for the CPU, which can count without compiling.
    config = replace_fields(config, {"parallel": "jit", "batch_norm": "global"})
    train_chunk, arguments = make_chunk(config, Mesh(np.array(jax.devices("cpu")[:1]), (AXIS,)), num_images)
    return count_step_flops(train_chunk, arguments, devices=1, mapped=False)["perf/flops_per_step"]


def count_other_convolutions(counts: StepCounts, dtype: str, platform: str) -> int:
    """Returns the number of convolutions that do not compute as they should.

    Args:
      counts: from `count_step`.
      dtype: compute dtype of the config. Convolutions of another dtype are counted.
      platform: on cuda, convolutions whose images are not NHWC are counted too, because tensor cores need this layout.
        On tpu, the compiler chooses a layout for each convolution.
    """
    suffix = f"NHWC {dtype}" if platform == "cuda" else dtype
    return sum(
        number
        for layout, number in counts.convolutions.items()
        if (layout != suffix if platform == "cuda" else not layout.endswith(f" {suffix}"))
    )


def compute_roofline(config: Config, target: Target, flops: float, nbytes: int) -> dict:
    """Computes the shortest possible time of a step from the published peak rates of the devices.

    Args:
      config: the run.
      target: the devices.
      flops: FLOP of a step of all devices.
      nbytes: bytes that a device reads and writes in a step.

    Returns:
      {"seconds_bound": lower bound of the seconds of a step; "images_per_second_bound": upper bound; "bound_by":
      "FLOP" or "bytes", the one that takes longer}.

    References:
      S. Williams, A. Waterman, D. Patterson. Roofline: an insightful visual performance model for multicore
      architectures. 2009.
    """
    chip = CHIPS[target.device_kind]
    seconds = {
        "FLOP": flops / target.count / chip.flops[config.model.dtype],
        "bytes": nbytes / chip.bytes_per_second,
    }
    bound_by = max(seconds, key=lambda name: seconds[name])
    return {
        "seconds_bound": seconds[bound_by],
        "images_per_second_bound": config.train.batch_size / seconds[bound_by],
        "bound_by": bound_by,
    }


def find_missing_memory(message: str) -> dict | None:
    """Reads an error of the TPU compiler about a program that does not fit.

    Returns:
      {"needed", "usable"} in bytes, or None for other errors. `needed` can be the temporaries alone, without arguments.
    """
    size = r"([\d.]+)([BKMGT]?)"
    found = re.search(rf"\({size}\) exceeds available HBM \({size}\)|Used {size} of {size} hbm", message)
    if not found:
        return None
    needed, needed_unit, usable, usable_unit = (group for group in found.groups() if group is not None)
    return {
        "needed": int(float(needed) * _UNITS[needed_unit or "B"]),
        "usable": int(float(usable) * _UNITS[usable_unit or "B"]),
    }


def _shape(*sizes: int, dtype: str = "int32") -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(sizes, np.dtype(dtype))
