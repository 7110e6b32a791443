"""Counts what one training step of a compiled program does: kernels, bytes, convolutions, copies and collectives.

All counts are for one device. They come from the text of the program, so nothing has to run.
"""

import collections
import dataclasses
import math
import re
from collections.abc import Collection, Iterator, Mapping

from pneumojax.training.hlo import Array, Computation, Instruction, Program, parse_program, walk

# Instructions that start no kernel: they name, group or reinterpret arrays that exist already, or wait for a kernel.
_FREE = {
    *("parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all", "partition-id", "replica-id"),
    *("opt-barrier", "add-dependency"),
}
_COLLECTIVES = {
    *("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute", "collective-broadcast"),
    "ragged-all-to-all",
}
# Calls of the TPU compiler that reserve memory or join neighbouring arrays, which costs nothing.
_FREE_CALLS = {"AllocateBuffer", "ConcatBitcast"}
_KINDS = {"fusion": "fusion", "custom-call": "custom call", "copy-start": "prefetch", "slice-start": "prefetch"}
_DTYPES = {"bf16": "bfloat16", "f16": "float16", "f32": "float32", "f64": "float64"}


@dataclasses.dataclass
class Total:
    """A number of instructions, and the size of their results in bytes."""

    count: int = 0
    bytes: int = 0

    def add(self, count: int, nbytes: int) -> None:
        """Adds `count` instructions whose results have `nbytes` each."""
        self.count += count
        self.bytes += count * nbytes


@dataclasses.dataclass
class StepCounts:
    """What a device does in one training step.

    Attributes:
      bytes: bytes that the kernels read from and write to main memory. An array is counted each time that a kernel
        reads or writes it, with the padding of its layout; caches are not considered. Of an array that is only indexed,
        the rows that are read count.
      kernels: {"fusion", "custom call", "prefetch" (asynchronous copies of a TPU) or "other": number of kernels}.
      convolutions: {layout and dtype, such as "NHWC bfloat16": number}. The letters are the dimensions of the images in
        memory, from slowest to fastest; two layouts are those of the input and the output. On TPU, they are in the
        terms of the compiled convolution, which may exchange the batch and the channels in a gradient.
      transposes: activations whose dimensions are reordered in memory, alone or inside of another kernel.
      copies: activations that are copied in the same order.
      collectives: {kind: total} of the communication between devices.
    """

    bytes: int = 0
    kernels: dict[str, int] = dataclasses.field(default_factory=dict)
    convolutions: dict[str, int] = dataclasses.field(default_factory=dict)
    transposes: Total = dataclasses.field(default_factory=Total)
    copies: Total = dataclasses.field(default_factory=Total)
    collectives: dict[str, Total] = dataclasses.field(default_factory=dict)


def count_step(text: str, steps: int, batch_size: int, weight_shapes: Collection[tuple[int, ...]]) -> StepCounts:
    """Counts what one step of a compiled chunk of training steps does.

    Args:
      text: the program, from `jax.stages.Compiled.as_text()`.
      steps: number of steps in the chunk.
      batch_size: images of a step on a device. With the shapes of the weights, it tells activations from weights.
      weight_shapes: shapes of the network's parameters.
    """
    program = parse_program(text)
    weights = {_sort_shape(shape) for shape in weight_shapes}
    counts = StepCounts()
    kernels: collections.Counter[str] = collections.Counter()
    convolutions: collections.Counter[str] = collections.Counter()
    for kernel, computation, times in list_kernels(program, find_step(program, steps)):
        kernels[_KINDS.get(kernel.opcode, "other")] += times
        counts.bytes += times * count_bytes(program, kernel, computation)
        for instruction, own in [(kernel, computation), *_walk_inside(program, kernel)]:
            if layout := describe_convolution(instruction, own):
                convolutions[layout] += times
            if kind := _find_collective(instruction):
                counts.collectives.setdefault(kind, Total()).add(times, _count_communicated(instruction))
            if instruction.opcode in ("transpose", "copy") and is_activation(
                instruction.results[0], batch_size, weights
            ):
                if changes_order(instruction, own):
                    counts.transposes.add(times, instruction.results[0].nbytes)
                elif instruction is kernel and instruction.opcode == "copy":
                    counts.copies.add(times, instruction.results[0].nbytes)
    counts.kernels, counts.convolutions = dict(kernels.most_common()), dict(convolutions.most_common())
    return counts


