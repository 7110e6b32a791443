"""Tests of the parser of compiled programs."""

import jax
import jax.numpy as jnp
import pytest

from pneumojax.training.hlo import Array, parse_arrays, parse_program, walk

PROGRAM = """\
HloModule jit_chunk, is_scheduled=true, entry_computation_layout={(f32[8]{0})->f32[8]{0}}

%add (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %sum = f32[] add(%a, %b)
}

%fused_computation.1 (param_0.1: f32[8]) -> (f32[8], f32[]) {
  %param_0.1 = f32[8]{0} parameter(0)
  %zero = f32[] constant(0)
  %reduce.3 = f32[] reduce(%param_0.1, %zero), dimensions={0}, to_apply=%add, metadata={op_name="a(b)" stack_frame_id=1}
  ROOT %both = (f32[8]{0}, f32[]) tuple(%param_0.1, %reduce.3)
}

ENTRY %main.9 (x.1: f32[8], /*index=5*/y: (f32[2], u32[])) -> f32[8] {
  %x.1 = f32[8]{0} parameter(0), metadata={op_name="x[\\'a\\']"}
  %twice = (f32[8]{0}, /*index=1*/f32[]) fusion(%x.1), kind=kLoop, calls=%fused_computation.1
  ROOT %first = f32[8]{0} get-tuple-element(%twice), index=0
}
"""


def test_instructions_are_read_with_their_computation_and_operands():
    program = parse_program(PROGRAM)
    assert program.entry == "main.9" and list(program.computations) == ["add", "fused_computation.1", "main.9"]
    fusion = program.computations["main.9"]["twice"]
    assert (fusion.opcode, fusion.operands, fusion.called) == ("fusion", ("x.1",), ("fused_computation.1",))
    assert [array.shape for array in fusion.results] == [(8,), ()]
    assert fusion.find_attribute("kind") == "kLoop" and fusion.find_attribute("window") is None
    parameter = program.computations["fused_computation.1"]["param_0.1"]
    assert (parameter.number, parameter.operands, parameter.is_root) == (0, (), False)
    assert program.computations["main.9"]["first"].is_root


def test_fused_instructions_are_walked_and_the_functions_of_reductions_are_not():
    names = [instruction.name for instruction, _ in walk(parse_program(PROGRAM), "main.9")]
    assert names == ["x.1", "twice", "param_0.1", "zero", "reduce.3", "both", "first"]


def test_an_array_has_the_layout_tile_and_memory_space_of_its_text():
    [array] = parse_arrays("bf16[24,8,8,16]{3,0,2,1:T(8,128)(2,1)S(1)}")
    assert array == Array("bf16", (24, 8, 8, 16), (1, 2, 0, 3), (8, 128), 1)
    assert array.find_order("NHWC") == "HWNC"
    # The last dimension is padded to 128 and the one before it, of 24, is a multiple of 8.
    assert array.nbytes == 8 * 8 * 24 * 128 * 2
    sizes = {"f32[3,5]{0,1}": 60, "pred[7]{0}": 7, "s4[6]{0}": 3, "token[]": 0, "u32[2]": 8, "f32[3]{0:T(128)}": 512}
    assert {text: sum(array.nbytes for array in parse_arrays(text)) for text in sizes} == sizes
    assert [array.dtype for array in parse_arrays("((f32[4]{0}), u8[0]{0}, f8e4m3fn[2]{0})")] == [
        "f32",
        "u8",
        "f8e4m3fn",
    ]


def test_a_program_of_this_machine_is_read_completely():
    @jax.jit
    def function(x):
        return jax.lax.scan(lambda y, z: (jnp.tanh(y @ y + z), y.sum()), x, jnp.arange(3.0))

    text = function.lower(jnp.ones((8, 8))).compile().as_text()
    program = parse_program(text)
    read = sum(len(computation) for computation in program.computations.values())
    assert read == sum(" = " in line and line.startswith("  ") for line in text.splitlines())
    opcodes = {instruction.opcode for instruction, _ in walk(program, program.entry)}
    assert {"while", "parameter", "tuple"} <= opcodes
    for computation in program.computations.values():
        assert sum(instruction.is_root for instruction in computation.values()) == 1
        assert {name for instruction in computation.values() for name in instruction.operands} <= computation.keys()


def test_text_that_is_no_program_is_an_error():
    with pytest.raises(ValueError, match="no ENTRY computation"):
        parse_program("HloModule empty\n")
