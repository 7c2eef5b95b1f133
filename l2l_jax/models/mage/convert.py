"""Checkpoint format of MAGE's `MaskedGenerativeEncoderViT`, with its VQGAN under `vqgan.`."""

import numpy as np

from l2l_jax.errors import UserError
from l2l_jax.models import mapping
from l2l_jax.models.mae.convert import POSITIONS, VIT
from l2l_jax.models.mapping import CheckpointFormat, Constant, Fields, Origin, StateDict, Table

VARIANTS = {
    "vit_base_patch16": dict(width=768, depth=12, num_heads=12, decoder_width=768),
    "vit_large_patch16": dict(width=1024, depth=24, num_heads=16, decoder_width=1024),
}
"""Published sizes; the tokenizer and the other decoder sizes are the defaults of `MAGE`."""

CLASSES_AND_MASK = 1001  # words of the vocabulary in addition to the codes

TABLE = Table(
    VIT
    | {
        "tokenizer/quantize/embedding": "vqgan.quantize.embedding.weight",
        "tokenizer/{half}/down_{i}_block_{j}/{layer}": "vqgan.{half}.down.{i}.block.{j}.{layer}",
        "tokenizer/{half}/up_{i}_block_{j}/{layer}": "vqgan.{half}.up.{i}.block.{j}.{layer}",
        "tokenizer/{half}/up_{i}_upsample": "vqgan.{half}.up.{i}.upsample.conv",
        "tokenizer/{half}/mid_block_{i}/{layer}": "vqgan.{half}.mid.block_{i}.{layer}",
        "tokenizer/{half}/{layer}": "vqgan.{half}.{layer}",
        "encoder/token_emb/{word}_embeddings": "token_emb.{word}_embeddings.weight",
        "encoder/token_emb/norm": "token_emb.LayerNorm",
        "decoder/decoder_pos_embed_learned": "decoder_pos_embed_learned",
        "decoder/mlm_layer": "mlm_layer",
        "decoder/mlm_layer/{layer}": "mlm_layer.{layer}",
        "unused/patch_embed": "patch_embed.proj",
        "unused/{name}": "{name}",
    },
    (*POSITIONS, Constant("token_emb.position_ids", lambda model: np.arange(1 + model.tokens)[None])),
)


class Format(CheckpointFormat):
    """Checkpoints saved by main_pretrain.py of LTH14/mage."""

    table = TABLE
    parts = ("tokenizer", "encoder", "decoder", "unused")
    published = VARIANTS
    hidden = ("num_heads", "decoder_num_heads")
    wrapper = "model"

    def recognize(self, state_dict: StateDict) -> bool:
        if "token_emb.word_embeddings.weight" in state_dict:
            return True
        if "quantize.embedding.weight" in state_dict:
            raise UserError("this is a VQGAN alone: give MAGE's own file, and this one as --vqgan FILE.")
        return False

    def join(self, state_dict: StateDict, second: StateDict) -> StateDict:
        if any(key.startswith("vqgan.") for key in state_dict):
            raise UserError("the file already holds its VQGAN: omit --vqgan.")
        return {**state_dict, **{f"vqgan.{key}": value for key, value in second.items()}}

    def sizes(self, state_dict: StateDict) -> Fields:
        if not any(key.startswith("vqgan.") for key in state_dict):
            raise UserError(
                "this is MAGE without its VQGAN, which computes and decodes tokens: add the VQGAN's file, "
                "--vqgan vqgan_jax_strongaug.ckpt."
            )
        vocabulary, width = mapping.shape_of(state_dict, "token_emb.word_embeddings.weight", 2)
        _, places, _ = mapping.shape_of(state_dict, "decoder_pos_embed_learned", 3)
        base, channels, _, _ = mapping.shape_of(state_dict, "vqgan.encoder.conv_in.weight", 4)
        levels = 1 + mapping.count(state_dict, "vqgan.decoder.up.{i}.upsample.")
        blocks = mapping.count(state_dict, "vqgan.encoder.down.0.block.{i}.")
        first = [f"vqgan.encoder.down.{level}.block.0.conv1.weight" for level in range(levels)]
        if blocks:
            widths = [mapping.shape_of(state_dict, key, 4)[0] for key in first]
        else:
            top = mapping.shape_of(state_dict, "vqgan.decoder.conv_in.weight", 4)[0]
            widths = [base] * (levels - 1) + [top]
        return dict(
            image_size=2 ** (levels - 1) * mapping.square_side(places - 1, "decoder_pos_embed_learned"),
            width=width,
            depth=mapping.count(state_dict, "blocks.{i}."),
            decoder_width=mapping.shape_of(state_dict, "decoder_embed.weight", 2)[0],
            decoder_depth=mapping.count(state_dict, "decoder_blocks.{i}."),
            codebook_size=vocabulary - CLASSES_AND_MASK,
            codebook_width=mapping.shape_of(state_dict, "vqgan.quantize.embedding.weight", 2)[1],
            base_channels=base,
            channel_multipliers=tuple(width // base for width in widths),
            num_res_blocks=blocks,
            channels=channels,
        )

    def stated(self, origin: Origin, sizes: Fields) -> Fields:
        args = origin.get("args", {})
        names = dict(mask_ratio_min="dropped", mask_ratio_mu="mask_mean", mask_ratio_std="mask_std")
        return {field: args[name] for name, field in names.items() if isinstance(args.get(name), float)}
