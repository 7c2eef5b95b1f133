"""Checkpoints of MAGE's `MaskedGenerativeEncoderViT`, its VQGAN under `vqgan.` included."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from l2l_jax.errors import UserError
from l2l_jax.models.checkpoints import CheckpointFormat
from l2l_jax.models.mae.convert import position_table, vit_block_rules
from l2l_jax.models.mapping import (
    Constant,
    Rule,
    Table,
    conv,
    count,
    dense_rules,
    norm_rules,
    shape_of,
    square_side,
)

VARIANTS = {
    "vit_base_patch16": dict(width=768, depth=12, num_heads=12, decoder_width=768),
    "vit_large_patch16": dict(width=1024, depth=24, num_heads=16, decoder_width=1024),
}
"""Published sizes; their tokenizer and the rest of their decoder are the defaults of `MAGE`."""

CLASSES_AND_MASK = 1001
"""Words of the vocabulary besides the codes."""


def _conv(torch_conv: str, flax_conv: str) -> list[Rule]:
    return [Rule(f"{torch_conv}.weight", f"{flax_conv}/kernel", conv)]  # without bias


def _res_block(torch_block: str, flax_block: str) -> list[Rule]:
    rules = []
    for i in (1, 2):
        rules += norm_rules(f"{torch_block}.norm{i}", f"{flax_block}/norm{i}")
        rules += _conv(f"{torch_block}.conv{i}", f"{flax_block}/conv{i}")
    return rules


def _vqgan_half(half: str, direction: str) -> list[Rule]:
    """Return the rules of the encoder (`direction` "down") or the decoder ("up")."""
    torch, flax = f"vqgan.{half}", f"tokenizer/{half}"
    block = f"{torch}.{direction}.{{i}}.block.{{j}}", f"{flax}/{direction}_{{i}}_block_{{j}}"
    conv_in = f"{torch}.conv_in", f"{flax}/conv_in"
    return [
        *(dense_rules(*conv_in, conv) if half == "decoder" else _conv(*conv_in)),
        *_res_block(*block),
        *_conv(f"{block[0]}.nin_shortcut", f"{block[1]}/nin_shortcut"),
        *_res_block(f"{torch}.mid.block_{{i}}", f"{flax}/mid_block_{{i}}"),
        *norm_rules(f"{torch}.norm_out", f"{flax}/norm_out"),
        *dense_rules(f"{torch}.conv_out", f"{flax}/conv_out", conv),
    ]


TABLE: Table = [
    position_table("pos_embed", "width"),
    position_table("decoder_pos_embed", "decoder_width"),
    Constant("token_emb.position_ids", lambda model: np.arange(1 + model.tokens)[None]),
    *_vqgan_half("encoder", "down"),
    *_vqgan_half("decoder", "up"),
    *dense_rules("vqgan.decoder.up.{i}.upsample.conv", "tokenizer/decoder/up_{i}_upsample", conv),
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
    *dense_rules("patch_embed.proj", "unused/patch_embed", conv),
    *dense_rules("decoder_pred", "unused/decoder_pred"),
]


def recognize(state_dict: Mapping[str, Any]) -> bool:
    """Return whether the keys are those of a MAGE; a VQGAN alone raises a UserError."""
    if "token_emb.word_embeddings.weight" in state_dict:
        return True
    if "quantize.embedding.weight" in state_dict:
        raise UserError("this is a VQGAN alone: give MAGE's own file, and this one with it as --vqgan FILE.")
    return False


def with_vqgan(state_dict: Mapping[str, Any], vqgan: Mapping[str, Any]) -> dict[str, Any]:
    """Return the state dict of MAGE with a VQGAN from a file of its own.

    Raises:
      UserError: `state_dict` holds a VQGAN already.
    """
    if any(key.startswith("vqgan.") for key in state_dict):
        raise UserError("the file holds its VQGAN already: leave --vqgan out.")
    return {**state_dict, **{f"vqgan.{key}": value for key, value in vqgan.items()}}


def sizes(state_dict: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of `MAGE` that shapes show; without any VQGAN, an error says how to add it."""
    if not any(key.startswith("vqgan.") for key in state_dict):
        raise UserError(
            "this is MAGE without its VQGAN, which makes and decodes its tokens: add the VQGAN's file, "
            "--vqgan vqgan_jax_strongaug.ckpt."
        )
    vocabulary, width = shape_of(state_dict, "token_emb.word_embeddings.weight", 2)
    _, places, _ = shape_of(state_dict, "decoder_pos_embed_learned", 3)
    decoder_width, _ = shape_of(state_dict, "decoder_embed.weight", 2)
    base, channels, _, _ = shape_of(state_dict, "vqgan.encoder.conv_in.weight", 4)
    deepest = shape_of(state_dict, "vqgan.decoder.conv_in.weight", 4)[0]
    _, codebook_width = shape_of(state_dict, "vqgan.quantize.embedding.weight", 2)
    levels = 1 + count(state_dict, "vqgan.decoder.up.{i}.upsample.")
    blocks = count(state_dict, "vqgan.encoder.down.0.block.{i}.")
    first = [f"vqgan.encoder.down.{level}.block.0.conv1.weight" for level in range(levels)]
    widths = (
        [shape_of(state_dict, key, 4)[0] for key in first] if blocks else [base] * (levels - 1) + [deepest]
    )
    return dict(
        image_size=2 ** (levels - 1) * square_side(places - 1, "decoder_pos_embed_learned"),
        width=width,
        depth=count(state_dict, "blocks.{i}."),
        decoder_width=decoder_width,
        decoder_depth=count(state_dict, "decoder_blocks.{i}."),
        codebook_size=vocabulary - CLASSES_AND_MASK,
        codebook_width=codebook_width,
        base_channels=base,
        channel_multipliers=tuple(width // base for width in widths),
        num_res_blocks=blocks,
        channels=channels,
    )


def stated(origin: Mapping[str, Any], sizes: dict[str, Any]) -> dict[str, Any]:
    """Read the arguments that main_pretrain.py of LTH14/mage keeps in its checkpoints."""
    args = origin.get("args", {})
    names = dict(mask_ratio_min="dropped", mask_ratio_mu="mask_mean", mask_ratio_std="mask_std")
    return {field: args[name] for name, field in names.items() if isinstance(args.get(name), float)}


FORMAT = CheckpointFormat(
    table=TABLE,
    parts=("tokenizer", "encoder", "decoder", "unused"),
    recognize=recognize,
    sizes=sizes,
    published=VARIANTS,
    hidden=("num_heads", "decoder_num_heads"),
    stated=stated,
    wrapper="model",
    join=with_vqgan,
)
