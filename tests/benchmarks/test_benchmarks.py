"""Correctness of the benchmarks' results; speed is not tested."""

import importlib.util
import io
import json
import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from benchmarks import __main__ as program
from benchmarks import data, features, peer, random_networks
from benchmarks.budget import cost
from benchmarks.layouts import parse_layouts
from benchmarks.photographs import photographs
from benchmarks.rehearsal import make_jpegs, rehearse
from benchmarks.retraining import costs, parse_lengths
from benchmarks.turns import in_turns, table
from l2l_jax.config import parse_config
from l2l_jax.config_files import override, read_config
from l2l_jax.errors import UserError
from l2l_jax.experiment.phase import open_phase
from tests.compiling import flags_of_one_device
from tests.reference_arrays import Case

SMALL = {
    "digits_mae": dict(width=32, depth=1, num_heads=2, pixel_mean=(0.4,) * 3, pixel_std=(0.3,) * 3)
    | dict(decoder_width=32, decoder_depth=1, decoder_num_heads=2),
    "digits_diffusion": dict(image_size=16, inner_channel=16, channel_mults=(1, 2), attn_res=(2,))
    | dict(num_head_channels=16, teacher_noise="hole", training_holes="hybrid"),
}


def raw_config(name="digits_mae", **fields):
    model = {f"model.{field}": value for field, value in SMALL.get(name, {}).items()}
    return override(read_config(f"{name}:encoder"), {**model, "unlearn.batch_size": 8, **fields})


def test_layouts():
    config = parse_config(raw_config())
    with pytest.raises(UserError, match="--stage=pretrain: the phases .* are unlearn, pretrain.model"):
        open_phase(config, "pretrain")
    stage = open_phase(config, "pretrain.model")
    with pytest.raises(UserError, match="'8by1' is neither pmap nor a mesh such as 8x1"):
        parse_layouts(["8by1"], stage)
    with pytest.raises(UserError, match="data=4 times fsdp=1 devices, but there are 8"):
        parse_layouts(["4x1"], stage)
    assert list(parse_layouts([], stage)) == ["8x1", "4x2", "1x8", "pmap"]


@pytest.mark.soak  # the other tests here run each of its benchmarks in every run
def test_gpu_session_runs_with_tiny_models_on_cpu(tmp_path):
    """One JSON file has all measurements; those that need a missing package are null."""
    script = pathlib.Path(__file__).parents[2] / "benchmarks" / "gpu_session.sh"
    given = {"OUT": str(tmp_path), "PYTHON": sys.executable, "SMALL": "1", "ROUNDS": "2", "SLOWER": "10"}
    environment = os.environ | given | {"XLA_FLAGS": flags_of_one_device()}
    subprocess.run(["bash", str(script)], env=environment, check=True)
    report = json.loads((tmp_path / "gpu_session.json").read_text())
    has_peer = importlib.util.find_spec("torch") and importlib.util.find_spec("transformers")
    for name in ("step_mae", "step_vqgan", "step_diffusion"):
        assert report[name]["layouts"]["1x1"]["step ms"] > 0, (tmp_path / "gpu_session.log").read_text()
    for name in ("peer_mae", "peer_diffusion"):
        assert (report[name] is not None) == bool(has_peer)


def test_interleaving_and_ratios_of_medians():
    calls = []

    def timed(name):
        return lambda: (calls.append(name), float(len(calls)))[1]

    assert in_turns({"a": timed("a"), "b": timed("b")}, rounds=2) == {"a": [3.0, 5.0], "b": [4.0, 6.0]}
    assert calls == ["a", "b"] * 3
    lines = table({"ours": [3.0, 1.0, 2.0], "peer": [4.0, 4.0, 100.0]}, "peer").splitlines()[-2:]
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines]
    assert cells[0] == ["ours", "2.000", "1.500", "2.500", "0.500"]
    assert cells[1] == ["peer", "4.000", "4.000", "52.000", "1.000"]


