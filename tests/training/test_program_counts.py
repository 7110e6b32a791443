"""Tests of the counts of a compiled training step."""

import jax
import numpy as np
import pytest
from jax.sharding import Mesh

from pneumojax.config import config_from_dict
from pneumojax.ops.xla import algorithms
from pneumojax.sharding import AXIS
from pneumojax.training import ahead
from pneumojax.training.program_counts import Total, count_step

# A chunk of 4 steps for GPU. Before the loop there is one kernel, which is no part of a step.
CHUNK = """\
HloModule jit_chunk

%add (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %sum = f32[] add(%a, %b)
}

%fused_transpose (p: bf16[6,4,4,32]) -> bf16[32,4,4,6] {
  %p = bf16[6,4,4,32]{3,2,1,0} parameter(0)
  ROOT %t = bf16[32,4,4,6]{3,2,1,0} transpose(%p), dimensions={3,1,2,0}
}

%fused_gather (p0: u8[1000,8,8], p1: s32[6,1]) -> u8[6,8,8] {
  %p0 = u8[1000,8,8]{2,1,0} parameter(0)
  %p1 = s32[6,1]{1,0} parameter(1)
  ROOT %g = u8[6,8,8]{2,1,0} gather(%p0, %p1), offset_dims={1,2}, slice_sizes={1,8,8}
}

%fused_update (m: f32[4], n: f32[], k: s32[]) -> f32[4] {
  %m = f32[4]{0} parameter(0)
  %n = f32[] parameter(1)
  %one = f32[1]{0} bitcast(%n)
  %k = s32[] parameter(2)
  ROOT %u = f32[4]{0} dynamic-update-slice(%m, %one, %k)
}

%inner (v: (f32[6])) -> (f32[6]) {
  %v = (f32[6]{0}) parameter(0)
  %e = f32[6]{0} get-tuple-element(%v), index=0
  %c = f32[6]{0} copy(%e)
  ROOT %r = (f32[6]{0}) tuple(%c)
}

%body (s: (s32[], f32[4], u8[1000,8,8], s32[6,1])) -> (s32[], f32[4], u8[1000,8,8], s32[6,1]) {
  %s = (s32[], f32[4]{0}, u8[1000,8,8]{2,1,0}, s32[6,1]{1,0}) parameter(0)
  %i = s32[] get-tuple-element(%s), index=0
  %f = f32[4]{0} get-tuple-element(%s), index=1
  %all = u8[1000,8,8]{2,1,0} get-tuple-element(%s), index=2
  %index = s32[6,1]{1,0} get-tuple-element(%s), index=3
  %rows = u8[6,8,8]{2,1,0} fusion(%all, %index), kind=kLoop, calls=%fused_gather
  %x = bf16[6,4,4,32]{3,2,1,0} custom-call(%rows), custom_call_target="make"
  %w = bf16[32,3,3,32]{3,2,1,0} custom-call(%rows), custom_call_target="make"
  %conv = (bf16[6,4,4,32]{3,2,1,0}, u8[0]{0}) custom-call(%x, %w), window={size=3x3 pad=1_1x1_1}, \
dim_labels=b01f_o01i->b01f, \
custom_call_target="__cudnn$convForward", backend_config={"a":{"b":"c"}}
  %y = bf16[6,4,4,32]{3,2,1,0} get-tuple-element(%conv), index=0
  %filter = (f32[32,3,3,32]{3,2,1,0}, u8[0]{0}) custom-call(%x, %y), dim_labels=b01f_o01i->b01f, \
custom_call_target="__cudnn$convBackwardFilter"
  %input = (bf16[6,32,4,4]{3,2,1,0}, u8[0]{0}) custom-call(%y, %w), dim_labels=bf01_o01i->b01f, \
custom_call_target="__cudnn$convBackwardInput"
  %turned = bf16[32,4,4,6]{3,2,1,0} fusion(%y), kind=kInput, calls=%fused_transpose
  %renamed = bf16[32,4,4,6]{0,2,1,3} transpose(%y), dimensions={3,1,2,0}
  %copied = bf16[6,4,4,32]{3,2,1,0} copy(%y)
  %weights = bf16[32,3,3,32]{0,1,2,3} copy(%w)
  %loss = f32[] all-reduce(%i), replica_groups={{0,1}}, to_apply=%add
  %grads = (f32[100]{0}, bf16[50]{0}) all-reduce-start(%f, %y), to_apply=%add
  %done = (f32[100]{0}, bf16[50]{0}) all-reduce-done(%grads)
  %gathering = (f32[4]{0}, f32[8]{0}) all-gather-start(%f), dimensions={0}
  %list = (f32[6]{0}) tuple(%f)
  %random = (f32[6]{0}) while(%list), condition=%never, body=%inner, backend_config={"known_trip_count":{"n":"3"}}
  %new = f32[4]{0} fusion(%f, %loss, %i), kind=kLoop, calls=%fused_update
  ROOT %next = (s32[], f32[4]{0}, u8[1000,8,8]{2,1,0}, s32[6,1]{1,0}) tuple(%i, %new, %all, %index)
}

ENTRY %main (p: s32[]) -> s32[] {
  %p = s32[] parameter(0)
  %start = s32[] copy(%p)
  %loop = (s32[], f32[4]{0}, u8[1000,8,8]{2,1,0}, s32[6,1]{1,0}) while(%start), condition=%cond, body=%body
  ROOT %end = s32[] get-tuple-element(%loop), index=0
}
"""
IMAGES, KERNEL = 6 * 4 * 4 * 32 * 2, 32 * 9 * 32 * 2  # bytes


