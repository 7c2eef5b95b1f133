"""Checkpoint format of diffusers pipelines: a model_index.json and one folder per component."""

import dataclasses
import pathlib
import re
from collections.abc import Mapping
from typing import Any

import numpy as np
from flax.traverse_util import flatten_dict

from l2l_jax.errors import UserError
from l2l_jax.models.latent_diffusion.scheduler import Schedule
from l2l_jax.models.latent_diffusion.text import EncoderFiles, embed_prompts
from l2l_jax.models.latent_diffusion.unet import UNetSizes
from l2l_jax.models.latent_diffusion.vae import VAESizes
from l2l_jax.models.mapping import CheckpointFormat, Fields, Origin, StateDict, Table

# Components that embed prompts, with their tokenizers
TEXT_ENCODERS = {"text_encoder": "tokenizer", "text_encoder_2": "tokenizer_2"}
# Attention layers of the autoencoder: names before and since diffusers 0.15
OLD_ATTENTION = dict(query="to_q", key="to_k", value="to_v", proj_attn="to_out.0")

TRANSFORMER = {
    "transformer_blocks_{k}/ff_in": "transformer_blocks.{k}.ff.net.0.proj",
    "transformer_blocks_{k}/ff_out": "transformer_blocks.{k}.ff.net.2",
    "transformer_blocks_{k}/{attention}/to_out": "transformer_blocks.{k}.{attention}.to_out.0",
    "transformer_blocks_{k}/{layer}": "transformer_blocks.{k}.{layer}",
    "to_out": "to_out.0",
    "{layer}": "{layer}",
}
"""Attention layers of the U-Net and the autoencoder, with diffusers' names."""


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
"""Names in diffusers, prefixed by "unet." for the U-Net and "vae." for the autoencoder."""


class Pipeline(CheckpointFormat):
    """Folders of inpainting pipelines; state dict keys are prefixed by the component name."""

    table = TABLE
    parts = ("encoder", "decoder", "vae")
    is_folder = True

    def recognize(self, state_dict: StateDict) -> bool:
        if "unet.conv_in.weight" not in state_dict:
            return False
        if "vae.decoder.conv_in.weight" not in state_dict:
            raise UserError("the pipeline has no vae, the autoencoder of images.")
        return True

    def unwrap(self, state_dict: StateDict) -> StateDict:
        pattern = re.compile(rf"(vae\..*\.attentions\.\d+)\.({'|'.join(OLD_ATTENTION)})\.")

        def today(match: re.Match) -> str:
            return f"{match[1]}.{OLD_ATTENTION[match[2]]}."

        return {pattern.sub(today, key): value for key, value in state_dict.items()}

    def sizes(self, state_dict: StateDict) -> Fields:
        return {}

    def stated(self, origin: Origin, sizes: Fields) -> Fields:
        components = origin["components"]
        unet, vae, schedule = (components.get(name, {}) for name in ("unet", "vae", "scheduler"))
        autoencoder = VAESizes.from_json(vae)
        positions = components.get("text_encoder", {}).get("max_position_embeddings", 77)
        length = components.get("tokenizer", {}).get("model_max_length", positions)
        return dict(
            unet=dataclasses.asdict(UNetSizes.from_json(unet)),
            vae=dataclasses.asdict(autoencoder),
            schedule=dataclasses.asdict(Schedule.from_json(schedule)),
            image_size=unet.get("sample_size", 64) * autoencoder.stride,
            prompt_words=min(positions, length),
        )

    def computed(self, state_dict: StateDict, model: Any, origin: Origin) -> dict[str, Any]:
        if open_prompts := [prompt for prompt in model.prompts if "{class}" in prompt]:
            raise UserError(
                f"the prompt {open_prompts[0]!r} needs the names of classes: give prompts with the names, or "
                "name this folder as config.model.pretrained of a run."
            )
        encoders, folder = [], pathlib.Path(origin["pipeline"])
        for name, tokenizer in TEXT_ENCODERS.items():
            if name in origin["components"]:
                weights = _component(state_dict, name)
                encoders.append(EncoderFiles(origin["components"][name], weights, folder / tokenizer))
        if not encoders:
            raise UserError("the pipeline has no text_encoder, which embeds prompts.")
        return {"prompts": embed_prompts(model.prompts, encoders)}

    def licence(self, file: str) -> str:
        return (
            "See where the folder comes from; Stable Diffusion's weights: CreativeML Open RAIL-M (1), "
            "Open RAIL++-M (2, XL)."
        )

    def folder(self, state_dict: StateDict, model: Any, origin: Origin) -> dict[str, Any]:
        return {
            f"{name}/diffusion_pytorch_model.safetensors": _component(state_dict, name)
            for name in ("unet", "vae")
        }

    def lora(self, adapter: Mapping[str, Any], shapes: Mapping[str, Any]) -> dict[str, np.ndarray]:
        """Return a "lora" adapter as the content of diffusers' pytorch_lora_weights.safetensors.

        Other kinds raise a UserError. `shapes` are the shapes of the adapted parts.
        """
        arrays: dict[str, np.ndarray] = {}
        kernels, factors = (flatten_dict(dict(tree), sep="/") for tree in (shapes, adapter))
        for path in dict.fromkeys(path.rpartition("/")[0] for path in factors):
            if f"{path}/down" not in factors:
                raise UserError('only adapters of kind "lora" can be exported as pytorch_lora_weights.')
            shape, key = kernels[path].shape, self.table.key_of(path, len(kernels[path].shape))[0]
            down, up = (np.asarray(factors[f"{path}/{name}"]).T for name in ("down", "up"))
            if len(shape) == 4:
                down = down.reshape(-1, *shape[:3]).transpose(0, 3, 1, 2)
                up = up[..., None, None]
            name = key.removesuffix(".weight")
            arrays |= {f"{name}.lora_A.weight": down, f"{name}.lora_B.weight": up}
        return {key: np.ascontiguousarray(value) for key, value in arrays.items()}


def _component(state_dict: StateDict, name: str) -> StateDict:
    """Return the arrays of one component, without the prefix of their keys."""
    prefix = f"{name}."
    return {key.removeprefix(prefix): x for key, x in state_dict.items() if key.startswith(prefix)}
