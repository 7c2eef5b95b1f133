"""The PyTorch side computes what ours does; asked for something else, it says so."""

import pathlib
import runpy

import pytest

from benchmarks import peer
from l2l_jax.config import parse_config
from l2l_jax.errors import UserError

CONFIGS = pathlib.Path(__file__).parents[2] / "configs"

SMALL = {
    "digits_mae": dict(width=32, depth=2, num_heads=2, pixel_mean=(0.4,) * 3, pixel_std=(0.3,) * 3),
    "digits_diffusion": dict(
        image_size=16, inner_channel=16, channel_mults=(1, 2), attn_res=(2,), num_head_channels=16,
        teacher_noise="hole", training_holes="hybrid",
    ),
}  # fmt: skip


def recipe(name="digits_mae"):
    variant = ["encoder"] if name in SMALL else []
    found = runpy.run_path(str(CONFIGS / f"{name}.py"))["get_config"](*variant)
    found.model.update(SMALL.get(name, {}))
    found.unlearn.batch_size = 8
    return found


@pytest.mark.parametrize(("name", "version"), [("digits_mae", "transformers"), ("digits_diffusion", "U-Net")])
def test_both_sides(name, version):
    pytest.importorskip("torch")
    pytest.importorskip("transformers")
    report = peer.measure(recipe(name), threads=1, rounds=2)
    assert report["losses"]["ours"] == pytest.approx(report["losses"]["peer"], rel=1e-5)
    assert report["losses"]["ours"] > 0.01
    assert report["images"] == 16 and all(len(seconds) == 2 for seconds in report["seconds"].values())
    assert min(map(min, report["seconds"].values())) > 0
    assert version in report["versions"]["peer"] and "l2l_jax" in report["versions"]["ours"]


@pytest.mark.parametrize(
    ("name", "part", "field", "value", "sentence"),
    [
        ("digits_mae", "unlearn", "method", "max_loss", "config.unlearn.method is 'max_loss'"),
        ("digits_mae", "unlearn", "accumulate", 2, "config.unlearn.accumulate is 2"),
        (
            "digits_diffusion", "model", "teacher_noise", "everywhere",
            "config.model.teacher_noise is 'everywhere'; the PyTorch side knows 'hole' only",
        ),
    ],
)  # fmt: skip
def test_what_the_peer_cannot_do(name, part, field, value, sentence):
    changed = recipe(name)
    changed[part][field] = value
    with pytest.raises(UserError, match=sentence):
        peer.check(parse_config(changed))


def test_other_families_have_no_peer():
    with pytest.raises(UserError, match="config.model.family is 'mage'; .* knows mae and palette only"):
        peer.check(parse_config(recipe("digits_vqgan")))