@pytest.fixture(scope="module")
def counts():
    return count_step(CHUNK, steps=4, batch_size=6, weight_shapes=[(3, 3, 32, 32), ()])


def test_convolutions_are_told_apart_by_the_layout_of_their_images_and_by_dtype(counts):
    assert counts.convolutions == {"NHWC bfloat16": 2, "NHWC to NCHW bfloat16": 1}
    other = {
        dtype: ahead.count_other_convolutions(counts, *dtype) for dtype in [("bfloat16", "cuda"), ("bfloat16", "tpu")]
    }
    assert list(other.values()) == [1, 0]
    assert ahead.count_other_convolutions(counts, "float32", "tpu") == 3


def test_activations_that_are_moved_are_told_from_weights_and_from_bitcasts(counts):
    assert counts.transposes == Total(1, IMAGES)
    assert counts.copies == Total(1, IMAGES)


def test_collectives_are_counted_with_the_bytes_of_their_results(counts):
    assert counts.collectives == {"all-reduce": Total(2, 4 + 400 + 100), "all-gather": Total(1, 32)}


def test_kernels_are_those_of_one_step_and_loops_count_as_often_as_they_run(counts):
    # The other kernels are a transpose, two copies, three collectives, and a copy in a loop of three passes.
    assert counts.kernels == {"other": 9, "custom call": 5, "fusion": 3}


def test_bytes_are_those_that_kernels_read_and_write():
    def count(lines):
        entry = "ENTRY %main (p: s32[]) -> s32[] {\n  %p = s32[] parameter(0)\n"
        return count_step(f"{CHUNK[: CHUNK.index('%body')]}{entry}{lines}\n}}\n", 1, 6, []).bytes

    images = "  %y = bf16[6,4,4,32]{3,2,1,0} parameter(1)\n"
    assert count(f"{images}  %c = bf16[6,4,4,32]{{3,2,1,0}} copy(%y)") == 2 * IMAGES
    # Of the images of the data set, only those of the batch are read.
    data = "  %d = u8[1000,8,8]{2,1,0} parameter(1)\n  %i = s32[6,1]{1,0} parameter(2)\n"
    rows = "  %r = u8[6,8,8]{2,1,0} fusion(%d, %i), kind=kLoop, calls=%fused_gather"
    assert count(data + rows) == 2 * 6 * 64 + 24
    # A metric is written into the array of all steps, which is neither read nor copied.
    array = "  %f = f32[4]{0} parameter(1)\n  %n = f32[] parameter(2)\n"
    assert count(f"{array}  %u = f32[4]{{0}} fusion(%f, %n, %p), kind=kLoop, calls=%fused_update") == 4 + 4 + 4
    # A TPU reads an array in main memory once, and what it has copied to on-chip memory costs no further bytes.
    start = "  %s = (f32[64]{0:S(1)}, f32[64]{0}, u32[]{:S(2)}) copy-start(%f)\n  %e = f32[64]{0:S(1)} copy-done(%s)\n"
    onchip = "  %f = f32[64]{0} parameter(1)\n" + start + "  %g = f32[64]{0} negate(%e)"
    assert count(onchip) == 256 + 256
    part = "  %s = ((f32[64]{0}), f32[16]{0:S(1)}, u32[]{:S(2)}) slice-start(%f), slice={[0:16]}"
    assert count("  %f = f32[64]{0} parameter(1)\n" + part) == 64


@pytest.mark.parametrize("parallel", ["jit", "shard_map"])
def test_a_step_of_this_machine_reduces_its_gradients_whatever_the_length_of_the_chunk(parallel):
    fields = {"model": "mlp", "mlp_widths": [64], "image_px": 16, "batch_size": 32, "parallel": parallel}
    fields |= dict.fromkeys(("rotate_degrees", "shift", "zoom", "brightness", "contrast", "gamma"), 0.0)
    mesh = Mesh(np.array(jax.devices()[:4]), (AXIS,))
    counted = {}
    for steps in (1, 3):
        config = config_from_dict(fields | {"chunk_steps": steps})
        with algorithms("xla"):
            chunk, arguments = ahead.make_chunk(config, mesh, 96)
            text = chunk.lower(*arguments).compile().as_text()
        counted[steps] = count_step(text, steps, 8, [leaf.shape for leaf in jax.tree.leaves(arguments[0])])
    reduced, parameters = counted[3].collectives["all-reduce"], 16 * 16 * 64 + 64 + 64 + 1
    assert 4 * parameters <= reduced.bytes <= 4 * parameters + 100
    assert counted[1].collectives["all-reduce"].count == reduced.count
    for name in ("fusion", "other"):
        assert counted[3].kernels[name] == pytest.approx(counted[1].kernels[name], rel=0.3)