def find_step(program: Program, steps: int) -> str:
    """Returns the name of the computation that is one step: the body of the loop over the steps.

    XLA removes a loop that has one step only; the step is then the whole program.
    """
    loops = [one for one, _ in walk(program, program.entry) if one.opcode == "while"] if steps > 1 else []
    if not loops:
        return program.entry
    return max((loop.called[0] for loop in loops), key=lambda body: sum(1 for _ in list_kernels(program, body)))


def list_kernels(program: Program, name: str, times: int = 1) -> Iterator[tuple[Instruction, Computation, int]]:
    """Yields the kernels of a computation, those of its loops and calls included.

    Of a conditional, all branches are listed.

    Args:
      program: the program.
      name: name of the computation.
      times: how often the computation runs.

    Yields:
      (kernel, the computation that it is in, how often it runs). The body of a loop whose length is unknown counts
      once.
    """
    computation = program.computations[name]
    for instruction in computation.values():
        if instruction.opcode in ("while", "call", "conditional"):
            length = re.search(r'"known_trip_count":\{"n":"(\d+)"', instruction.attributes)
            for called in instruction.called:
                yield from list_kernels(program, called, times * (int(length[1]) if length else 1))
        elif not _is_free(instruction):
            yield instruction, computation, times


def count_bytes(program: Program, kernel: Instruction, computation: Computation) -> int:
    """Counts the bytes that a kernel reads from and writes to main memory.

    Args:
      program: the program.
      kernel: from `list_kernels`.
      computation: the computation that it is in.
    """
    operands = [computation[name].results for name in kernel.operands if name in computation]
    if kernel.opcode == "fusion":
        [called] = kernel.called
        fused = program.computations[called]
        parameters = {one.number: one.name for one in fused.values() if one.opcode == "parameter"}
        read = sum(
            min(_count_main(arrays), _count_read(fused, parameters[i], arrays[0].space == 0 if arrays else False))
            for i, arrays in enumerate(operands)
            if i in parameters
        )
        root = next(one for one in fused.values() if one.is_root)
        return read + sum(map(_count_main, _list_written(fused, root, kernel.results)))
    if kernel.opcode == "copy-start":  # Its results are the copy, the source and a token.
        return _count_main(kernel.results[:2])
    if kernel.opcode == "dynamic-update-slice":
        return 2 * _count_main(operands[1])
    if kernel.opcode in ("slice", "slice-start", "dynamic-slice", "gather"):  # Only the rows that are copied are read.
        result = kernel.results[1] if kernel.opcode == "slice-start" else kernel.results[0]
        return result.nbytes * ((result.space == 0) + (operands[0][0].space == 0))
    written = kernel.results[len(kernel.operands) :] if _holds_operands(kernel) else kernel.results
    return _count_main(written) + sum(map(_count_main, operands))


def describe_convolution(instruction: Instruction, computation: Computation) -> str | None:
    """Describes a convolution by the layout of its images and its dtype, as in `StepCounts`; None for other ones."""
    labels = instruction.find_attribute("dim_labels")
    if not labels or "0" not in labels or instruction.opcode not in ("convolution", "custom-call"):
        return None  # Without spatial dimensions it is a matrix product.
    image, _, output = re.split(r"_|->", labels.translate(str.maketrans("bf01", "NCHW")))
    operands = [computation[name].results[0] for name in instruction.operands]
    kind = instruction.find_attribute("custom_call_target") or ""
    ends = [(operands[0], image), (instruction.results[0], output)]
    if "BackwardFilter" in kind:  # cuDNN computes the kernel's gradient from the image and the output's gradient.
        ends[1] = (operands[1], output)
    elif "BackwardInput" in kind:
        ends = [(operands[0], output), (instruction.results[0], image)]
    layouts = dict.fromkeys(array.find_order(names) for array, names in ends)
    return f"{' to '.join(layouts)} {_DTYPES.get(operands[0].dtype, operands[0].dtype)}"


