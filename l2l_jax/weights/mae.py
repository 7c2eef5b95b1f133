"""The state dict of facebookresearch/mae's `MaskedAutoencoderViT`."""

from l2l_jax.models.vit import sincos_position_table
from l2l_jax.weights.mapping import Constant, Rule, conv, linear


def vit_block_rules(torch_block: str, flax_block: str) -> list[Rule]:
    """The rules of one timm transformer block; both names contain `{i}`."""
    rules = []
    for norm in ("norm1", "norm2"):
        rules.append(Rule(f"{torch_block}.{norm}.weight", f"{flax_block}/{norm}/scale"))
        rules.append(Rule(f"{torch_block}.{norm}.bias", f"{flax_block}/{norm}/bias"))
    for dense in ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2"):
        flax_dense = dense.replace(".", "/")
        rules.append(
            Rule(f"{torch_block}.{dense}.weight", f"{flax_block}/{flax_dense}/kernel", linear)
        )
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
"""Rules for `l2l_jax.models.mae.MAE`; `config` of the engine is the model."""
