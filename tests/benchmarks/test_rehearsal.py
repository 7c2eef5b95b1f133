"""The rehearsal of a recipe, on its small variant."""

import json

import pytest
from PIL import Image

from benchmarks.rehearsal import make_jpegs, rehearse
from l2l_jax.errors import UserError


def test_jpegs_are_photographs_of_many_sizes(tmp_path):
    make_jpegs(tmp_path / "jpegs", {"train": 3, "test": 2})
    files = sorted((tmp_path / "jpegs").glob("*/*/*.jpg"))
    assert len(files) == 3 * (3 + 2)
    sizes = {Image.open(file).size for file in files}
    assert len(sizes) > 10 and all(320 <= side <= 500 for size in sizes for side in size)
    with pytest.raises(UserError, match="jpegs exists"):
        rehearse("configs/mae.py", tmp_path / "jpegs", 1, 1, 1)


@pytest.mark.soak
def test_a_recipe_is_rehearsed_from_weights_to_report(tmp_path):
    """Every run of the tests has its parts: an import of weights (weights/) and a run of the program."""
    report = rehearse("configs/mae.py:runlocal", tmp_path / "made", steps=3, images=8, batch_size=8)
    assert len(report["phases"]) == 3 and all(phase["seconds"] > 0 for phase in report["phases"])
    assert all(0.1 < phase["gigabytes"] < 10 for phase in report["phases"])
    metrics = json.loads((tmp_path / "made/run/report/metrics.json").read_text())
    assert metrics["original_weights"]["sha256"] and metrics["config"]["unlearn"]["steps"] == 3
    assert {of: found["count"] for of, found in metrics["test_images"].items()} == {
        "retain": 8, "forget": 8, "general": 8,
    }  # fmt: skip
