# ruff: noqa: E501 (lines as a compiler writes them)
"""Kernels of a program as XLA's GPU compiler writes it, against sums by hand."""

import pytest

from l2l_jax.plan.chips import CHIPS
from l2l_jax.plan.figures import kernel_table
from l2l_jax.plan.program import Program

HLO = """\
HloModule jit_step, is_scheduled=true

%fused_convert (param_0.19: bf16[512,1024]) -> bf16[512,1024] {
  %param_0.19 = bf16[512,1024]{1,0} parameter(0), metadata={scheduling_name="param_0.19"}
  %convert.5 = f32[512,1024]{1,0} convert(%param_0.19), metadata={scheduling_name="convert.5"}
  ROOT %convert.1.1 = bf16[512,1024]{1,0} convert(%convert.5), metadata={scheduling_name="convert.1.1"}
}

ENTRY %main.1 (w.1: bf16[256,1024], x.1: bf16[8,64,256], q.1: bf16[8,64,8,64], k.1: bf16[64,3,3,64]) -> bf16[256,1024] {
  %x.1 = bf16[8,64,256]{2,1,0} parameter(1), sharding={replicated}, metadata={op_name="x" scheduling_name="x.1"}
  %q.1 = bf16[8,64,8,64]{3,2,1,0} parameter(2)
  %k.1 = bf16[64,3,3,64]{3,2,1,0} parameter(3)
  %bitcast.17 = bf16[512,256]{1,0} bitcast(%x.1), metadata={op_name="x" scheduling_name="bitcast.17"}
  %w.1 = bf16[256,1024]{1,0} parameter(0), sharding={replicated}
  %custom-call.2 = (bf16[512,1024]{1,0}, s8[33554432]{0}) custom-call(%bitcast.17, %w.1), custom_call_target="__cublas$lt$matmul", metadata={op_name="jit(step)/jvp()/dot_general"}, backend_config={"gemm_backend_config":{"beta":0,"dot_dimension_numbers":{"lhs_contracting_dimensions":["1"],"rhs_contracting_dimensions":["0"],"lhs_batch_dimensions":[],"rhs_batch_dimensions":[]}}}
  %get-tuple-element.2 = bf16[512,1024]{1,0} get-tuple-element(%custom-call.2), index=0
  %loop_convert_fusion = bf16[512,1024]{1,0} fusion(%get-tuple-element.2), kind=kLoop, calls=%fused_convert
  %bitcast.3 = bf16[8,64,1024]{2,1,0} bitcast(%loop_convert_fusion)
  %custom-call.3 = (bf16[8,256,1024]{2,1,0}, s8[33554432]{0}) custom-call(%x.1, %bitcast.3), custom_call_target="__cublas$lt$matmul", backend_config={"gemm_backend_config":{"dot_dimension_numbers":{"lhs_contracting_dimensions":["1"],"rhs_contracting_dimensions":["1"],"lhs_batch_dimensions":["0"],"rhs_batch_dimensions":["0"]}}}
  %attention = (bf16[8,8,64,64]{3,1,2,0}, f32[8,8,64]{2,1,0}, u8[0]{0}) custom-call(%q.1, %q.1, %q.1), custom_call_target="__cudnn$fmhaSoftmax", api_version=API_VERSION_STATUS_RETURNING
  %cudnn-conv.1 = (bf16[8,64,8,64]{3,2,1,0}, u8[0]{0}) custom-call(%q.1, %k.1), window={size=3x3 pad=1_1x1_1}, dim_labels=b01f_o01i->b01f, custom_call_target="__cudnn$convForward"
  %all-reduce-start = bf16[256,1024]{1,0} all-reduce-start(%w.1), channel_id=1, replica_groups=mesh['axis_0'=8,'axis_1'=1] {'axis_0'}, to_apply=%add
  %all-reduce-done = bf16[256,1024]{1,0} all-reduce-done(%all-reduce-start)
  ROOT %copy = bf16[256,1024]{0,1} copy(%all-reduce-done)
}
"""
H100 = CHIPS["h100"]


def test_kinds_bytes_and_operations():
    """Workspaces do not count; what products leave of all operations is shared by bytes."""
    products = 2 * 512 * 256 * 1024 + 2 * 8 * 64 * 256 * 1024
    rows = {row.pop("kind"): row for row in kernel_table(Program(HLO), products + 3e9, H100)}
    x, w, y, q = 2 * 512 * 256, 2 * 256 * 1024, 2 * 512 * 1024, 2 * 8 * 64 * 8 * 64
    attention, convolution = 4 * q + 4 * 8 * 8 * 64, 2 * q + 2 * 64 * 3 * 3 * 64
    assert {kind: (row["count"], row["bytes"]) for kind, row in rows.items()} == {
        "products": (2, (x + w + y) + (x + y + 8 * w)), "fusions": (1, 2 * y), "attention": (1, attention),
        "convolutions": (1, convolution), "copies": (1, 2 * w),
    }  # fmt: skip
    assert rows["products"]["flops"] == products
    assert rows["attention"]["flops"] == pytest.approx(3e9 * attention / (attention + convolution))
    assert rows["fusions"]["flops"] == rows["copies"]["flops"] == 0


@pytest.mark.parametrize(("operation", "crossings"), [("convert", 2), ("copy", 0)])
def test_values_between_libraries_and_others_cross_memory_twice(operation, crossings):
    """The fusion reads a product's result and writes a factor; one that only rearranges could be avoided."""
    text = HLO.replace(" convert(", f" {operation}(")
    found = Program(text).handed_over(lambda instruction: instruction.target.startswith("__cu"))
    assert found == crossings * 2 * 512 * 1024


def test_a_kernel_takes_the_longer_of_its_bytes_and_its_operations():
    times = {row["kind"]: row["seconds"] for row in kernel_table(Program(HLO), 0, H100)}
    assert times["fusions"] == pytest.approx(4 * 512 * 1024 / 3350e9)
    # By 500 times faster memory both products are limited by their operations.
    fast = H100._replace(bandwidth=500 * H100.bandwidth)
    times = {row["kind"]: row["seconds"] for row in kernel_table(Program(HLO), 0, fast)}
    assert times["products"] == pytest.approx(2 * 2 * 512 * 256 * 1024 / 989e12)
