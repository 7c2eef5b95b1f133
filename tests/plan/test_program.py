"""Memory traffic of programs, compared with sums by hand."""

import pathlib

import jax
import jax.numpy as jnp
import pytest

from l2l_jax.plan.program import Program

HLO = pathlib.Path(__file__).with_name("loop.hlo").read_text()


def test_on_chip_arrays_are_free_and_loops_count_per_iteration():
    row, array = 4 * 1024, 4 * 6 * 1024
    # Six iterations: a row is sliced out of the array by index and written; it is read, written into the
    # array in place, and summed.
    loop = 6 * (4 + row + row + row + row + 4)
    # Half of bf16[512] is moved once; two rows are gathered; broadcast and sum read and write.
    assert Program(HLO).traffic == loop + 2 * 512 + 2 * row + (array + 2 * array) + 3 * array


NESTED = pathlib.Path(__file__).with_name("nested.hlo").read_text()


def test_nested_fusion_reads_slices_and_writes_updates():
    """As in a loop over blocks, one of the stacked kernels is read, one of the stacked results is written."""
    block = 2 * 64 * 32
    assert Program(NESTED).traffic == 2 * 64 * 64 + block + block


def test_largest_arrays():
    largest = Program(HLO).largest(2)
    # The sum is excluded because it is the result; the array updated in place is as large as the result.
    assert [moved.instruction.name for moved in largest] == ["big", "both"]
    assert largest[0].size == 4 * 12 * 1024


def test_program_of_the_installed_compiler():
    """Ten thousand floats are read and written."""
    compiled = jax.jit(lambda x: jnp.sin(x) * 2 + 1).lower(jnp.ones(10_000)).compile()
    assert Program(compiled.as_text()).traffic == 2 * 4 * 10_000


def test_loop_length_is_read_from_its_condition():
    """Output of the TPU compiler, without an annotation."""
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
    with pytest.raises(ValueError, match="a loop of unknown length: while"):
        _ = Program(HLO.replace("known_trip_count", "unknown")).traffic
