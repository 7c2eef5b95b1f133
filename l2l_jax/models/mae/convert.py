"""Checkpoint format of `MaskedAutoencoderViT` of facebookresearch/mae (with timm's names)."""

import re

from l2l_jax.errors import UserError
from l2l_jax.models import mapping
from l2l_jax.models.layers.vit import sincos_position_table
from l2l_jax.models.mapping import CheckpointFormat, Constant, Fields, Origin, StateDict, Table

VARIANTS = {
    "vit_base_patch16": dict(patch_size=16, width=768, depth=12, num_heads=12),
    "vit_large_patch16": dict(patch_size=16, width=1024, depth=24, num_heads=16),
    "vit_huge_patch14": dict(patch_size=14, width=1280, depth=32, num_heads=16),
}
"""Published encoder sizes; their decoder has the default sizes of `MAE`."""

IMAGENET = dict(pixel_mean=(0.485, 0.456, 0.406), pixel_std=(0.229, 0.224, 0.225))
PUBLISHED_FILE = re.compile(r"mae_(visualize|pretrain)_vit_(base|large|huge)(_full|_ganloss)?\.\w+")

LICENCE = (
    "The weights published by facebookresearch/mae are under CC BY-NC 4.0, and so is what is made from them: "
    "no commercial use."
)

ENCODER_ALONE = (
    "this is the encoder of a ViT (MAE) without a decoder. Inpainting, and judging by it what was forgotten, "
    "needs the decoder that belongs to it. Files with a decoder: mae_visualize_vit_base.pth, "
    "mae_visualize_vit_large.pth, mae_visualize_vit_large_ganloss.pth, mae_visualize_vit_huge.pth (trained "
    "on plain pixels: best for inpainting), mae_pretrain_vit_base_full.pth, mae_pretrain_vit_large_full.pth "
    "and mae_pretrain_vit_huge_full.pth (trained on normalized pixels)."
)  # named in issues 3, 8 and 155 of facebookresearch/mae

VIT = {
    "encoder/blocks_{i}/{layer}": "blocks.{i}.{layer}",
    "encoder/norm": "norm",
    "decoder/decoder_blocks_{i}/{layer}": "decoder_blocks.{i}.{layer}",
    "decoder/decoder_embed": "decoder_embed",
    "decoder/decoder_norm": "decoder_norm",
}
"""Names shared with MAGE."""


def position_table(key: str, width: str) -> Constant:
    """Return the constant of a fixed sine-cosine table; `width` is the name of the model's field."""
    hint = "Was it trained at another image size, or with learned positions?"
    return Constant(key, lambda x: sincos_position_table(getattr(x, width), x.grid)[None], hint)


POSITIONS = (position_table("pos_embed", "width"), position_table("decoder_pos_embed", "decoder_width"))

TABLE = Table(
    VIT
    | {
        "encoder/cls_token": "cls_token",
        "encoder/patch_embed": "patch_embed.proj",
        "decoder/mask_token": "mask_token",
        "decoder/decoder_pred": "decoder_pred",
    },
    POSITIONS,
)


class Original(CheckpointFormat):
    """Checkpoints saved by main_pretrain.py of facebookresearch/mae."""

    table = TABLE
    published = {name: fields | IMAGENET for name, fields in VARIANTS.items()}
    hidden = ("num_heads", "decoder_num_heads")
    wrapper = "model"

    def recognize(self, state_dict: StateDict) -> bool:
        if "patch_embed.proj.weight" not in state_dict or "token_emb.word_embeddings.weight" in state_dict:
            return False
        if not any(key.startswith("decoder_") for key in state_dict):
            raise UserError(ENCODER_ALONE)
        return True

    def sizes(self, state_dict: StateDict) -> Fields:
        width, channels, patch, _ = mapping.shape_of(state_dict, "patch_embed.proj.weight", 4)
        _, places, _ = mapping.shape_of(state_dict, "pos_embed", 3)
        decoder_width, _ = mapping.shape_of(state_dict, "decoder_embed.weight", 2)
        return dict(
            image_size=patch * mapping.square_side(places - 1, "pos_embed"),
            patch_size=patch,
            width=width,
            depth=mapping.count(state_dict, "blocks.{i}."),
            decoder_width=decoder_width,
            decoder_depth=mapping.count(state_dict, "decoder_blocks.{i}."),
            channels=channels,
        )

    def stated(self, origin: Origin, sizes: Fields) -> Fields:
        args = origin.get("args", {})
        fields = {"mask_ratio": args["mask_ratio"]} if isinstance(args.get("mask_ratio"), float) else {}
        if args.get("norm_pix_loss") in (False, True):  # also true for 0 and 1
            fields["norm_pix_loss"] = bool(args["norm_pix_loss"])
        return {"layer_norm_eps": 1e-6, **fields}  # value of the released code

    def guessed(self, origin: Origin, sizes: Fields) -> Fields:
        # Of the published files, only mae_pretrain_*_full.pth were trained with norm_pix_loss.
        # main_pretrain.py normalizes images by ImageNet's statistics; assume that other programs do not.
        name, channels = origin["file"], sizes["channels"]
        plain = dict(pixel_mean=(0.0,) * channels, pixel_std=(1.0,) * channels)
        by_release = "norm_pix_loss" in origin.get("args", {}) and channels == 3
        return {"norm_pix_loss": "pretrain" in name and "full" in name} | (IMAGENET if by_release else plain)

    def licence(self, file: str) -> str:
        return LICENCE if PUBLISHED_FILE.fullmatch(file) else ""
