"""PyTorch files: formats, wrappers, dtypes; malicious and damaged files. Needs PyTorch."""

import argparse
import io
import os
import pathlib
import pickle
import re
import zipfile

import pytest

from l2l_jax.errors import UserError
from l2l_jax.weights import reading, transfer
from l2l_jax.weights.__main__ import main
from l2l_jax.weights.loading import load_model
from tests.weights.checkpoints import SMALL, assert_same_bits, options

torch = pytest.importorskip("torch")
MAE = SMALL["mae"]


def tensors(state_dict=MAE.state_dict, dtype=None):
    return {k: torch.tensor(v) if dtype is None else torch.tensor(v).to(dtype) for k, v in state_dict.items()}


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: state,
        lambda state: {"model": state, "epoch": 3, "args": argparse.Namespace(lr=0.1)},
        lambda state: {"state_dict": {f"module.{k}": v for k, v in state.items()}, "loss": 0.5},
        lambda state: {"model_ema": state},
    ],
)
def test_formats_and_wrappers(tmp_path, zipped, wrap):
    path = tmp_path / ("x.pth.tar" if zipped else "x.ckpt")
    torch.save(wrap(tensors()), path, _use_new_zipfile_serialization=zipped)
    file = reading.read_checkpoint(path)
    assert file.kind == ("PyTorch, zip format" if zipped else "PyTorch, legacy format")
    assert_same_bits(file.state_dict, MAE.state_dict)


@pytest.mark.parametrize("name", SMALL)
def test_small_cases_round_trip_in_the_original_format(tmp_path, name):
    small = SMALL[name]
    torch.save(tensors(small.state_dict), tmp_path / "in.pth")
    transfer.import_checkpoint(tmp_path / "in.pth", tmp_path / "model", fields=small.given)
    transfer.export_model(tmp_path / "model", tmp_path / "out.pth")
    content = torch.load(tmp_path / "out.pth", weights_only=True)
    state_dict = content if name == "palette" else content["model"]
    assert_same_bits({key: value.numpy() for key, value in state_dict.items()}, small.state_dict)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision(tmp_path, dtype):
    half = tensors(dtype=getattr(torch, dtype))
    torch.save(half, tmp_path / "in.pth")
    transfer.import_checkpoint(tmp_path / "in.pth", tmp_path / "model", fields=MAE.given)
    transfer.export_model(tmp_path / "model", tmp_path / "out.pth", dtype)
    back = torch.load(tmp_path / "out.pth", weights_only=True)["model"]
    assert back.keys() == half.keys()
    for key, value in half.items():
        assert back[key].dtype == value.dtype and torch.equal(back[key], value), key


def test_parameters_with_gradients_and_non_contiguous_memory(tmp_path):
    state = {key: torch.nn.Parameter(value) for key, value in tensors().items()}
    state["decoder_pred.weight"] = torch.tensor(MAE.state_dict["decoder_pred.weight"].T.copy()).T
    torch.save(state, tmp_path / "x.pth")
    assert_same_bits(reading.read_checkpoint(tmp_path / "x.pth").state_dict, MAE.state_dict)


@pytest.mark.parametrize("name, norm_pix_loss", [("args", False), ("args", True), ("hyper_parameters", 1)])
def test_arguments_of_the_training_program_are_read(tmp_path, capsys, name, norm_pix_loss):
    """main_pretrain.py of facebookresearch/mae stores them as `args`; it normalizes by ImageNet's mean."""
    args = dict(model="mae_vit_base_patch16", norm_pix_loss=norm_pix_loss, mask_ratio=0.6)
    content = {"model": tensors(), "optimizer": {}, "epoch": 799, "scaler": {}}
    content[name] = argparse.Namespace(**args) if name == "args" else args
    torch.save(content, tmp_path / "checkpoint-799.pth")
    output = tmp_path / "model"
    command = ["import", str(tmp_path / "checkpoint-799.pth"), "--output", str(output)]
    assert main([*command, *options(MAE.given)]) == 0
    printed = capsys.readouterr().out
    assert "Assumed, because the file does not specify them: " in printed and "pixel_mean=(0.485," in printed
    assert "norm_pix_loss" not in printed and "CC BY-NC" not in printed
    model, _ = load_model(output)
    assert (model.norm_pix_loss, model.mask_ratio) == (norm_pix_loss, 0.6)


class Hostile:
    """An object that writes a file when unpickled without restrictions."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def compressed(content):
    """Return the same archive with compressed entries, like a zip bomb."""
    packed = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as old, zipfile.ZipFile(packed, "w") as new:
        for name in old.namelist():
            new.writestr(name, old.read(name), zipfile.ZIP_DEFLATED)
    return packed.getvalue()


def saved(content, **options):
    file = io.BytesIO()
    torch.save(content, file, **options)
    return file.getvalue()


def forged(tmp_path):
    legacy = dict(_use_new_zipfile_serialization=False)
    good, old = saved(tensors()), saved(tensors(), **legacy)
    cyclic = {"model": {}}
    cyclic["model"]["model"] = cyclic
    return {
        "executes": saved(tensors() | {"x": Hostile(tmp_path / "executed")}),
        "executes, legacy": saved(tensors() | {"x": Hostile(tmp_path / "executed")}, **legacy),
        "bare pickle": pickle.dumps(Hostile(tmp_path / "executed")),
        "empty": b"",
        "text": b"<html>404 Not Found</html>",
        "truncated": good[: len(good) // 2],
        "truncated at the end": good[:-100],
        "only a magic number": good[:4],
        "legacy, truncated": old[: len(old) // 2],
        "legacy, truncated early": old[:50],
        "compressed": compressed(good),
        "no dictionary": saved(torch.zeros(3)),
        "cyclic": saved(cyclic),
        "a list": saved([torch.zeros(3)]),
        "larger than the file": saved({"pos_embed": torch.zeros(1).expand(10**6, 10**6)}),
        "sparse": saved({"x": torch.eye(3).to_sparse()}),
        "complex": saved({"patch_embed.proj.weight": torch.zeros(1, dtype=torch.complex64)}),
        "float8": saved({"x": torch.zeros(2).to(torch.float8_e4m3fn)}),
    }


@pytest.mark.parametrize("name", forged(pathlib.Path()))
@pytest.mark.parametrize("command", ["import", "inspect"])
def test_malicious_and_damaged_files(tmp_path, capsys, name, command):
    path = tmp_path / "x.pth"
    path.write_bytes(forged(tmp_path)[name])
    output = ["--output", str(tmp_path / "model")] if command == "import" else []
    code = main([command, str(path), *output, *options(MAE.given)])
    printed = capsys.readouterr()
    assert code == 1
    assert printed.err.startswith("Error: ") and printed.err.count("\n") == 1
    assert str(path) in printed.err
    if name == "executes":
        assert re.search(r"mkdir.*can execute code.*torch\.save\(model\.state_dict", printed.err)
    assert list(tmp_path.iterdir()) == [path]


def test_old_pytorch_versions_are_rejected(monkeypatch):
    monkeypatch.setattr(torch, "__version__", "2.9.1+cpu")
    with pytest.raises(UserError, match=r"2\.9\.1.*versions before 2\.10"):
        reading.import_torch()