def test_data_loading_metrics():
    files = photographs()
    assert len(set(files)) == 4 and all(100_000 < len(file) < 140_000 for file in files)
    assert Image.open(io.BytesIO(files[0])).size == (500, 375)
    report = data.measure(files[:1], size=64, workers=[0, 1], batch_size=4, batches=2, repeats=1)
    assert {"pillow", "simplejpeg"} <= set(report["decode"]) and min(report["decode"].values()) > 0
    share = report["decode_and_crop"] / report["decode"]["simplejpeg"]
    assert report["share_of_bare_decoding"] == pytest.approx(share)
    threads, processes = report["pipeline"]
    assert (threads["workers"], processes["workers"]) == (0, 1)
    assert threads["megabytes_per_worker"] == 0 and 20 < processes["megabytes_per_worker"] < 150


def test_unknown_benchmark_is_an_error(run_here):
    code, _, errors = run_here(program.main, "dat")
    assert code == 1 and errors.startswith("Error: The name of a benchmark is required: python -m benchmarks")


def test_features_of_all_sides_must_be_equal():
    sides = {"l2l_jax": lambda: np.ones((1, 4)), "PyTorch": lambda: np.array([[1, 1, 1, 1.01]])}
    with pytest.raises(UserError, match="PyTorch computes other features: they differ by 1.0e-02"):
        features.check(sides)
    features.check({"l2l_jax": sides["l2l_jax"], "PyTorch": sides["l2l_jax"]})
    rows = {
        "l2l_jax": features.metrics([(2.0, 4.0), (1.0, 2.0), (4.0, 3.0)], 8),
        "PyTorch": features.metrics([(4.0, 8.0)], 8),
    }
    assert rows["l2l_jax"] == {"median": 4, "fastest": 8, "per_processor_second": 4}
    assert features.table(rows).splitlines()[2].split("|")[-2].strip() == "2.00"


def test_pytorch_inception_matches_the_reference():
    torch = pytest.importorskip("torch")
    from benchmarks.inception_torch import Inception
    from tests.evals.features.test_convolutional import filled

    case = Case("inception_fid")
    state_dict = {key: torch.tensor(value) for key, value in filled(case, gain=True).items()}
    x = torch.nn.functional.interpolate(torch.tensor(case["x"]), (299, 299), mode="bilinear")
    with torch.inference_mode():
        actual = Inception(state_dict).features(2 * x - 1)
    expected = case["gain/pool3"]
    np.testing.assert_allclose(actual, expected, atol=2e-5 * np.abs(expected).max())


@pytest.mark.parametrize("network, case", [("inception", "inception_fid"), ("resnet50", "resnet50_places")])
def test_random_networks_have_the_published_keys_and_shapes(network, case):
    description = Case(case).description
    published = description.get("state_dict") or description["keys"]
    published = {key.removeprefix("module."): tuple(shape) for key, shape, _ in published}
    expected = {key: x for key, x in published.items() if not key.endswith("num_batches_tracked")}
    weights = random_networks.CONVOLUTIONS[network]()[0]
    assert {key: value.shape for key, value in weights.items()} == expected


@pytest.mark.parametrize(("name", "version"), [("digits_mae", "transformers"), ("digits_diffusion", "U-Net")])
def test_jax_and_pytorch_steps_agree(name, version):
    pytest.importorskip("torch")
    pytest.importorskip("transformers")
    report = peer.measure(raw_config(name), threads=1, rounds=2)
    assert report["losses"]["ours"] == pytest.approx(report["losses"]["peer"], rel=1e-5)
    assert report["losses"]["ours"] > 0.01
    assert report["images"] == 16 and all(len(seconds) == 2 for seconds in report["seconds"].values())
    assert version in report["versions"]["peer"] and "l2l_jax" in report["versions"]["ours"]


