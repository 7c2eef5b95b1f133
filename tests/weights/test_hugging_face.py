"""An exported MAE in an independent PyTorch implementation: `ViTMAEForPreTraining` of transformers."""

import dataclasses
import re

import jax
import numpy as np
import pytest

from l2l_jax.weights import transfer
from tests.reference_arrays import Case, nhwc
from tests.weights.checkpoints import SMALL, write_safetensors

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

RENAMED = [
    (r"^decoder_blocks\.", "decoder.decoder_layers."),
    (r"^blocks\.", "vit.layers."),
    (r"^patch_embed\.proj\.", "vit.embeddings.patch_embeddings.projection."),
    (r"^cls_token$", "vit.embeddings.cls_token"),
    (r"^pos_embed$", "vit.embeddings.position_embeddings"),
    (r"^norm\.", "vit.layernorm."),
    (r"^mask_token$", "decoder.mask_token"),
    (r"^decoder_(?=pos_embed|embed|norm|pred)", "decoder.decoder_"),
    (r"\.norm1\.", ".layernorm_before."),
    (r"\.norm2\.", ".layernorm_after."),
    (r"\.attn\.proj\.", ".attention.o_proj."),
]


def renamed(state_dict):
    """Our export under transformers' names, with queries, keys and values apart."""
    found = {}
    for key, value in state_dict.items():
        for pattern, name in RENAMED:
            key = re.sub(pattern, name, key)
        if ".attn.qkv." in key:
            for letter, third in zip("qkv", value.chunk(3), strict=True):
                found[key.replace(".attn.qkv.", f".attention.{letter}_proj.")] = third
        else:
            found[key] = value
    return found


@pytest.fixture
def exported(tmp_path):
    small = SMALL["mae"]
    path = write_safetensors(tmp_path / "in.safetensors", small.state_dict)
    transfer.import_file(path, tmp_path / "model", fields=small.given)
    transfer.export_model(tmp_path / "model", tmp_path / "out.pth")
    params = transfer.load_pretrained(tmp_path / "model", "mae", small.model)
    return torch.load(tmp_path / "out.pth", weights_only=True)["model"], params


@pytest.mark.parametrize("norm_pix_loss", [False, True])
def test_same_outputs(exported, norm_pix_loss):
    state_dict, params = exported
    model = dataclasses.replace(SMALL["mae"].model, norm_pix_loss=norm_pix_loss)
    config = transformers.ViTMAEConfig(
        hidden_size=48, num_hidden_layers=2, num_attention_heads=4, intermediate_size=192,
        decoder_hidden_size=32, decoder_num_hidden_layers=2, decoder_num_attention_heads=4,
        decoder_intermediate_size=128, image_size=32, patch_size=8, layer_norm_eps=1e-6,
        mask_ratio=0.75, norm_pix_loss=norm_pix_loss,
    )  # fmt: skip
    theirs = transformers.ViTMAEForPreTraining(config).eval()
    theirs.load_state_dict(renamed(state_dict), strict=True)
    case = Case("mae_tiny")
    with torch.no_grad():
        expected = theirs(torch.tensor(case["images"]), noise=torch.tensor(case["noise"]))

    @jax.jit
    def ours(params, images):
        seen = model.mask(images, case["noise"], kept=4)
        return model.predict(params, seen), model.generative_loss(params, images, seen)

    prediction, loss = ours(params, nhwc(case["images"]))
    np.testing.assert_allclose(prediction, expected.logits.numpy(), atol=1e-4)
    np.testing.assert_allclose(loss.mean(), expected.loss.numpy(), atol=1e-4)
