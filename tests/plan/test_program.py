# ruff: noqa: E501 (lines as a compiler writes them)
"""What programs move through memory, against sums by hand."""

import jax
import jax.numpy as jnp
import pytest

from l2l_jax.plan.program import Program

HLO = """\
HloModule jit_step, is_scheduled=true

%fused_computation (param_0: f32[6,1024], param_1: s32[]) -> f32[1,1024] {
  %param_0 = f32[6,1024]{1,0:T(8,128)} parameter(0)
  %param_1 = s32[]{:T(128)S(6)} parameter(1)
  ROOT %slice.1 = f32[1,1024]{1,0:T(1,128)} dynamic-slice(%param_0, %param_1), dynamic_slice_sizes={1,1024}
}

%fused_computation.1 (param_0.1: f32[6,1024], param_1.1: f32[1,1024]) -> (f32[6,1024], f32[]) {
  %param_0.1 = f32[6,1024]{1,0:T(8,128)} parameter(0)
  %param_1.1 = f32[1,1024]{1,0:T(1,128)} parameter(1)
  %zero = s32[] constant(0)
  %update.1 = f32[6,1024]{1,0:T(8,128)} dynamic-update-slice(%param_0.1, %param_1.1, %zero)
  %sum.1 = f32[]{:T(128)} reduce(%param_1.1, %zero), dimensions={0,1}, to_apply=%add
  ROOT %tuple.1 = (f32[6,1024]{1,0:T(8,128)}, f32[]{:T(128)}) tuple(%update.1, %sum.1)
}

%body (arg: (s32[], f32[6,1024], bf16[512])) -> (s32[], f32[6,1024], bf16[512]) {
  %arg = (s32[]{:T(128)}, f32[6,1024]{1,0:T(8,128)}, bf16[512]{0:T(512)S(1)}) parameter(0)
  %number = s32[]{:T(128)} get-tuple-element(%arg), index=0
  %rows = f32[6,1024]{1,0:T(8,128)} get-tuple-element(%arg), index=1
  %near = bf16[512]{0:T(512)S(1)} get-tuple-element(%arg), index=2
  %row = f32[1,1024]{1,0:T(1,128)} fusion(%rows, %number), kind=kLoop, calls=%fused_computation, metadata={op_name="jit(step)/blocks_3/slice"}
  %both = (f32[6,1024]{1,0:T(8,128)}, f32[]{:T(128)}) fusion(%rows, %row), kind=kLoop, calls=%fused_computation.1, metadata={op_name="jit(step)/blocks_4/slice"}
  %negative = bf16[512]{0:T(512)S(1)} negate(%near)
  ROOT %next = (s32[]{:T(128)}, f32[6,1024]{1,0:T(8,128)}, bf16[512]{0:T(512)S(1)}) tuple(%number, %rows, %negative)
}

ENTRY %main (p0: f32[6,1024], p1: bf16[512]) -> f32[6,1024] {
  %p0 = f32[6,1024]{1,0:T(8,128)} parameter(0)
  %p1 = bf16[512]{0:T(512)} parameter(1)
  %copy-start = (bf16[512]{0:T(512)S(1)}, bf16[512]{0:T(512)}, u32[]{:S(2)}) copy-start(%p1)
  %copy-done = bf16[512]{0:T(512)S(1)} copy-done(%copy-start)
  %slice-start = ((f32[6,1024]{1,0:T(8,128)}), f32[2,1024]{1,0:T(8,128)S(1)}, s32[]{:S(2)}) slice-start(%p0), slice={[0:2], [0:1024]}
  %slice-done = f32[2,1024]{1,0:T(8,128)S(1)} slice-done(%slice-start)
  %start = (s32[]{:T(128)}, f32[6,1024]{1,0:T(8,128)}, bf16[512]{0:T(512)S(1)}) tuple(%zero, %p0, %copy-done)
  %while = (s32[]{:T(128)}, f32[6,1024]{1,0:T(8,128)}, bf16[512]{0:T(512)S(1)}) while(%start), condition=%c, body=%body, backend_config={"known_trip_count":{"n":"6"}}
  %out = f32[6,1024]{1,0:T(8,128)} get-tuple-element(%while), index=1
  %big = f32[12,1024]{1,0:T(8,128)} broadcast(%p0), dimensions={0,1}
  ROOT %twice = f32[6,1024]{1,0:T(8,128)} add(%out, %out)
}
"""


def test_what_lies_on_the_chip_is_free_and_loops_count_each_time():
    row, whole = 4 * 1024, 4 * 6 * 1024
    # Six times: by its number a row is sliced out of the array and written; it is read again, put into the
    # array in place, and summed.
    loop = 6 * (4 + row + row + row + row + 4)
    # Half of bf16[512] crosses once; two rows are fetched; broadcast and sum read and write.
    assert Program(HLO).traffic == loop + 2 * 512 + 2 * row + (whole + 2 * whole) + 3 * whole


