"""Names of diffusers' weights: those of a U-Net begin with "unet." here, of an autoencoder with "vae."."""

from l2l_jax.models.mapping import Table

TRANSFORMER = {
    "transformer_blocks_{k}/ff_in": "transformer_blocks.{k}.ff.net.0.proj",
    "transformer_blocks_{k}/ff_out": "transformer_blocks.{k}.ff.net.2",
    "transformer_blocks_{k}/{attention}/to_out": "transformer_blocks.{k}.{attention}.to_out.0",
    "transformer_blocks_{k}/{layer}": "transformer_blocks.{k}.{layer}",
    "to_out": "to_out.0",
    "{layer}": "{layer}",
}
"""Layers of attention, in the U-Net and in the autoencoder."""


def _blocks(ours: str, theirs: str) -> dict[str, str]:
    names = {f"{ours}_resnets_{{j}}/{{layer}}": f"{theirs}.resnets.{{j}}.{{layer}}"}
    for layer, name in TRANSFORMER.items():
        names[f"{ours}_attentions_{{j}}/{layer}"] = f"{theirs}.attentions.{{j}}.{name}"
    for way in ("down", "up"):
        names[f"{ours}_{way}sample"] = f"{theirs}.{way}samplers.0.conv"
    return names


TABLE = Table(
    _blocks("encoder/down_blocks_{i}", "unet.down_blocks.{i}")
    | _blocks("encoder/mid_block", "unet.mid_block")
    | _blocks("decoder/up_blocks_{i}", "unet.up_blocks.{i}")
    | {"encoder/{layer}": "unet.{layer}", "decoder/{layer}": "unet.{layer}"}
    | _blocks("vae/encoder/down_blocks_{i}", "vae.encoder.down_blocks.{i}")
    | _blocks("vae/{half}/mid_block", "vae.{half}.mid_block")
    | _blocks("vae/decoder/up_blocks_{i}", "vae.decoder.up_blocks.{i}")
    | {"vae/{layer}": "vae.{layer}"},
    ignored=r"text_encoder(_2)?\..*",
)
