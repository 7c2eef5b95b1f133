"""`python -m l2l_jax.weights`: output, errors and files."""

import re
import sys

import numpy as np
import pytest
import safetensors.numpy

from l2l_jax.weights.__main__ import main
from tests.weights.checkpoints import SMALL, assert_same_bits, options, write_safetensors

MAE = SMALL["mae"]


@pytest.fixture
def file(tmp_path):
    return write_safetensors(tmp_path / "mae.safetensors", MAE.state_dict)


def headings(text):
    return dict(re.match(r"(\w+): +(.*)", line).groups() for line in text.splitlines())


def test_import_and_export(file, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["import", str(file), *options(MAE.given)]) == 0
    output = capsys.readouterr().out
    assert "--config.model.pretrained=pretrained/mae" in output
    assert "norm_pix_loss=False" in output and re.search(r"\b[0-9a-f]{64}\b", output)
    assert main(["export", "pretrained/mae", "--output", "new/out.safetensors"]) == 0
    assert_same_bits(safetensors.numpy.load_file("new/out.safetensors"), MAE.state_dict)


SURPLUS = {key: value for key, value in MAE.state_dict.items() if key != "norm.bias"}
SURPLUS |= {"surplus": np.zeros(1, np.float32), "norm.weight": np.zeros(7, np.float32)}
FITS = {"family": "mae", "missing": "none", "unexpected": "none", "import": "possible"}
NOT = {"missing": "norm.bias", "unexpected": "surplus", "import": "not possible"}
OTHER = {"arrays": "1 with 6 values: 1 float16", "import": "not possible: .*fc.weight"}


@pytest.mark.parametrize(
    "state_dict, expected",
    [
        (MAE.state_dict, FITS | {"model": "width=48.*num_heads=4"}),
        (SURPLUS, NOT | {"misshapen": r"norm.weight \(7,\), not \(48,\)"}),
        ({"fc.weight": np.zeros((2, 3), np.float16)}, OTHER),
    ],
)
def test_inspect_reports_whether_weights_fit(state_dict, expected, tmp_path, capsys):
    path = write_safetensors(tmp_path / "x.safetensors", state_dict)
    assert main(["inspect", str(path), *options(MAE.given)]) == 0
    facts = headings(capsys.readouterr().out)
    for heading, text in expected.items():
        assert re.search(text, facts[heading])


def refused(capsys, *arguments):
    assert main([str(argument) for argument in arguments]) == 1
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("Error: ") and printed.err.count("\n") == 1
    return printed.err


def test_mismatched_weights_write_nothing(tmp_path, capsys, file):
    path = write_safetensors(tmp_path / "x.safetensors", SURPLUS)
    message = refused(capsys, "import", path, "--output", tmp_path / "model", *options(MAE.given))
    assert "surplus" in message and "norm.bias" in message
    assert set(tmp_path.iterdir()) == {path, file}
    output = file / "model"
    assert str(file) in refused(capsys, "import", file, "--output", output, *options(MAE.given))


@pytest.mark.parametrize("command", ["import x.pth", "inspect x.pth", "export x --output y.pth"])
def test_error_without_pytorch_names_the_package(tmp_path, monkeypatch, capsys, command):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "torch", None)
    (tmp_path / "x.pth").write_bytes(b"PK\x03\x04")
    refusal = refused(capsys, *command.split())
    assert "pip install torch" in refusal and ".safetensors" in refusal
    assert [path.name for path in tmp_path.iterdir()] == ["x.pth"]