NESTED = """\
HloModule jit_step, is_scheduled=true

%slicing (param_0: bf16[24,64,32], param_1: s32[]) -> bf16[64,32] {
  %param_0 = bf16[24,64,32]{2,1,0:T(8,128)} parameter(0)
  %param_1 = s32[]{:T(128)S(6)} parameter(1)
  %slice.1 = bf16[1,64,32]{2,1,0:T(8,128)} dynamic-slice(%param_0, %param_1), dynamic_slice_sizes={1,64,32}
  ROOT %bitcast.1 = bf16[64,32]{1,0:T(8,128)} bitcast(%slice.1)
}

%updating (param_0: bf16[24,64,32], param_1: bf16[64,32]) -> bf16[24,64,32] {
  %param_0.1 = bf16[24,64,32]{2,1,0:T(8,128)} parameter(0)
  %param_1.1 = bf16[64,32]{1,0:T(8,128)} parameter(1)
  %bitcast.2 = bf16[1,64,32]{2,1,0:T(8,128)} bitcast(%param_1.1)
  %zero.2 = s32[] constant(0)
  ROOT %update.1 = bf16[24,64,32]{2,1,0:T(8,128)} dynamic-update-slice(%param_0.1, %bitcast.2, %zero.2)
}

%product (param_0: bf16[64,64], param_1: bf16[24,64,32], param_2: s32[]) -> (bf16[24,64,32], bf16[64,32]) {
  %param_0.2 = bf16[64,64]{1,0:T(8,128)} parameter(0)
  %param_1.2 = bf16[24,64,32]{2,1,0:T(8,128)} parameter(1)
  %param_2.2 = s32[]{:T(128)S(6)} parameter(2)
  %kernel = bf16[64,32]{1,0:T(8,128)} fusion(%param_1.2, %param_2.2), kind=kLoop, calls=%slicing
  %rows.2 = bf16[64,32]{1,0:T(8,128)} convolution(%param_0.2, %kernel), dim_labels=bf_io->bf
  %kept = bf16[24,64,32]{2,1,0:T(8,128)} fusion(%param_1.2, %rows.2), kind=kLoop, calls=%updating
  ROOT %tuple.2 = (bf16[24,64,32]{2,1,0:T(8,128)}, bf16[64,32]{1,0:T(8,128)S(1)}) tuple(%kept, %rows.2)
}

ENTRY %main (p0: bf16[64,64], p1: bf16[24,64,32], p2: s32[]) -> (bf16[24,64,32], bf16[64,32]) {
  %p0 = bf16[64,64]{1,0:T(8,128)} parameter(0)
  %p1 = bf16[24,64,32]{2,1,0:T(8,128)} parameter(1)
  %p2 = s32[]{:T(128)S(6)} parameter(2)
  %empty = bf16[24,64,32]{2,1,0:T(8,128)} custom-call(), custom_call_target="AllocateBuffer"
  ROOT %out = (bf16[24,64,32]{2,1,0:T(8,128)}, bf16[64,32]{1,0:T(8,128)S(1)}) fusion(%p0, %p1, %p2), kind=kOutput, calls=%product
}
"""


def test_a_fusion_within_a_fusion_reads_what_it_slices_and_writes_what_it_updates():
    """As in a loop over blocks: of the stacked kernels one is read, of the stacked results one is written."""
    block = 2 * 64 * 32
    assert Program(NESTED).traffic == 2 * 64 * 64 + block + block


def test_the_largest_arrays():
    largest = Program(HLO).largest(2)
    # Not the sum, which is the result; the array that is updated in place is as large as the result.
    assert [moved.instruction.name for moved in largest] == ["big", "both"]
    assert largest[0].size == 4 * 12 * 1024


def test_a_program_of_this_compiler():
    """Ten thousand floats are read, and as many written."""
    compiled = jax.jit(lambda x: jnp.sin(x) * 2 + 1).lower(jnp.ones(10_000)).compile()
    assert Program(compiled.as_text()).traffic == 2 * 4 * 10_000


def test_the_length_of_a_loop_is_read_from_its_condition():
    """As TPUs' compiler leaves it, without a note."""
    condition = """\
%c (arg.1: (s32[], f32[6,1024], bf16[512])) -> pred[] {
  %limit.1 = s32[]{:T(128)} constant(6)
  %arg.1 = (s32[]{:T(128)}, f32[6,1024]{1,0:T(8,128)}, bf16[512]{0:T(512)S(1)}) parameter(0)
  %number.1 = s32[]{:T(128)} get-tuple-element(%arg.1), index=0
  ROOT %less = pred[]{:T(512)} compare(%number.1, %limit.1), direction=LT
}

"""
    unnoted = HLO.replace("known_trip_count", "unknown")
    assert Program(unnoted.replace("ENTRY", condition + "ENTRY")).traffic == Program(HLO).traffic


def test_a_loop_of_unknown_length_is_an_error():
    with pytest.raises(ValueError, match="a loop of unknown length: while"):
        _ = Program(HLO.replace("known_trip_count", "unknown")).traffic
