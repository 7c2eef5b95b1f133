"""Planning of a config: topologies, costs of a small model compared with sums by hand, errors."""

import dataclasses
import json
import math
import pathlib
import runpy
import subprocess
import sys

import jax
import numpy as np
import pytest

from l2l_jax.config import parse_config
from l2l_jax.errors import UserError
from l2l_jax.experiment.phase import open_phase
from l2l_jax.plan import programs
from l2l_jax.plan.chips import described, parse_topology
from l2l_jax.plan.costs import heading, program_costs, program_text

CONFIG = pathlib.Path(__file__).parents[2] / "configs" / "digits_mae.py"
EIGHT = parse_topology("h100:8")
SMALL = {
    f"{part}{name}": size
    for part in ("", "decoder_")
    for name, size in (("width", 32), ("depth", 1), ("num_heads", 2))
}


@pytest.fixture(scope="module")
def config():
    raw_config = runpy.run_path(str(CONFIG))["get_config"]("encoder")
    raw_config.model.update(SMALL)
    raw_config.unlearn.batch_size = 16
    raw_config.evaluate.batch_size = 8
    return parse_config(raw_config)


@pytest.fixture(scope="module")
def rows(config):
    """Costs for eight GPUs, represented by the tests' eight CPU devices."""
    stage = open_phase(config, "unlearn")
    planned = programs.programs(config, stage, ["1x8", "pmap"], jax.devices(), ("step", "restoration"))
    return {row["program"]: row for row in (program_costs(one, EIGHT) for one in planned)}


