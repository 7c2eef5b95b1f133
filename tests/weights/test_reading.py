"""Checkpoint files that do not need PyTorch: formats, wrappers, damage."""

import hashlib
import json
import struct
from unittest.mock import ANY

import jax.numpy as jnp
import numpy as np
import pytest

from l2l_jax.errors import UserError
from l2l_jax.models.mapping import StoredArray
from l2l_jax.weights import reading, transfer
from tests.weights.checkpoints import assert_same_bits, write_safetensors

DTYPES = (np.float32, np.float16, jnp.bfloat16, np.int64)


def stored(value=0.0):
    array = np.full(2, value, np.float32)
    return StoredArray(array.shape, array.dtype, lambda: array)


def header(entries, data=b""):
    text = json.dumps(entries).encode()
    return struct.pack("<Q", len(text)) + text + data


@pytest.mark.parametrize("dtype", DTYPES)
def test_arrays_round_trip(tmp_path, dtype):
    arrays = {"a.weight": np.arange(6).reshape(2, 3).astype(dtype), "b": np.ones((), dtype)}
    path = tmp_path / "new" / "weights.safetensors"
    transfer.write_checkpoint(path, arrays)
    checkpoint = reading.read_checkpoint(path)
    assert checkpoint.kind == "safetensors"
    assert checkpoint.sha256() == hashlib.sha256(path.read_bytes()).hexdigest()
    assert_same_bits(checkpoint.state_dict, arrays)
    assert [p.name for p in path.parent.iterdir()] == [path.name]
    assert path.stat().st_mode & 0o777 == (tmp_path / "new").stat().st_mode & 0o666


PREFIXED = ("a.weight", "module.a.weight", "_orig_mod.module.a.weight", "_checkpoint_wrapped_module.a.weight")
PREFIXED += ("a._checkpoint_wrapped_module._orig_mod.weight", "_forward_module.a._fsdp_wrapped_module.weight")
PREFIXED += ("a._fsdp_wrapped_module._fpw_module.module.weight",)


@pytest.mark.parametrize(
    "content, names",
    [
        *(({key: stored()}, [""]) for key in PREFIXED),
        ({"state_dict": {"a.weight": stored()}, "epoch": 3}, ["state_dict"]),
        ({"model": {"module.a.weight": stored()}, "optimizer": {"state": {0: stored()}}}, ["model"]),
        ({"model": {"a.weight": stored()}, "model_ema": {"a.weight": stored()}}, ["model", "model_ema"]),
        ({"model_ema": {"module": {"a.weight": stored()}}}, ["model_ema.module"]),
        ({"model.a.weight": stored(), "model_ema.a.weight": stored()}, ["", "model_ema"]),
        ({"ema": {"shadow": {"a.weight": stored()}}}, ["ema.shadow"]),
        ({"ema_model": {"a.weight": stored()}}, ["ema_model"]),
        ({"epoch": 3}, []),
        ({}, []),
    ],
)
def test_wrappers_and_prefixes(content, names):
    state_dicts, left_out = reading.find_state_dicts(content)
    assert list(state_dicts) == names and left_out == ()
    assert all(list(state_dict) == ["a.weight"] for state_dict in state_dicts.values())


def test_training_only_networks_are_ignored():
    """A prefix that not all keys have is kept."""
    state_dicts, _ = reading.find_state_dicts({"module.a": stored(), "b": stored()})
    assert list(state_dicts[""]) == ["module.a", "b"]
    content = {f"model.{name}": stored() for name in ("loss.d.weight", "a.weight", "perceptual.net.0.bias")}
    others = {"lpips.lin0": stored(), "n_averaged": stored()}
    state_dicts, left_out = reading.find_state_dicts({"state_dict": content | others})
    assert list(state_dicts["state_dict"]) == ["a.weight"]
    assert set(left_out) == {"loss.d.weight", "perceptual.net.0.bias", *others}
    assert reading.find_state_dicts({"loss.d": stored()}) == ({"": {"loss.d": ANY}}, ())


def test_moving_average_is_used_on_request(tmp_path):
    plain, average = {"model.a": np.zeros(1, np.float32)}, {"model_ema.a": np.ones(1, np.float32)}
    path = write_safetensors(tmp_path / "x.safetensors", plain | average)
    for ema, copy in ((False, ""), (True, "model_ema")):
        checkpoint = reading.read_checkpoint(path, ema=ema)
        assert checkpoint.copy == copy and np.asarray(checkpoint.state_dict["a"]) == ema
    path = write_safetensors(tmp_path / "y.safetensors", plain)
    with pytest.raises(UserError, match="no EMA copy"):
        reading.read_checkpoint(path, ema=True)
    assert reading.read_checkpoint(write_safetensors(path, average)).copy == "model_ema"


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\xff" * 8 + b"{}",  # a header of 2^64 bytes
        struct.pack("<Q", 100) + b"{}",  # a truncated header
        header({"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}, b"1234"),
        header({"a": {"dtype": "F32", "shape": [2**40, 2**40], "data_offsets": [0, 8]}}, b"12345678"),
        header({"a": {"dtype": "F32", "shape": [2], "data_offsets": [-8, 0]}}, b"12345678"),
        header({"a": {"dtype": "NO", "shape": [2], "data_offsets": [0, 8]}}, b"12345678"),
        header({"a": {"dtype": "F8_E4M3", "shape": [8], "data_offsets": [0, 8]}}, b"12345678"),
        header({}),
    ],
)
def test_damaged_and_forged_files_are_rejected(tmp_path, content):
    path = tmp_path / "x.safetensors"
    path.write_bytes(content)
    with pytest.raises(UserError, match="x.safetensors"):
        reading.read_checkpoint(path)


def test_missing_files_and_unknown_suffixes(tmp_path):
    for name in ("weights.txt", "weights"):
        (tmp_path / name).touch()
        with pytest.raises(UserError, match=".safetensors"):
            reading.read_checkpoint(tmp_path / name)
        with pytest.raises(UserError, match=".safetensors"):
            transfer.check_output(tmp_path / f"new_{name}")
    with pytest.raises(UserError, match="does not exist"):
        reading.read_checkpoint(tmp_path / "x.safetensors")
    with pytest.raises(UserError, match="is a folder, but not of a model: expected model.json"):
        reading.read_checkpoint(tmp_path)


def test_no_file_is_overwritten_or_partially_written(tmp_path):
    path = tmp_path / "x.safetensors"
    path.write_bytes(b"mine")
    with pytest.raises(UserError, match="exists"):
        transfer.write_checkpoint(path, {"a": np.zeros(1)})
    assert path.read_bytes() == b"mine"
    with pytest.raises(Exception, match="array|str"):
        transfer.write_checkpoint(tmp_path / "y.safetensors", {"a": "no array"})
    assert list(tmp_path.iterdir()) == [path]
