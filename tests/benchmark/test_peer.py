"""The PyTorch side computes what ours does; asked for something else, it says so."""

import pathlib
import runpy

import pytest

from l2l_jax.benchmark import peer
from l2l_jax.config import parse_config
from l2l_jax.errors import UserError

CONFIGS = pathlib.Path(__file__).parents[2] / "configs"


def recipe(name="digits_mae"):
    variant = ["encoder"] if name == "digits_mae" else []
    found = runpy.run_path(str(CONFIGS / f"{name}.py"))["get_config"](*variant)
    if name == "digits_mae":
        found.model.update(width=32, depth=2, num_heads=2, pixel_mean=(0.4,) * 3, pixel_std=(0.3,) * 3)
        found.unlearn.batch_size = 8
    return found


def test_both_sides():
    pytest.importorskip("torch")
    pytest.importorskip("transformers")
    report = peer.measure(recipe(), threads=1, rounds=2)
    assert report["losses"]["ours"] == pytest.approx(report["losses"]["peer"], rel=1e-5)
    assert report["images"] == 16 and all(len(seconds) == 2 for seconds in report["seconds"].values())
    assert min(map(min, report["seconds"].values())) > 0
    assert "transformers" in report["versions"]["peer"] and "l2l_jax" in report["versions"]["ours"]


@pytest.mark.parametrize(
    ("field", "value", "sentence"),
    [
        ("dtype", "bfloat16", "config.model.dtype is 'bfloat16'; the PyTorch side knows 'float32' only"),
        ("method", "max_loss", "config.unlearn.method is 'max_loss'"),
        ("accumulate", 2, "config.unlearn.accumulate is 2"),
    ],
)
def test_what_the_peer_cannot_do(field, value, sentence):
    changed = recipe()
    (changed.model if field == "dtype" else changed.unlearn)[field] = value
    with pytest.raises(UserError, match=sentence):
        peer.check(parse_config(changed))


def test_other_families_have_no_peer():
    with pytest.raises(UserError, match="config.model.family is 'mage'"):
        peer.check(parse_config(recipe("digits_vqgan")))