@pytest.mark.parametrize(
    ("name", "fields", "sentence"),
    [
        ("digits_mae", {"unlearn.method": "max_loss"}, "config.unlearn.method is 'max_loss'"),
        ("digits_mae", {"unlearn.accumulate": 2}, "config.unlearn.accumulate is 2"),
        (
            "digits_diffusion",
            {"model.teacher_noise": "everywhere"},
            "config.model.teacher_noise is 'everywhere'; the PyTorch side supports only 'hole'",
        ),
        ("digits_vqgan", {}, "config.model.family is 'mage'; .* supports only mae and palette"),
    ],
)
def test_unsupported_configs_of_the_peer_are_rejected(name, fields, sentence):
    with pytest.raises(UserError, match=sentence):
        peer.check(parse_config(raw_config(name, **fields)))


def test_rehearsal_jpegs_have_many_sizes(tmp_path):
    make_jpegs(tmp_path / "jpegs", {"train": 3, "test": 2})
    files = sorted((tmp_path / "jpegs").glob("*/*/*.jpg"))
    sizes = {Image.open(file).size for file in files}
    assert len(files) == 3 * (3 + 2) and len(sizes) > 10
    assert all(320 <= side <= 500 for size in sizes for side in size)
    with pytest.raises(UserError, match="jpegs exists"):
        rehearse("configs/mae.py", tmp_path / "jpegs", 1, 1, 1)


@pytest.mark.soak
def test_rehearsal_from_weights_to_report(tmp_path):
    """Its parts are covered in every run: import of weights (weights/) and a run of the program."""
    report = rehearse("configs/mae.py:runlocal", tmp_path / "made", steps=3, images=8, batch_size=8)
    assert len(report["phases"]) == 3 and all(phase["seconds"] > 0 for phase in report["phases"])
    assert all(0.1 < phase["gigabytes"] < 10 for phase in report["phases"])
    metrics = json.loads((tmp_path / "made/run/report/metrics.json").read_text())
    assert metrics["original_weights"]["sha256"] and metrics["config"]["unlearn"]["steps"] == 3
    counts = {split: images["count"] for split, images in metrics["test_images"].items()}
    assert counts == {"retain": 8, "forget": 8, "general": 8}


@pytest.mark.slow
def test_budget_cost(one_device):
    """The number of images is that requested per set; there is one measurement per `budget_every` steps."""
    config = parse_config(raw_config(**{"unlearn.budget_images": 5, "unlearn.budget_every": 7}))
    metrics = cost(config, measurements=1)
    assert metrics["images"] == 10 and metrics["step_ms"] > 0
    assert metrics["longer"] == pytest.approx(metrics["measurement_ms"] / metrics["step_ms"] / 7)


def test_lengths_of_retraining():
    assert parse_lengths(["0.1", "2"]) == [0.1, 2.0]
    for wrong in (["a"], ["0.1", "-1"], ["nan"], []):
        with pytest.raises(UserError, match="positive numbers"):
            parse_lengths(wrong)


@pytest.mark.slow
def test_cost_of_retraining_ends_with_the_first_model_as_good_as_the_unlearned_one(tmp_path, one_device):
    """At a learning rate of almost 0, the unlearned model is the original: its relative error is 1."""
    fields = {"model.pretrained": "", "pretrain.model.steps": 4, "pretrain.model.warmup_steps": 0}
    fields |= {"unlearn.steps": 1, "unlearn.warmup_steps": 0, "unlearn.learning_rate": 1e-30}
    config = parse_config(raw_config(**fields))
    unlearned, short, good = costs(config, [0.25, 20, 30], tmp_path)
    assert unlearned["retain error"] == pytest.approx(1, abs=1e-6)
    assert [row["model"] for row in (short, good)] == ["retrained, length 0.25", "retrained, length 20"]
    assert good["retain error"] <= 1 < short["retain error"]
    assert all(row["CPU s"] > 0 and row["s"] > 0 for row in (unlearned, short, good))
