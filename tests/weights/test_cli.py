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


def test_inspect_tells_what_fits(file, capsys):
    assert main(["inspect", str(file), *options(MAE.given)]) == 0
    facts = headings(capsys.readouterr().out)
    assert (facts["family"], facts["missing"], facts["unexpected"]) == ("mae", "none", "none")
    assert "width=48" in facts["model"] and "num_heads=4" in facts["model"]
    assert facts["import"] == "possible"


def test_inspect_tells_what_does_not_fit(tmp_path, capsys):
    wrong = dict(MAE.state_dict) | {"surplus": np.zeros(1, np.float32)}
    del wrong["norm.bias"]
    wrong["norm.weight"] = np.zeros(7, np.float32)
    path = write_safetensors(tmp_path / "x.safetensors", wrong)
    assert main(["inspect", str(path), *options(MAE.given)]) == 0
    facts = headings(capsys.readouterr().out)
    assert (facts["missing"], facts["unexpected"]) == ("norm.bias", "surplus")
    assert facts["misshapen"] == "norm.weight (7,), not (48,)"
    assert facts["import"].startswith("not possible")


def test_inspect_describes_what_it_does_not_know(tmp_path, capsys):
    path = write_safetensors(tmp_path / "x.safetensors", {"fc.weight": np.zeros((2, 3), np.float16)})
    assert main(["inspect", str(path)]) == 0
    facts = headings(capsys.readouterr().out)
    assert facts["arrays"] == "1 with 6 values: 1 float16"
    assert "fc.weight" in facts["import"] and "not possible" in facts["import"]


def test_inspect_shows_the_card_of_a_folder(file, tmp_path, capsys):
    main(["import", str(file), "--output", str(tmp_path / "model"), *options(MAE.given)])
    capsys.readouterr()
    assert main(["inspect", str(tmp_path / "model")]) == 0
    facts = headings(capsys.readouterr().out)
    assert facts["family"] == "mae" and "sha256=" in facts["source"]


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


@pytest.mark.parametrize("kept", [0, 4, 100, 0.5, 0.999])
def test_truncated_files_leave_nothing_behind(file, tmp_path, capsys, kept):
    content = file.read_bytes()
    file.write_bytes(content[: kept if isinstance(kept, int) else int(kept * len(content))])
    assert str(file) in refused(capsys, "import", file, "--output", tmp_path / "model")
    assert list(tmp_path.iterdir()) == [file]


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


def test_as_a_program(file, tmp_path):
    command = [sys.executable, "-m", "l2l_jax.weights", "import", file, "--output", tmp_path / "model"]
    result = subprocess.run(
        [*command, *options(MAE.given)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env={**os.environ, "XLA_FLAGS": ""},
    )
    assert (result.returncode, result.stderr) == (0, "")
    assert (tmp_path / "model" / "model.json").is_file()
