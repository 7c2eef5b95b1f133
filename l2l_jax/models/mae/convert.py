"""The state dict of facebookresearch/mae's `MaskedAutoencoderViT`."""

from collections.abc import Mapping
from typing import Any

from l2l_jax.models.layers.vit import sincos_position_table
from l2l_jax.models.mae.model import VARIANTS
from l2l_jax.weights.mapping import Constant, Rule, conv, linear
from l2l_jax.weights.shapes import count, shape_of, square_side

IMAGENET = dict(pixel_mean=(0.485, 0.456, 0.406), pixel_std=(0.229, 0.224, 0.225))
PUBLISHED = {name: sizes | IMAGENET for name, sizes in VARIANTS.items()}
"""Fields of `l2l_jax.models.mae.model.MAE` of the published models, where they differ from its defaults."""

WITH_DECODER = (
    "mae_visualize_vit_base.pth, mae_visualize_vit_large.pth, mae_visualize_vit_large_ganloss.pth, "
    "mae_visualize_vit_huge.pth (trained on plain pixels: best for restoration), "
    "mae_pretrain_vit_base_full.pth, mae_pretrain_vit_large_full.pth and "
    "mae_pretrain_vit_huge_full.pth (trained on normalised pixels)"
)
"""The files of facebookresearch/mae that hold a decoder (named in its issues 3, 8 and 155)."""


def vit_block_rules(torch_block: str, flax_block: str) -> list[Rule]:
    """The rules of one timm transformer block; both names contain `{i}`."""
    rules = []
    for norm in ("norm1", "norm2"):
        rules.append(Rule(f"{torch_block}.{norm}.weight", f"{flax_block}/{norm}/scale"))
        rules.append(Rule(f"{torch_block}.{norm}.bias", f"{flax_block}/{norm}/bias"))
    for dense in ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2"):
        flax_dense = dense.replace(".", "/")
        rules.append(Rule(f"{torch_block}.{dense}.weight", f"{flax_block}/{flax_dense}/kernel", linear))
        rules.append(Rule(f"{torch_block}.{dense}.bias", f"{flax_block}/{flax_dense}/bias"))
    return rules


TABLE = [
    Constant("pos_embed", lambda model: sincos_position_table(model.width, model.grid)[None]),
    Constant(
        "decoder_pos_embed",
        lambda model: sincos_position_table(model.decoder_width, model.grid)[None],
    ),
    Rule("cls_token", "encoder/cls_token"),
    Rule("mask_token", "decoder/mask_token"),
    Rule("patch_embed.proj.weight", "encoder/patch_embed/kernel", conv),
    Rule("patch_embed.proj.bias", "encoder/patch_embed/bias"),
    *vit_block_rules("blocks.{i}", "encoder/blocks_{i}"),
    Rule("norm.weight", "encoder/norm/scale"),
    Rule("norm.bias", "encoder/norm/bias"),
    Rule("decoder_embed.weight", "decoder/decoder_embed/kernel", linear),
    Rule("decoder_embed.bias", "decoder/decoder_embed/bias"),
    *vit_block_rules("decoder_blocks.{i}", "decoder/decoder_blocks_{i}"),
    Rule("decoder_norm.weight", "decoder/decoder_norm/scale"),
    Rule("decoder_norm.bias", "decoder/decoder_norm/bias"),
    Rule("decoder_pred.weight", "decoder/decoder_pred/kernel", linear),
    Rule("decoder_pred.bias", "decoder/decoder_pred/bias"),
]
"""Rules for `l2l_jax.models.mae.model.MAE`; `config` of the engine is the model."""


def sizes(state_dict: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of `MAE` that shapes show.

    Raises:
      UserError: an array that shows one is missing or misshapen.
    """
    width, channels, patch, _ = shape_of(state_dict, "patch_embed.proj.weight", 4)
    _, places, _ = shape_of(state_dict, "pos_embed", 3)
    decoder_width, _ = shape_of(state_dict, "decoder_embed.weight", 2)
    return dict(
        image_size=patch * square_side(places - 1, "pos_embed"),
        patch_size=patch,
        width=width,
        depth=count(state_dict, "blocks.{i}."),
        decoder_width=decoder_width,
        decoder_depth=count(state_dict, "decoder_blocks.{i}."),
        channels=channels,
    )


def guesses(file_name: str, found: Mapping[str, Any]) -> dict[str, Any]:
    """Fields that weights do not show, as far as they can be guessed.

    Of the published files, `mae_pretrain_*_full.pth` were trained on normalised pixels. Models that
    nobody published are taken to see pixels as they are.

    Args:
      file_name: name of the file.
      found: what `sizes` returned.
    """
    channels = found["channels"]
    return dict(
        norm_pix_loss="pretrain" in file_name and "full" in file_name,
        pixel_mean=(0.0,) * channels,
        pixel_std=(1.0,) * channels,
    )
