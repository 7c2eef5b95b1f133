"""Which model a state dict belongs to, and everything that moving its weights takes, by family."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import pydantic

from l2l_jax.errors import UserError
from l2l_jax.models.base import Model
from l2l_jax.models.mae import convert as mae
from l2l_jax.models.mage import convert as mage
from l2l_jax.models.palette import convert as palette
from l2l_jax.models.registry import FAMILIES
from l2l_jax.weights.mapping import Table, listing


@dataclasses.dataclass(frozen=True)
class Family:
    """What a family's checkpoints look like.

    Attributes:
      name: key of `l2l_jax.models.registry.FAMILIES`.
      table: rules of the mapping.
      parts: the parts of the parameters that a checkpoint holds.
      sizes: `state dict -> fields` of the model that shapes show.
      published: the published models: their fields, where they differ from the defaults.
      hidden: fields that shapes do not show and that nobody can guess for models that are not published.
      trained_with: fields that shapes do not show and with which weights must be used.
      licence: of the published weights.
      wrapper: the name under which PyTorch checkpoints of the family hold their state dict.
      guesses: `(file name, sizes) -> fields` that are likely but neither given nor shown.
      canonical: the model with fields that mean the same written the same way.
      unwrap, wrap: `(state dict, model) -> state dict`, from what is saved to what `table` names, and
        back.
      other_parts: `model -> parts` that no checkpoint holds and that follow from the model.
    """

    name: str
    table: Table
    parts: tuple[str, ...]
    sizes: Callable[[Mapping[str, Any]], dict[str, Any]]
    published: dict[str, dict[str, Any]]
    hidden: tuple[str, ...]
    trained_with: tuple[str, ...]
    licence: str
    wrapper: str = ""
    guesses: Callable[[str, Mapping[str, Any]], dict[str, Any]] = lambda name, sizes: {}
    canonical: Callable[[Any], Any] = lambda model: model
    unwrap: Callable[[Mapping[str, Any], Any], Mapping[str, Any]] = lambda state, model: state
    wrap: Callable[[Mapping[str, Any], Any], Mapping[str, Any]] = lambda state, model: state
    other_parts: Callable[[Any], dict[str, Any]] = lambda model: {}

    def build(self, fields: Mapping[str, Any]) -> Model:
        """The model with these fields, checked.

        Raises:
          UserError: a field that does not exist, or a value that it cannot have.
        """
        cls = FAMILIES[self.name]
        known = [field.name for field in dataclasses.fields(cls)]
        for name in fields:
            if name not in known:
                raise UserError(f"a {self.name} model has no field {name}; known: {', '.join(known)}.")
        try:
            return pydantic.TypeAdapter(cls).validate_python(dict(fields))
        except pydantic.ValidationError as error:
            first = error.errors()[0]
            where = f"{first['loc'][0]}: " if first["loc"] else ""
            raise UserError(f"no {self.name} model of these sizes: {where}{first['msg']}.") from error

    def variant(self, sizes: Mapping[str, Any]) -> str | None:
        """Name of the published model of these sizes, if there is one."""
        for name, fields in self.published.items():
            model = self.canonical(self.build(fields))
            if all(getattr(model, field) == value for field, value in sizes.items()):
                return name
        return None

    def infer(
        self, state_dict: Mapping[str, Any], file_name: str, given: Mapping[str, Any]
    ) -> tuple[str | None, Model]:
        """The published model's name, if it is one, and the model that a state dict belongs to.

        Args:
          state_dict: things with a `shape`, by key.
          file_name: name of the file.
          given: fields that the user names.

        Raises:
          UserError: sizes that cannot be told; a field that weights do not show and that was not
            given; a given field that contradicts the weights.
        """
        sizes = self.sizes(state_dict)
        variant = self.variant(sizes)
        for name, value in given.items():
            if name in sizes and sizes[name] != value:
                raise UserError(f"{name} is {sizes[name]} in the weights, not {value}.")
        if variant is None:
            unknown = [name for name in self.hidden if name not in given]
            if unknown:
                known = ", ".join(f"{name} {value}" for name, value in sizes.items())
                options = " ".join(f"--set {name}=…" for name in unknown)
                raise UserError(
                    f"this {self.name} model has no published size ({known}), and its weights do not "
                    f"show {', '.join(unknown)}: add {options}"
                )
        published = self.published.get(variant or "", {})
        fields = {**self.guesses(file_name, sizes), **published, **sizes, **given}
        return variant, self.build(fields)

    def target(self, model: Model) -> dict[str, Any]:
        """Shapes of the parameters that a checkpoint holds, by part.

        Raises:
          UserError: parameters of such shapes cannot be.
        """
        try:
            shapes = model.shapes()
        except (ValueError, TypeError, ArithmeticError) as error:
            reason = " ".join(str(error).split())[:160]
            raise UserError(f"no {self.name} model of these sizes can be built ({reason}).") from error
        return {part: shapes[part] for part in self.parts}


HEADS = ("num_heads", "decoder_num_heads")

KNOWN = {
    family.name: family
    for family in (
        Family(
            name="mae",
            table=mae.TABLE,
            parts=("encoder", "decoder"),
            sizes=mae.sizes,
            published=mae.PUBLISHED,
            hidden=HEADS,
            trained_with=(
                "image_size",
                *HEADS,
                "norm_pix_loss",
                "pixel_mean",
                "pixel_std",
                "value_range",
            ),
            licence="The weights published by facebookresearch/mae are under CC BY-NC 4.0, and so is "
            "what is made from them: no commercial use.",
            wrapper="model",
            guesses=mae.guesses,
        ),  # fmt: skip
        Family(
            name="mage",
            table=mage.TABLE,
            parts=("tokenizer", "encoder", "decoder", "unused"),
            sizes=mage.sizes,
            published=mage.PUBLISHED,
            hidden=HEADS,
            trained_with=(*HEADS, "groups", "value_range"),
            licence="See where the file comes from.",
            wrapper="model",
        ),
        Family(
            name="palette",
            table=palette.TABLE,
            parts=("encoder", "decoder"),
            sizes=palette.sizes,
            published=palette.PUBLISHED,
            hidden=("image_size", "num_head_channels"),
            trained_with=(
                "num_head_channels",
                "norm_groups",
                "schedule",
                "timesteps",
                "linear_start",
                "linear_end",
                "value_range",
            ),
            licence="See where the file comes from.",
            canonical=palette.canonical,
            unwrap=palette.unet_state_dict,
            wrap=palette.network_state_dict,
            other_parts=lambda model: {"holes": model.mask_bank()},
        ),  # fmt: skip
    )
}
"""The families whose weights can be moved, by name."""


def recognise(state_dict: Mapping[str, Any]) -> Family:
    """The family of a state dict, by its keys alone.

    Raises:
      UserError: it belongs to none, or is only a piece of a model; the message says which.
    """
    keys = set(state_dict)
    if "token_emb.word_embeddings.weight" in keys:
        return KNOWN["mage"]
    if any(key.removeprefix(palette.STUDENT).startswith("input_blocks.0.0.") for key in keys):
        return KNOWN["palette"]
    if "quantize.embedding.weight" in keys:
        raise UserError("this is a VQGAN alone: give MAGE's own file, and this one with it as --vqgan FILE.")
    if "patch_embed.proj.weight" in keys:
        if any(key.startswith("decoder_") for key in keys):
            return KNOWN["mae"]
        raise UserError(
            "this is the encoder of a ViT (MAE) without a decoder. Restoring images, and judging by "
            "them what was forgotten, needs the decoder that belongs to it. Files with a decoder: "
            f"{mae.WITH_DECODER}."
        )
    if keys and all(key.endswith(("/down", "/up", "/delta")) for key in keys):
        raise UserError(
            "this is an adapter, not a model: merge it into the one that it was trained on, with python -m "
            "l2l_jax.weights export FOLDER --adapter FILE --output FILE."
        )
    raise UserError(
        f"these are not weights of MAE, MAGE or Palette: the keys are {listing(sorted(keys), 4)}."
    )
