"""Kernels of a program as XLA's GPU compiler writes it, against sums by hand."""

import pathlib

import pytest

from l2l_jax.plan.chips import CHIPS
from l2l_jax.plan.costs import kernel_table
from l2l_jax.plan.program import Program

HLO = pathlib.Path(__file__).with_name("kernels.hlo").read_text()
H100 = CHIPS["h100"]


def test_kinds_bytes_and_operations():
    """Workspaces do not count; what products leave of all operations is shared by bytes."""
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
