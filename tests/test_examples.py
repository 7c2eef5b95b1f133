"""The scripts of examples/ do what they say."""

import pathlib
import runpy

import pytest

EXAMPLES = pathlib.Path(__file__).parents[1] / "examples"


@pytest.mark.parametrize("framework", ["linen", "nnx", "equinox"])
def test_the_loss_in_other_frameworks(framework):
    """It must forget while retaining; at the first step the student still is the teacher."""
    main = runpy.run_path(str(EXAMPLES / f"loss_{framework}.py"))["main"]
    before, after = main(steps=1), main(steps=300)
    assert before["retain"] == 0 and before["forget"] > 0
    assert after["forget"] < 0.6 * before["forget"] and after["retain"] < 0.05 * after["forget"]
