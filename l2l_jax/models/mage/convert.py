"""The state dict of MAGE's `MaskedGenerativeEncoderViT`, its VQGAN under `vqgan.` included."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from l2l_jax.errors import UserError
from l2l_jax.models.layers.vit import sincos_position_table
from l2l_jax.models.mae.convert import vit_block_rules
from l2l_jax.models.mage.model import VARIANTS
from l2l_jax.weights.mapping import Constant, Rule, conv, dense_rules, norm_rules
from l2l_jax.weights.shapes import count, shape_of, square_side

PUBLISHED = VARIANTS
"""Fields of `l2l_jax.models.mage.model.MAGE` of the published models, where they differ from its defaults."""


def _conv(torch_conv: str, flax_conv: str, bias: bool = True) -> list[Rule]:
    kernel = Rule(f"{torch_conv}.weight", f"{flax_conv}/kernel", conv)
    return [kernel, Rule(f"{torch_conv}.bias", f"{flax_conv}/bias")] if bias else [kernel]


def _res_block(torch_block: str, flax_block: str) -> list[Rule]:
    rules = []
    for i in (1, 2):
        rules += norm_rules(f"{torch_block}.norm{i}", f"{flax_block}/norm{i}")
        rules += _conv(f"{torch_block}.conv{i}", f"{flax_block}/conv{i}", bias=False)
    return rules


def _vqgan_half(half: str, direction: str) -> list[Rule]:
    """The rules of the encoder (`direction` "down") or the decoder ("up")."""
    torch, flax = f"vqgan.{half}", f"tokenizer/{half}"
    block = f"{torch}.{direction}.{{i}}.block.{{j}}", f"{flax}/{direction}_{{i}}_block_{{j}}"
    return [
        *_conv(f"{torch}.conv_in", f"{flax}/conv_in", bias=half == "decoder"),
        *_res_block(*block),
        *_conv(f"{block[0]}.nin_shortcut", f"{block[1]}/nin_shortcut", bias=False),
        *_res_block(f"{torch}.mid.block_{{i}}", f"{flax}/mid_block_{{i}}"),
        *norm_rules(f"{torch}.norm_out", f"{flax}/norm_out"),
        *_conv(f"{torch}.conv_out", f"{flax}/conv_out"),
    ]


TABLE = [
    Constant("pos_embed", lambda model: sincos_position_table(model.width, model.grid)[None]),
    Constant(
        "decoder_pos_embed",
        lambda model: sincos_position_table(model.decoder_width, model.grid)[None],
    ),
    Constant("token_emb.position_ids", lambda model: np.arange(1 + model.tokens)[None]),
    *_vqgan_half("encoder", "down"),
    *_vqgan_half("decoder", "up"),
    *_conv("vqgan.decoder.up.{i}.upsample.conv", "tokenizer/decoder/up_{i}_upsample"),
    Rule("vqgan.quantize.embedding.weight", "tokenizer/quantize/embedding"),
    Rule("token_emb.word_embeddings.weight", "encoder/token_emb/word_embeddings"),
    Rule("token_emb.position_embeddings.weight", "encoder/token_emb/position_embeddings"),
    *norm_rules("token_emb.LayerNorm", "encoder/token_emb/norm"),
    *vit_block_rules("blocks.{i}", "encoder/blocks_{i}"),
    *norm_rules("norm", "encoder/norm"),
    *dense_rules("decoder_embed", "decoder/decoder_embed"),
    Rule("decoder_pos_embed_learned", "decoder/decoder_pos_embed_learned"),
    *vit_block_rules("decoder_blocks.{i}", "decoder/decoder_blocks_{i}"),
    *norm_rules("decoder_norm", "decoder/decoder_norm"),
    *dense_rules("mlm_layer.fc", "decoder/mlm_layer/fc"),
    *norm_rules("mlm_layer.ln", "decoder/mlm_layer/ln"),
    Rule("mlm_layer.bias", "decoder/mlm_layer/bias"),
    Rule("cls_token", "unused/cls_token"),
    Rule("mask_token", "unused/mask_token"),
    *_conv("patch_embed.proj", "unused/patch_embed"),
    *dense_rules("decoder_pred", "unused/decoder_pred"),
]
"""Rules for `l2l_jax.models.mage.model.MAGE`; `config` of the engine is the model."""

CLASSES_AND_MASK = 1001
"""Words of the vocabulary beside the codes."""


def with_vqgan(state_dict: Mapping[str, Any], vqgan: Mapping[str, Any]) -> dict[str, Any]:
    """The state dict of MAGE with a VQGAN from a file of its own.

    Args:
      state_dict: of MAGE, without a VQGAN.
      vqgan: `encoder.…`, `decoder.…` and `quantize.…`. What was needed to train it, `loss.…`, is
        left out.

    Raises:
      UserError: there is a VQGAN in `state_dict` already.
    """
    if any(key.startswith("vqgan.") for key in state_dict):
        raise UserError("the file holds its VQGAN already: leave --vqgan out.")
    tokenizer = {f"vqgan.{k}": v for k, v in vqgan.items() if not k.startswith("loss.")}
    return {**state_dict, **tokenizer}


def sizes(state_dict: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of `MAGE` that shapes show.

    Raises:
      UserError: an array that shows one is missing or misshapen; without any VQGAN the message says
        how to add it.
    """
    if not any(key.startswith("vqgan.") for key in state_dict):
        raise UserError(
            "this is MAGE without its VQGAN, which makes and decodes its tokens: add the VQGAN's file, "
            "--vqgan vqgan_jax_strongaug.ckpt."
        )
    vocabulary, width = shape_of(state_dict, "token_emb.word_embeddings.weight", 2)
    _, places, _ = shape_of(state_dict, "decoder_pos_embed_learned", 3)
    decoder_width, _ = shape_of(state_dict, "decoder_embed.weight", 2)
    base, channels, _, _ = shape_of(state_dict, "vqgan.encoder.conv_in.weight", 4)
    _, codebook_width = shape_of(state_dict, "vqgan.quantize.embedding.weight", 2)
    levels = count(state_dict, "vqgan.encoder.down.{i}.")
    widths = [
        shape_of(state_dict, f"vqgan.encoder.down.{level}.block.0.conv1.weight", 4)[0]
        for level in range(levels)
    ]
    patch = 2 ** max(levels - 1, 0)
    return dict(
        image_size=patch * square_side(places - 1, "decoder_pos_embed_learned"),
        width=width,
        depth=count(state_dict, "blocks.{i}."),
        decoder_width=decoder_width,
        decoder_depth=count(state_dict, "decoder_blocks.{i}."),
        codebook_size=vocabulary - CLASSES_AND_MASK,
        codebook_width=codebook_width,
        base_channels=base,
        channel_multipliers=tuple(width // base for width in widths),
        num_res_blocks=count(state_dict, "vqgan.encoder.down.0.block.{i}."),
        channels=channels,
    )
