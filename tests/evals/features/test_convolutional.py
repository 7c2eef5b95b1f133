"""Inception-v3 and ResNet-50 compared with pytorch-fid and torchvision, block by block."""

import functools

import jax
import numpy as np
import pytest

from l2l_jax.evals.config import EvaluationConfig
from l2l_jax.evals.features import inception, resnet
from l2l_jax.evals.features.networks import OPENERS
from l2l_jax.evals.features.resizing import resizing_matrix
from tests.matrix import soak
from tests.reference_arrays import Case, nhwc

CASES = {"inception": Case("inception_fid"), "resnet50": Case("resnet50_places")}
NETWORKS = {"inception": inception.Inception(), "resnet50": resnet.ResNet50()}
GAINS = pytest.mark.parametrize("gain", [True, soak(False)])
STRIDES = {"block0": 14, "block1": 7, "block2": 3}  # strides of the stored samples of Inception


def assert_close(found, expected):
    """Assert equality up to rounding, which grows with the number of summands."""
    np.testing.assert_allclose(found, expected, rtol=2e-5, atol=2e-5 * np.abs(expected).max())


def images(name):
    x = CASES[name]["x"]
    if name == "resnet50":
        return nhwc(x)
    matrix = resizing_matrix(96, 299, "bilinear", antialias=False)
    resized = np.einsum("ui,vj,bcij->buvc", matrix, matrix, x.astype(np.float64), optimize=True)
    return (2 * resized - 1).astype(np.float32)


def filled(case, gain):
    """Return the state dict of a case; `gain` scales its convolutions by √2, as for `gain/` arrays."""
    factor = np.float32(np.sqrt(2) if gain else 1)
    state_dict = {key.removeprefix("module."): value for key, value in case.state_dict().items()}
    return {key: value * factor if value.ndim == 4 else value for key, value in state_dict.items()}


@functools.cache
def params(name, gain):
    return OPENERS[name](filled(CASES[name], gain), EvaluationConfig())[1]


APPLY = {
    name: jax.jit(lambda p, x, n=network: n.apply({"params": p}, x, mutable=["intermediates"]))
    for name, network in NETWORKS.items()
}


@functools.cache
def outputs(name, gain):
    """Return features, logits and intermediate outputs."""
    result, inside = APPLY[name](params(name, gain), images(name))
    return result, {k: v[0] for k, v in inside["intermediates"].items()}


@pytest.mark.slow
@GAINS
def test_blocks_of_inception(gain):
    case, prefix = CASES["inception"], "gain/" * gain
    for block, step in STRIDES.items():
        result = outputs("inception", gain)[1][block]
        assert_close(result.mean(axis=(1, 2)), case[f"{prefix}{block}_mean"])
        assert_close(result[:, ::step, ::step, ::8], nhwc(case[f"{prefix}{block}_sample"]))


@GAINS
def test_stages_of_resnet(gain):
    case, prefix, result = CASES["resnet50"], "gain/" * gain, outputs("resnet50", gain)[1]
    assert_close(result["maxpool"], nhwc(case[f"{prefix}maxpool"]))
    for stage in range(1, 5):
        assert_close(result[f"layer{stage}"].mean(axis=(1, 2)), case[f"{prefix}layer{stage}_mean"])


@GAINS
@pytest.mark.parametrize(
    ("name", "arrays"), [("inception", ("pool3", "logits1008")), ("resnet50", ("features", "logits"))]
)
def test_features_and_logits(name, arrays, gain):
    for result, array in zip(outputs(name, gain)[0], arrays, strict=True):
        assert_close(result, CASES[name]["gain/" * gain + array])


BLOCKS = {"Mixed_5b": inception.BlockA(32), "Mixed_6a": inception.BlockB(), "Mixed_6b": inception.BlockC(128)}
BLOCKS |= {f"Mixed_7{x}": inception.BlockE(max_pool=x == "c") for x in "bc"}
BLOCKS["Mixed_7a"] = inception.BlockD()


@pytest.mark.parametrize("name", BLOCKS)
def test_single_blocks_of_inception(name):
    block = BLOCKS[name]
    inputs = nhwc(CASES["inception"][f"unit/{name}/in"])
    result = jax.jit(lambda p, x: block.apply({"params": p}, x))(params("inception", True)[name], inputs)
    assert_close(result, nhwc(CASES["inception"][f"unit/{name}/out"]))
