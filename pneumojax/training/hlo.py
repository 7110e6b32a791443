"""Parses the text of a compiled program, which XLA writes in its intermediate language HLO.

A program is a set of computations, and a computation is a list of instructions. An instruction on the top level of a
computation is a kernel of the device or costs nothing; an instruction in a fused computation is a part of a kernel.
`program_counts.py` counts what the instructions cost.

References:
  OpenXLA project. Operation semantics. https://openxla.org/xla/operation_semantics
  OpenXLA project. Shapes and layout, tiled layout. https://openxla.org/xla/shapes
"""

import dataclasses
import math
import re
from collections.abc import Iterator

# A dtype, the sizes of the dimensions, and the layout in braces, such as bf16[24,8,8,16]{3,0,2,1:T(8,128)(2,1)S(1)}.
_ARRAY = re.compile(r"([a-z][a-z0-9]*)\[([0-9,<=]*)\](?:\{([^}]*)\})?")
_INSTRUCTION = re.compile(r"^\s+(ROOT )?%?([\w.\-]+) = (.*)$")
_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+)[^=]*\{$")
_CALLED = re.compile(
    r"\b(?:calls|body|to_apply|branch_computations|called_computations|true_computation|false_computation)="
    r"(\{[^}]*\}|%[\w.\-]+)"
)


@dataclasses.dataclass(frozen=True)
class Array:
    """An array that a program computes.

    Attributes:
      dtype: XLA's name, such as bf16, f32 or pred.
      shape: sizes of the dimensions.
      order: the dimensions from the slowest varying in memory to the fastest: (0, 1, 2, 3) is row-major.
      tile: sizes to which the last dimensions of `order` are padded; () on GPU and CPU.
      space: memory space; 0 is the device's main memory, 1 the on-chip memory of a TPU.
    """

    dtype: str
    shape: tuple[int, ...]
    order: tuple[int, ...]
    tile: tuple[int, ...] = ()
    space: int = 0

    @property
    def nbytes(self) -> int:
        """Size in memory in bytes, with padding."""
        sizes = [self.shape[dimension] for dimension in self.order]
        for i in range(1, len(self.tile) + 1):
            if i <= len(sizes):
                sizes[-i] = math.ceil(sizes[-i] / self.tile[-i]) * self.tile[-i]
        bits = re.search(r"\d+", self.dtype)  # Tokens have no bits, and a pred has 8.
        return math.prod(sizes) * (int(bits[0]) if bits else 8 * (self.dtype == "pred")) // 8

    def find_order(self, names: str) -> str:
        """Returns the names of the dimensions, one character each, in the order of `order`."""
        return "".join(names[dimension] for dimension in self.order)


@dataclasses.dataclass(frozen=True)
class Instruction:
    """An instruction of a computation.

    Attributes:
      name: its name, which is unique in the program.
      opcode: the operation, such as fusion or all-reduce-start.
      results: the array that it computes, or the arrays if the result is a tuple, in order.
      operands: names of the instructions that it reads.
      attributes: the text after the operands.
      is_root: whether its result is the result of the computation.
      number: of a parameter, its position in the call; otherwise None.
    """

    name: str
    opcode: str
    results: tuple[Array, ...]
    operands: tuple[str, ...]
    attributes: str
    is_root: bool = False
    number: int | None = None

    @property
    def called(self) -> tuple[str, ...]:
        """Names of the computations that it calls, without the condition of a loop."""
        return tuple(name for group in _CALLED.findall(self.attributes) for name in re.findall(r"[\w.\-]+", group))

    def find_attribute(self, name: str) -> str | None:
        """Returns the value of an attribute that has no spaces, such as that of dim_labels; None if it is missing."""
        found = re.search(rf"\b{name}=\"?([^\s\"]*?)\"?(?:,? |,?$)", self.attributes)
        return found[1] if found else None


Computation = dict[str, Instruction]


@dataclasses.dataclass(frozen=True)
class Program:
    """A compiled program.

    Attributes:
      entry: name of the computation with which the program starts.
      computations: {name: {name of an instruction: instruction}}, in the order of the text.
    """

    entry: str
    computations: dict[str, Computation]


def parse_program(text: str) -> Program:
    """Parses the text of a compiled program, from `jax.stages.Compiled.as_text()`.

    Raises:
      ValueError: the text has no entry computation.
    """
    computations: dict[str, Computation] = {}
    entry, current = "", None
    for line in text.splitlines():
        if current is not None and (match := _INSTRUCTION.match(line)):
            current[match[2]] = _parse_instruction(match[2], match[3], bool(match[1]))
        elif line.startswith("}"):
            current = None
        elif line.endswith("{") and (match := _COMPUTATION.match(_remove_signature(line))):
            current = computations.setdefault(match[2], {})
            entry = match[2] if match[1] else entry
    if not entry:
        raise ValueError("the text is not a program: it has no ENTRY computation.")
    return Program(entry, computations)


def parse_arrays(text: str) -> tuple[Array, ...]:
    """Parses the type of an instruction: one array, or the arrays of a tuple."""
    return tuple(_parse_array(*match) for match in _ARRAY.findall(text))


def walk(program: Program, name: str) -> Iterator[tuple[Instruction, Computation]]:
    """Yields the instructions of a computation and of all computations that they call, fused ones included.

    The functions of reductions, sorts and collectives, which combine two numbers, are left out.

    Yields:
      (instruction, the computation that it is in).
    """
    computation = program.computations[name]
    for instruction in computation.values():
        yield instruction, computation
        if calls_computations(instruction):
            for called in instruction.called:
                yield from walk(program, called)


def calls_computations(instruction: Instruction) -> bool:
    """Returns whether an instruction runs computations, other than a function that combines two numbers."""
    return instruction.opcode in ("fusion", "while", "call", "conditional") or instruction.opcode == "async-start"


def _parse_instruction(name: str, text: str, is_root: bool) -> Instruction:
    end = _find_end(text, 0) if text.startswith("(") else text.index(" ")
    start = text.index("(", end)
    stop = _find_end(text, start)
    opcode, inside = text[end:start].strip(), text[start + 1 : stop - 1]
    number = int(inside) if opcode == "parameter" else None
    operands = () if opcode == "constant" else tuple(re.findall(r"%([\w.\-]+)", inside))
    return Instruction(name, opcode, parse_arrays(text[:end]), operands, text[stop:].lstrip(", "), is_root, number)


def _parse_array(dtype: str, shape: str, layout: str) -> Array:
    sizes = tuple(int(size.lstrip("<=")) for size in shape.split(",") if size)
    minor_to_major, _, rest = layout.partition(":")
    order = tuple(int(dimension) for dimension in reversed(minor_to_major.split(",")) if dimension)
    tile, space = re.search(r"T\(([\d,]*)\)", rest), re.search(r"S\((\d+)\)", rest)
    return Array(
        dtype,
        sizes,
        order or tuple(range(len(sizes))),
        tuple(int(size) for size in tile[1].split(",") if size) if tile else (),
        int(space[1]) if space else 0,
    )


def _find_end(text: str, start: int) -> int:
    """Returns the position after the parenthesis that closes the one at `start`."""
    depth = 0
    for match in re.compile(r"[()]").finditer(text, start):
        depth += 1 if match[0] == "(" else -1
        if not depth:
            return match.end()
    raise ValueError(f"a parenthesis is not closed: {text[start : start + 80]}")


def _remove_signature(line: str) -> str:
    """Removes the parameters and the result of the first line of a computation, which may contain equals signs."""
    start = line.find(" (")
    return line[:start] + " {" if start > 0 else line
