"""Stored adapters, which can be merged only into their own weights."""

import re

import jax
import numpy as np
import pytest
import safetensors.numpy

from l2l_jax.errors import UserError
from l2l_jax.models.adapters import new_adapter
from l2l_jax.weights import adapters
from l2l_jax.weights.__main__ import main
from l2l_jax.weights.adapters import adapter_bytes, with_adapter
from l2l_jax.weights.loading import load_model, load_pretrained
from l2l_jax.weights.saved_models import fingerprint, save_model
from tests.train.families import MODELS, params_of
from tests.weights.checkpoints import assert_same_bits

MODEL = MODELS["mae"]
PARAMS = params_of(MODEL)
KERNEL = ("encoder", "blocks_0", "attn", "qkv", "kernel")


def at(tree, path=KERNEL):
    for key in path:
        tree = tree[key]
    return tree


RNG = np.random.default_rng(5)
EMPTY = new_adapter(PARAMS, "lora", 2, jax.random.key(0))
ADAPTER = jax.tree.map(lambda x: RNG.normal(size=x.shape).astype(np.float32), EMPTY)
CARD = dict(family="mae", model=MODEL.as_fields(), method="whole", adapter="lora", adapter_rank=2)
CARD["base"] = fingerprint(PARAMS, MODEL.generative_parts)
CARD["original_weights"] = {"origin": "pretrained from nothing"}


@pytest.fixture
def file(tmp_path):
    path = tmp_path / adapters.FILE
    path.write_bytes(adapter_bytes(ADAPTER, CARD))
    return path


@pytest.fixture
def base(tmp_path):
    card = {"family": "mae", "model": MODEL.as_fields(), "origin": "made"}
    save_model(tmp_path / "base", PARAMS, card)
    return tmp_path / "base"


def test_export_merges_the_adapter(file, base, tmp_path, capsys):
    plain, merged = tmp_path / "plain.safetensors", tmp_path / "merged.safetensors"
    assert main(["export", str(base), "--output", str(plain)]) == 0
    assert main(["export", str(base), "--adapter", str(file), "--output", str(merged)]) == 0
    assert f"with the adapter {file}" in capsys.readouterr().out
    change = at(ADAPTER)["down"].astype(float) @ at(ADAPTER)["up"]
    _, loaded = load_model(base, adapter=file)
    np.testing.assert_array_equal(at(loaded), (at(PARAMS) + change).astype(np.float32))
    before, after = safetensors.numpy.load_file(plain), safetensors.numpy.load_file(merged)
    name = "blocks.0.attn.qkv.weight"  # PyTorch's [out, in]
    np.testing.assert_array_equal(after[name], (before[name] + change.T).astype(np.float32))
    untouched = {key: x for key, x in before.items() if x.ndim < 2}
    assert_same_bits({key: after[key] for key in untouched}, untouched)


def test_adapter_is_not_a_model_and_inspect_shows_its_metadata(file, capsys):
    with pytest.raises(UserError, match="this is an adapter, not a model: merge it"):
        load_pretrained(file, "mae", MODEL)
    assert main(["inspect", str(file)]) == 0
    output = dict(re.match(r"(\w+): +(.*)", line).groups() for line in capsys.readouterr().out.splitlines())
    for name in ("family", "method", "adapter", "adapter_rank", "base"):
        assert output[name] == str(CARD[name])
    assert "export --adapter" in output["file"]


def test_other_weights_are_rejected(file):
    other = jax.tree.map(np.copy, PARAMS)
    other["decoder"]["mask_token"][0, 0, 0] += 1e-3
    with pytest.raises(UserError, match=r"belongs to other weights.*\(origin pretrained from nothing\)"):
        with_adapter(file, other, "mae", MODEL)
    with pytest.raises(UserError, match="adapter of a mae model, not of a palette model"):
        with_adapter(file, PARAMS, "palette", MODEL)


@pytest.mark.parametrize("content", [b"no weights", safetensors.numpy.save({"a": np.zeros(2)})])
def test_files_without_adapter_are_rejected(content, base, tmp_path, capsys):
    path, output = tmp_path / "x.safetensors", tmp_path / "y.safetensors"
    path.write_bytes(content)
    assert main(["export", str(base), "--adapter", str(path), "--output", str(output)]) == 1
    expected = r"Error: .*x\.safetensors is not an adapter; expected a file .*\.\n"
    assert re.fullmatch(expected, capsys.readouterr().err) and not output.exists()


@pytest.mark.parametrize("change", [{"adapter_rank": 3}, {"adapter": "norms"}, {"adapter_rank": "much"}])
def test_metadata_of_other_arrays_is_rejected(change, file):
    file.write_bytes(adapter_bytes(ADAPTER, CARD | change))
    with pytest.raises(UserError, match=r"adapter\.safetensors.*(damaged|does not describe)"):
        with_adapter(file, PARAMS, "mae", MODEL)
