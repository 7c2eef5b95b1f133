"""Adapters on disk: merged into their own weights, and into no others."""

import dataclasses
import re

import jax
import numpy as np
import pytest
import safetensors.numpy

from l2l_jax.errors import UserError
from l2l_jax.methods.adapters import new_adapter
from l2l_jax.weights import adapters
from l2l_jax.weights.__main__ import main
from l2l_jax.weights.adapters import adapter_bytes, with_adapter
from l2l_jax.weights.loading import load_pretrained
from l2l_jax.weights.saved_models import fingerprint, save_model
from tests.train.families import MODELS, params_of
from tests.weights.checkpoints import assert_same_bits

MODEL = MODELS["mae"]
PARAMS = params_of(MODEL)
RANK = 2
KERNEL = ("encoder", "blocks_0", "attn", "qkv", "kernel")


def at(tree, path=KERNEL):
    for key in path:
        tree = tree[key]
    return tree


def filled():
    rng = np.random.default_rng(5)
    adapter = new_adapter(PARAMS, "lora", RANK, jax.random.key(0))
    return jax.tree.map(lambda x: rng.normal(size=x.shape).astype(np.float32), adapter)


ADAPTER = filled()
CARD = {
    "family": "mae",
    "model": dataclasses.asdict(MODEL),
    "method": "whole",
    "adapter": "lora",
    "adapter_rank": RANK,
    "base": fingerprint(PARAMS, MODEL.generative_parts),
    "original_weights": {"origin": "pretrained from nothing"},
}


@pytest.fixture
def file(tmp_path):
    path = tmp_path / adapters.FILE
    path.write_bytes(adapter_bytes(ADAPTER, CARD))
    return path


@pytest.fixture
def base(tmp_path):
    save_model(
        tmp_path / "base", PARAMS, {"family": "mae", "model": dataclasses.asdict(MODEL), "origin": "made"}
    )
    return tmp_path / "base"


def test_added_by_hand_and_taken_away_by_keeping_the_base(file):
    kept = jax.tree.map(np.copy, PARAMS)
    after = with_adapter(file, PARAMS, "mae", MODEL)
    factors = jax.tree.map(lambda x: x.astype(float), at(ADAPTER))
    expected = at(PARAMS) + factors["down"] @ factors["up"]
    np.testing.assert_array_equal(at(after), expected.astype(np.float32))
    assert at(after).dtype == np.float32
    jax.tree.map(np.testing.assert_array_equal, PARAMS, kept)
    token = ("encoder", "cls_token")
    assert at(after, token) is at(PARAMS, token)


def test_export_merges_it(file, base, tmp_path, capsys):
    plain, merged = tmp_path / "plain.safetensors", tmp_path / "merged.safetensors"
    assert main(["export", str(base), "--output", str(plain)]) == 0
    assert main(["export", str(base), "--adapter", str(file), "--output", str(merged)]) == 0
    assert f"with the adapter {file}" in capsys.readouterr().out
    before, after = safetensors.numpy.load_file(plain), safetensors.numpy.load_file(merged)
    change = at(ADAPTER)["down"].astype(float) @ at(ADAPTER)["up"]
    name = "blocks.0.attn.qkv.weight"  # PyTorch's [out, in]
    np.testing.assert_array_equal(after[name], (before[name] + change.T).astype(np.float32))
    untouched = {key: x for key, x in before.items() if x.ndim < 2}
    assert_same_bits({key: after[key] for key in untouched}, untouched)


def test_an_adapter_alone_is_no_model(file):
    with pytest.raises(UserError, match="this is an adapter, not a model: merge it"):
        load_pretrained(file, "mae", MODEL)


def test_inspect_shows_the_card(file, capsys):
    assert main(["inspect", str(file)]) == 0
    shown = dict(re.match(r"(\w+): +(.*)", line).groups() for line in capsys.readouterr().out.splitlines())
    assert (shown["family"], shown["method"], shown["adapter"], shown["adapter_rank"]) == (
        "mae",
        "whole",
        "lora",
        "2",
    )
    assert shown["base"] == CARD["base"] and "export --adapter" in shown["file"]


def test_other_weights_are_refused(file):
    other = jax.tree.map(np.copy, PARAMS)
    other["decoder"]["mask_token"][0, 0, 0] += 1e-3
    with pytest.raises(UserError, match=r"belongs to other weights.*\(origin pretrained from nothing\)"):
        with_adapter(file, other, "mae", MODEL)
    with pytest.raises(UserError, match="adapter of a mae model, not of a palette model"):
        with_adapter(file, PARAMS, "palette", MODEL)


@pytest.mark.parametrize("content", [b"", b"no weights", safetensors.numpy.save({"a": np.zeros(2)})])
def test_what_is_no_adapter_is_refused(content, base, tmp_path, capsys):
    path = tmp_path / "x.safetensors"
    path.write_bytes(content)
    assert (
        main(["export", str(base), "--adapter", str(path), "--output", str(tmp_path / "y.safetensors")]) == 1
    )
    assert re.fullmatch(
        r"Error: .*x\.safetensors is not an adapter; expected a file .*\.\n", capsys.readouterr().err
    )
    assert not (tmp_path / "y.safetensors").exists()


@pytest.mark.parametrize("change", [{"adapter_rank": 3}, {"adapter": "norms"}, {"adapter_rank": "much"}])
def test_a_card_that_describes_other_arrays_is_refused(change, file):
    file.write_bytes(adapter_bytes(ADAPTER, CARD | change))
    with pytest.raises(UserError, match=r"adapter\.safetensors.*(damaged|does not describe)"):
        with_adapter(file, PARAMS, "mae", MODEL)