def test_memory_per_device(config, rows):
    encoder = jax.tree.leaves(config.model.shapes()["encoder"])
    parameters = 4 * sum(math.prod(x.shape) for x in encoder)
    images = 2 * (16 // 8) * 4 * math.prod(config.model.image_shape)
    memory = rows["step, pmap"]["memory"]
    assert memory["parameters"] == memory["frozen"] == parameters and memory["batch"] == images
    assert memory["optimizer"] == 2 * parameters + 3 * 4  # two moments; three counts of steps
    split = rows["step, 1x8"]["memory"]
    # Two kernels of 32 × 128 are split over eight devices; smaller arrays are not.
    assert split["parameters"] == parameters - 2 * 7 * 4 * 32 * 128 // 8
    assert rows["step, pmap"]["fits"]


def test_work_and_time(config, rows):
    row, encoder = rows["step, pmap"], jax.tree.leaves(config.model.shapes()["encoder"])
    kernels = sum(math.prod(x.shape) for x in encoder if len(x.shape) > 1)
    tokens = 1 + config.model.grid**2 * (1 - config.model.mask_ratio)
    # A device has 2 + 2 images. Kernels are used once forward and twice backward by the student, once by the
    # teacher. Attention is additional; the first kernel has no gradient with respect to its input.
    products = 2 * 4 * kernels * 4 * tokens
    assert 0.85 < row["flops"] / products < 1.3
    assert row["seconds"]["compute"] == pytest.approx(row["flops"] / 989e12)
    assert row["seconds"]["network"] == pytest.approx(row["sent"] / 450e9)
    assert row["seconds"]["memory"] == pytest.approx(row["traffic"] / 3350e9)
    # Sequential kernels take at least as long as all bytes, or all operations, at full rate.
    assert row["roofline_seconds"] >= max(row["seconds"].values())
    assert sum(kernel["bytes"] for kernel in row["kernels"]) <= row["traffic"]
    # The state is read and written at least once.
    state = row["memory"]["parameters"] + row["memory"]["optimizer"]
    assert row["least_traffic"] > 2 * state


def test_every_gradient_is_reduced_once(rows):
    row = rows["step, pmap"]
    gradients = 2 * 7 / 8 * row["memory"]["parameters"]
    assert gradients <= row["sent"] < gradients + 200
    assert row["collectives"].keys() == {"all-reduce"}
    gathered = rows["step, 1x8"]["collectives"]["all-gather"]["bytes_sent"]
    assert gathered == 7 / 8 * 4 * 32 * 128 * 4  # student and teacher


def test_inpainting_program(config, rows):
    row = rows["restore 8 images (centre_8), one host"]
    everything = jax.tree.leaves(config.model.shapes())
    assert row["memory"]["parameters"] == 4 * sum(math.prod(x.shape) for x in everything)
    assert row["memory"]["batch"] == 4 * math.prod(config.model.image_shape) + 8  # and its set and index
    assert row["sent"] == 0 and row["flops"] > 0


def test_feature_networks_and_uint8_pixels(config):
    """Inception-v3: 11.4 GFLOP per image of 299 pixels; pixels from files are counted as bytes."""
    cfg = dataclasses.replace(config.evaluate, networks=("inception",), network_batch_size=16)
    files = dataclasses.replace(config.data, source="folder", path="photographs")
    config = dataclasses.replace(config, evaluate=cfg, data=files)
    phase = open_phase(config, "unlearn")
    assert {x.dtype for x in phase.batch().values()} == {np.dtype(np.uint8)}
    (planned,) = programs.programs(config, phase, [], jax.devices(), ["evaluation"])
    assert planned.devices == 8
    assert planned.work.flops / 2 == pytest.approx(11.4e9, rel=0.02)


def test_printed_tables(rows):
    row = json.loads(json.dumps(rows["step, pmap"]))
    text = program_text(row, EIGHT)
    assert "## step, pmap" in text and "fits 80 GB" in text and "| fusions" in text
    assert "| all-reduce" in text and "8 × NVIDIA H100 SXM" in heading(EIGHT, "unlearn", "digits_mae", 16, 8)
    assert "DOES NOT FIT" in program_text({**row, "fits": False}, EIGHT)


def test_invalid_topologies():
    for name, message in (
        ("v9:2x2", "'v9' is not one of v4, v5e, v5p, v6e, a100"),
        ("v4:4x4", "TPU v4 has three sides, as 2x2x4"),
        ("v5e:4xfour", "TPU v5e has two sides, as 4x4"),
        ("h100:0", "a number of devices, as 8"),
    ):
        with pytest.raises(UserError, match=message):
            parse_topology(name)


@pytest.mark.parametrize(("name", "package"), [("v5e:2x2", r"jax\[tpu\]"), ("h100:1", r"jax\[cuda12\]")])
def test_missing_compiler_is_a_user_error(name, package, monkeypatch):
    from jax.experimental import topologies

    def missing(**_):
        raise RuntimeError("JAX support not installed; cannot generate topology.")

    monkeypatch.setattr(topologies, "get_topology_desc", missing)
    with pytest.raises(UserError, match=f"pip install '{package}'"):
        described(parse_topology(name))


@pytest.mark.slow
def test_plan_for_a_gpu(tmp_path):
    """With the CUDA plugin, the command compiles the same model for one H100; its products use cuBLAS."""
    pytest.importorskip("jax_plugins.xla_cuda12")
    output = tmp_path / "figures.json"
    command = ["l2l_jax.plan", f"--config={CONFIG}", "--topology=h100:1", "--programs=step"]
    small = [f"--config.model.{part}={size}" for part, size in SMALL.items()]
    done = subprocess.run(
        [sys.executable, "-m", *command, *small, "--config.unlearn.batch_size=16", f"--output={output}"],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    (row,) = json.loads(output.read_text())["programs"]
    kernels = {kernel["kind"]: kernel for kernel in row["kernels"]}
    assert row["fits"] and row["sent"] == 0 and row["memory"]["temporaries"] > 0
    assert 0.5 < kernels["products"]["flops"] / row["flops"] <= 1.01


@pytest.mark.slow
def test_plan_for_a_tpu_slice(config, monkeypatch):
    """With libtpu, the same model for a slice of four; memory, batch and gradients by hand."""
    pytest.importorskip("libtpu")
    monkeypatch.setenv("TPU_SKIP_MDS_QUERY", "1")
    monkeypatch.setenv("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
    with pytest.raises(UserError, match="there is no such v5e slice"):
        described(parse_topology("v5e:3x3"))
    topology = parse_topology("v5e:2x2")
    devices = described(topology)
    assert len(devices) == 4
    (planned,) = programs.programs(config, open_phase(config, "unlearn"), ["4x1"], devices, ("step",))
    row = program_costs(planned, topology)
    assert row["memory"]["batch"] == 2 * 4 * 4 * math.prod(config.model.image_shape)
    gradients = 2 * 3 / 4 * row["memory"]["parameters"]
    keys = 2 * 3 / 4 * 4 * 4 * 16  # four values of random keys for each of 16 images
    assert gradients + keys <= row["sent"] < gradients + keys + 200
    assert row["fits"] and row["largest_temporaries"]
    assert row["traffic"] > row["memory"]["parameters"]
    quick = program_costs(planned, topology, quick=True)
    assert quick["sent"] == row["sent"] and quick["traffic"] >= row["traffic"]
    # A slice with several hosts, whose devices are not adjacent in the mesh
    several = described(parse_topology("v5e:4x4"))
    assert len({device.process_index for device in several}) > 1
    config = dataclasses.replace(config, unlearn=dataclasses.replace(config.unlearn, batch_size=16))
    (planned,) = programs.programs(config, open_phase(config, "unlearn"), ["pmap"], several, ("step",))
    assert program_costs(planned, topology)["sent"] > gradients
