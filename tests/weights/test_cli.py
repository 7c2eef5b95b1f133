"""`python -m l2l_jax.weights`: what it prints, how it refuses, what it leaves behind."""

import os
import pathlib
import re
import subprocess
import sys

import numpy as np
import pytest
import safetensors.numpy

from l2l_jax.weights.__main__ import main
from tests.weights.checkpoints import SMALL, assert_same_bits, options, write_safetensors

ROOT = pathlib.Path(__file__).parents[2]
MAE = SMALL["mae"]


@pytest.fixture
def file(tmp_path):
    return write_safetensors(tmp_path / "mae.safetensors", MAE.state_dict)


def headings(text):
    return dict(re.match(r"(\w+): +(.*)", line).groups() for line in text.splitlines())


def test_in_and_out(file, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["import", str(file), *options(MAE.given)]) == 0
    output = capsys.readouterr().out
    assert "--config.model.pretrained=pretrained/mae" in output
    assert "norm_pix_loss=False" in output and re.search(r"\b[0-9a-f]{64}\b", output)
    assert main(["export", "pretrained/mae", "--output", "new/out.safetensors"]) == 0
    assert_same_bits(safetensors.numpy.load_file("new/out.safetensors"), MAE.state_dict)


SURPLUS = {key: value for key, value in MAE.state_dict.items() if key != "norm.bias"}
SURPLUS |= {"surplus": np.zeros(1, np.float32), "norm.weight": np.zeros(7, np.float32)}


@pytest.mark.parametrize(
    "state_dict, expected",
    [
        (
            MAE.state_dict,
            dict(family="mae", missing="none", unexpected="none", model="width=48.*num_heads=4"),
        ),
        (MAE.state_dict, {"import": "possible"}),
        (
            SURPLUS,
            dict(missing="norm.bias", unexpected="surplus", misshapen=r"norm.weight \(7,\), not \(48,\)"),
        ),
        (SURPLUS, {"import": "not possible"}),
        ({"fc.weight": np.zeros((2, 3), np.float16)}, dict(arrays="1 with 6 values: 1 float16")),
        ({"fc.weight": np.zeros((2, 3), np.float16)}, {"import": "not possible: .*fc.weight"}),
    ],
)
def test_inspect_tells_what_fits_and_what_does_not(state_dict, expected, tmp_path, capsys):
    path = write_safetensors(tmp_path / "x.safetensors", state_dict)
    assert main(["inspect", str(path), *options(MAE.given)]) == 0
    facts = headings(capsys.readouterr().out)
    for heading, text in expected.items():
        assert re.search(text, facts[heading])


def refused(capsys, *arguments):
    """The one sentence on stderr with which a command is refused."""
    assert main([str(argument) for argument in arguments]) == 1
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("Error: ") and printed.err.count("\n") == 1
    return printed.err


@pytest.mark.parametrize(
    "arguments, complaint",
    [
        ([], "required: COMMAND"),
        (["imprt"], "imprt"),
        (["import"], "FILE"),
        (["import", "x.pth", "--set", "num_heads"], "not FIELD=VALUE"),
        (["import", "missing.safetensors"], "does not exist"),
        (["inspect", "missing.safetensors"], "does not exist"),
        (["export", "missing"], "--output"),
        (["export", "missing", "--output", "x.safetensors"], "not a saved model"),
        (["export", "missing", "--output", "x.txt"], "must end in"),
        (["export", "missing", "--output", "x.safetensors", "--dtype", "int8"], "int8"),
    ],
)
def test_mistakes(capsys, tmp_path, monkeypatch, arguments, complaint):
    monkeypatch.chdir(tmp_path)
    assert complaint in refused(capsys, *arguments)
    assert list(tmp_path.iterdir()) == []


def test_weights_that_do_not_fit_leave_nothing_behind(tmp_path, capsys):
    wrong = {key: value for key, value in MAE.state_dict.items() if key != "decoder_norm.bias"}
    path = write_safetensors(tmp_path / "x.safetensors", wrong | {"surplus": np.zeros(1)})
    message = refused(capsys, "import", path, "--output", tmp_path / "model", *options(MAE.given))
    assert "surplus" in message and "decoder_norm.bias" in message
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_that_cannot_be_written(file, tmp_path, capsys):
    (tmp_path / "occupied").write_text("a file")
    output = tmp_path / "occupied" / "model"
    assert "occupied" in refused(capsys, "import", file, "--output", output, *options(MAE.given))


def test_without_pytorch_the_refusal_names_the_extra(tmp_path):
    """In a process of its own, in which PyTorch cannot be imported, installed or not."""
    commands = [["import", "x.pth"], ["inspect", "x.ckpt"], ["export", "x", "--output", "y.pth"]]
    for name in ("x.pth", "x.ckpt"):
        (tmp_path / name).write_bytes(b"PK\x03\x04")
    program = (
        "import sys; sys.modules['torch'] = None; from l2l_jax.weights.__main__ import main; "
        f"sys.exit(str([main(command) for command in {commands!r}]))"
    )
    result = subprocess.run(
        [sys.executable, "-c", program],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT), "XLA_FLAGS": ""},
    )
    *refusals, codes = result.stderr.splitlines()
    assert codes == "[1, 1, 1]" and len(refusals) == len(commands)
    for refusal in refusals:
        assert refusal.startswith("Error: ") and "pip install torch" in refusal
        assert ".safetensors" in refusal
    assert {path.name for path in tmp_path.iterdir()} == {"x.pth", "x.ckpt"}