def changes_order(instruction: Instruction, computation: Computation) -> bool:
    """Returns whether a transpose or a copy reorders its array in memory, and does not only rename the dimensions."""
    source, [result] = computation[instruction.operands[0]].results[0], instruction.results
    dimensions = re.search(r"dimensions=\{([\d,]*)\}", instruction.attributes)
    permutation = [int(i) for i in dimensions[1].split(",") if i] if dimensions else range(len(result.shape))
    before = [dimension for dimension in source.order if source.shape[dimension] > 1]
    after = [permutation[dimension] for dimension in result.order if result.shape[dimension] > 1]
    return before != after


def is_activation(array: Array, batch_size: int, weights: Collection[tuple[int, ...]]) -> bool:
    """Returns whether an array has a value for each image, and is not a weight.

    Args:
      array: the array.
      batch_size: images of a step on a device.
      weights: sorted sizes of the weights' dimensions, without those of size 1.
    """
    shape = _sort_shape(array.shape)
    # A layout can merge the batch with other dimensions. Small arrays, such as the keys of the images, cost nothing.
    batched = any(size % batch_size == 0 for size in shape) and math.prod(shape) >= 16 * batch_size
    return batched and shape not in weights


def _is_free(instruction: Instruction) -> bool:
    if instruction.opcode == "custom-call":
        return instruction.find_attribute("custom_call_target") in _FREE_CALLS
    return instruction.opcode in _FREE or instruction.opcode.endswith(("-done", "-update"))


def _sort_shape(shape: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(sorted(size for size in shape if size > 1))


def _walk_inside(program: Program, kernel: Instruction) -> Iterator[tuple[Instruction, Computation]]:
    if kernel.opcode in ("fusion", "async-start"):
        for called in kernel.called:
            yield from walk(program, called)


def _find_collective(instruction: Instruction) -> str | None:
    kind = instruction.opcode.removesuffix("-start")
    return kind if kind in _COLLECTIVES else None


def _holds_operands(instruction: Instruction) -> bool:
    """Returns whether the first results of an asynchronous instruction are its operands."""
    return instruction.opcode in ("all-gather-start", "collective-permute-start", "async-start")


def _count_communicated(instruction: Instruction) -> int:
    count = len(instruction.operands)
    results = instruction.results[count : 2 * count] if _holds_operands(instruction) else instruction.results
    return sum(array.nbytes for array in results)


def _count_main(arrays: Collection[Array]) -> int:
    """Returns the size of those arrays that are in main memory."""
    return sum(array.nbytes for array in arrays if array.space == 0)


def _count_read(fused: Mapping[str, Instruction], name: str, in_main: bool) -> int:
    """Returns the bytes of an instruction's result that its users in a fusion read from main memory."""
    if not in_main:
        return 0
    total = 0
    for user in fused.values():
        if name not in user.operands:
            continue
        if user.opcode in ("dynamic-slice", "slice", "gather") and user.operands[0] == name:
            total += sum(array.nbytes for array in user.results)
        elif user.opcode == "bitcast":
            total += _count_read(fused, user.name, in_main)
        elif user.opcode != "dynamic-update-slice" or user.operands[0] != name:
            return sum(array.nbytes for array in fused[name].results)
    return total


def _list_written(
    fused: Mapping[str, Instruction], root: Instruction, results: tuple[Array, ...]
) -> list[tuple[Array, ...]]:
    """Returns the arrays that a fusion writes. An array that is updated in place counts with its new part only."""
    roots = [fused[name] for name in root.operands] if root.opcode == "tuple" else [root]
    if len(roots) != len(results):
        return [results]
    written: list[tuple[Array, ...]] = []
    for one, result in zip(roots, results, strict=True):
        while one.opcode == "bitcast":
            one = fused[one.operands[0]]
        written.append(fused[one.operands[1]].results if one.opcode == "dynamic-update-slice" else (result,))
    return written
