"""The state dict of MAGE's `MaskedGenerativeEncoderViT`, its VQGAN under `vqgan.` included."""

import numpy as np

from l2l_jax.models.vit import sincos_position_table
from l2l_jax.weights.mae import vit_block_rules
from l2l_jax.weights.mapping import Constant, Rule, conv, linear


def _norm(torch_norm: str, flax_norm: str) -> list[Rule]:
    return [
        Rule(f"{torch_norm}.weight", f"{flax_norm}/scale"),
        Rule(f"{torch_norm}.bias", f"{flax_norm}/bias"),
    ]


def _dense(torch_dense: str, flax_dense: str) -> list[Rule]:
    return [
        Rule(f"{torch_dense}.weight", f"{flax_dense}/kernel", linear),
        Rule(f"{torch_dense}.bias", f"{flax_dense}/bias"),
    ]


def _conv(torch_conv: str, flax_conv: str, bias: bool = True) -> list[Rule]:
    kernel = Rule(f"{torch_conv}.weight", f"{flax_conv}/kernel", conv)
    return [kernel, Rule(f"{torch_conv}.bias", f"{flax_conv}/bias")] if bias else [kernel]


def _res_block(torch_block: str, flax_block: str) -> list[Rule]:
    rules = []
    for i in (1, 2):
        rules += _norm(f"{torch_block}.norm{i}", f"{flax_block}/norm{i}")
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
        *_norm(f"{torch}.norm_out", f"{flax}/norm_out"),
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
    *_norm("token_emb.LayerNorm", "encoder/token_emb/norm"),
    *vit_block_rules("blocks.{i}", "encoder/blocks_{i}"),
    *_norm("norm", "encoder/norm"),
    *_dense("decoder_embed", "decoder/decoder_embed"),
    Rule("decoder_pos_embed_learned", "decoder/decoder_pos_embed_learned"),
    *vit_block_rules("decoder_blocks.{i}", "decoder/decoder_blocks_{i}"),
    *_norm("decoder_norm", "decoder/decoder_norm"),
    *_dense("mlm_layer.fc", "decoder/mlm_layer/fc"),
    *_norm("mlm_layer.ln", "decoder/mlm_layer/ln"),
    Rule("mlm_layer.bias", "decoder/mlm_layer/bias"),
    Rule("cls_token", "unused/cls_token"),
    Rule("mask_token", "unused/mask_token"),
    *_conv("patch_embed.proj", "unused/patch_embed"),
    *_dense("decoder_pred", "unused/decoder_pred"),
]
"""Rules for `l2l_jax.models.mage.MAGE`; `config` of the engine is the model."""
