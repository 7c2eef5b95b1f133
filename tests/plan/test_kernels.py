"""Kernels of a program in the format of XLA's GPU compiler, compared with sums by hand."""

import pathlib

import pytest

from l2l_jax.plan.chips import CHIPS
from l2l_jax.plan.costs import kernel_table
from l2l_jax.plan.program import Program

HLO = pathlib.Path(__file__).with_name("kernels.hlo").read_text()
H100 = CHIPS["h100"]


def test_kinds_bytes_and_operations():
    """Workspaces are ignored; operations other than products are distributed by bytes."""
    products = 2 * 512 * 256 * 1024 + 2 * 8 * 64 * 256 * 1024
    rows = {row.pop("kind"): row for row in kernel_table(Program(HLO), products + 3e9, H100)}
    x, w, y, q = 2 * 512 * 256, 2 * 256 * 1024, 2 * 512 * 1024, 2 * 8 * 64 * 8 * 64
    attention, convolution = 4 * q + 4 * 8 * 8 * 64, 2 * q + 2 * 64 * 3 * 3 * 64
    assert {kind: (row["count"], row["bytes"]) for kind, row in rows.items()} == {
        "products": (2, (x + w + y) + (x + y + 8 * w)),
        "fusions": (1, 2 * y),
        "attention": (1, attention),
        "convolutions": (1, convolution),
        "copies": (1, 2 * w),
    }
    assert rows["products"]["flops"] == products
    assert rows["attention"]["flops"] == pytest.approx(3e9 * attention / (attention + convolution))
    assert rows["fusions"]["flops"] == rows["copies"]["flops"] == 0


@pytest.mark.parametrize(("operation", "crossings"), [("convert", 2), ("copy", 0)])
def test_values_between_libraries_and_other_kernels_cross_memory_twice(operation, crossings):
    """The fusion reads a product's result and writes an operand; one that only rearranges is avoidable."""
    text = HLO.replace(" convert(", f" {operation}(")
    result = Program(text).handed_over(lambda instruction: instruction.target.startswith("__cu"))
    assert result == crossings * 2 * 512 * 1024


def test_kernel_time_is_the_maximum_of_bytes_and_operations():
    times = {row["kind"]: row["seconds"] for row in kernel_table(Program(HLO), 0, H100)}
    assert times["fusions"] == pytest.approx(4 * 512 * 1024 / 3350e9)
    # With 500 times faster memory, both products are limited by their operations.
    fast = H100._replace(bandwidth=500 * H100.bandwidth)
    times = {row["kind"]: row["seconds"] for row in kernel_table(Program(HLO), 0, fast)}
    assert times["products"] == pytest.approx(2 * 2 * 512 * 256 * 1024 / 989e12)
