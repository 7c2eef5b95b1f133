"""Inception-v3 against pytorch-fid's, block by block (`inception_fid`)."""

import jax
import numpy as np
import pytest

from l2l_jax.evals.features import inception
from l2l_jax.evals.features.resizing import resizing_matrix
from tests.evals.features.networks import filled, joined_params
from tests.reference_arrays import Case, nhwc

CASE = Case("inception_fid")
STRIDES = {"block0": 14, "block1": 7, "block2": 3}  # of the samples that were kept


@pytest.fixture(scope="module")
def params():
    """Parameters by whether they have the gain."""
    return {
        gain: joined_params(
            inception.Inception(), inception.TABLE, inception.NORM_EPSILON, filled(CASE, gain), 299
        )
        for gain in (False, True)
    }


@pytest.fixture(scope="module")
def outputs(params):
    """Block outputs, features and logits by whether the parameters have the gain."""
    matrix = resizing_matrix(96, 299, "bilinear", antialias=False)
    images = np.einsum("ui,vj,bcij->buvc", matrix, matrix, CASE["x"].astype(np.float64), optimize=True)
    network = inception.Inception()
    apply = jax.jit(lambda p, x: network.apply({"params": p}, x, mutable=["intermediates"]))
    return {gain: apply(p, (2 * images - 1).astype(np.float32)) for gain, p in params.items()}


def assert_close(found, expected):
    """Equal but for rounding, which grows with the numbers added up."""
    np.testing.assert_allclose(found, expected, rtol=2e-5, atol=2e-5 * np.abs(expected).max())


@pytest.mark.parametrize("gain", [False, True])
@pytest.mark.parametrize("block", STRIDES)
def test_blocks(outputs, gain, block):
    (found,) = outputs[gain][1]["intermediates"][block]
    prefix, step = "gain/" * gain, STRIDES[block]
    assert_close(found.mean(axis=(1, 2)), CASE[f"{prefix}{block}_mean"])
    assert_close(found[:, ::step, ::step, ::8], nhwc(CASE[f"{prefix}{block}_sample"]))


@pytest.mark.parametrize("gain", [False, True])
def test_features_and_logits(outputs, gain):
    (features, logits), _ = outputs[gain]
    prefix = "gain/" * gain
    assert_close(features, CASE[f"{prefix}pool3"])
    assert_close(logits, CASE[f"{prefix}logits1008"])


@pytest.mark.parametrize(
    ("name", "block"),
    [
        ("Mixed_5b", inception.BlockA(32)),
        ("Mixed_6a", inception.BlockB()),
        ("Mixed_6b", inception.BlockC(128)),
        ("Mixed_7a", inception.BlockD()),
        ("Mixed_7b", inception.BlockE(max_pool=False)),
        ("Mixed_7c", inception.BlockE(max_pool=True)),
    ],
)
def test_single_blocks(params, name, block):
    images = nhwc(CASE[f"unit/{name}/in"])
    found = jax.jit(lambda p, x: block.apply({"params": p}, x))(params[True][name], images)
    assert_close(found, nhwc(CASE[f"unit/{name}/out"]))
