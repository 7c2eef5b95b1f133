"""The U-Net compared with guided diffusion on `palette_unet_tiny`, and its state dict."""

import jax
import numpy as np
import pytest

from l2l_jax.errors import UserError
from l2l_jax.models import mapping
from l2l_jax.models.palette import convert
from l2l_jax.models.palette.convert import UNET
from l2l_jax.models.palette.diffusion import beta_schedule, schedule_buffers
from l2l_jax.models.palette.model import Palette
from tests.reference_arrays import Case, nhwc

CASE = Case("palette_unet_tiny")
SIZES = dict(inner_channel=32, channel_mults=(1, 2), res_blocks=1, attn_res=(2,), num_head_channels=16)
TINY = Palette(image_size=32, hole_bank_size=1, **SIZES)
SEEN = {"inputs": nhwc(CASE["x"]), "gamma": CASE["gammas"][:, 0]}
BLOCKS = {
    "encoder": {"middle_block_0": "middle_res0", "middle_block_1": "middle_attn"},
    "decoder": {f"output_blocks_{i}_{j}": f"out_block_{i}" for i, j in enumerate((1, 2, 0, 0))},
}
"""Our modules by name of the reference arrays of single blocks."""


def parts_of(model):
    """Return shapes of the parts in the state dict: all except the mask bank."""
    return {part: model.shapes()[part] for part in ("encoder", "decoder")}


def test_features_embedding_prediction_and_single_blocks():
    params = mapping.to_flax(UNET, CASE.state_dict(), parts_of(TINY), TINY)

    @jax.jit
    def forward(params):
        names = BLOCKS["encoder"] | BLOCKS["decoder"]
        keep = dict(capture_intermediates=lambda module, _: module.name in names)
        (features, embedding), encoder = TINY.encoder.apply(
            {"params": params["encoder"]}, SEEN["inputs"], SEEN["gamma"], **keep
        )
        prediction, decoder = TINY.decoder.apply({"params": params["decoder"]}, features, embedding, **keep)
        blocks = encoder["intermediates"] | decoder["intermediates"]
        return features, embedding, prediction, {k: v["__call__"][0] for k, v in blocks.items()}

    features, embedding, prediction, blocks = forward(params)
    np.testing.assert_allclose(embedding, CASE["emb"], atol=2e-6)
    assert len(features) == 5
    for i, feature in enumerate(features):
        np.testing.assert_allclose(feature, nhwc(CASE[f"feat_{i}"]), atol=3e-5, err_msg=str(i))
    for ours, name in (BLOCKS["encoder"] | BLOCKS["decoder"]).items():
        np.testing.assert_allclose(blocks[ours], nhwc(CASE[name]), atol=3e-5, err_msg=name)
    np.testing.assert_allclose(prediction, nhwc(CASE["out"]), atol=2e-5)


def network(betas):
    """Return `Network.state_dict()` during unlearning: student, teacher and the schedule's buffers."""
    unet = CASE.state_dict()
    teacher = {f"teacher_denoise_fn.{key}": np.zeros_like(value) for key, value in unet.items()}
    return {f"denoise_fn.{key}": value for key, value in unet.items()} | teacher | schedule_buffers(betas)


def test_checkpoint_with_another_schedule_is_rejected():
    checkpoint = convert.Format().unwrap(network(beta_schedule("linear", 2000, 1e-4, 0.09)))
    with pytest.raises(UserError, match="gammas is not the fixed table.*Set schedule, timesteps"):
        mapping.to_flax(convert.TABLE, checkpoint, parts_of(TINY), TINY)
