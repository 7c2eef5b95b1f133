"""What a model family tells about its PyTorch checkpoints."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from l2l_jax.models.mapping import Table

Origin = Mapping[str, Any]
"""What a checkpoint says besides its arrays: "file", its name; "args", the arguments of the training program;
"config" and "preprocessor", the JSON files of a Hugging Face folder. Each but "file" may be missing."""

StateDict = Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class CheckpointFormat:
    """One format of the PyTorch checkpoints of a model family.

    Attributes:
      table: Rules from keys to parameters, after `unwrap`; the config of `Constant` is the model.
      parts: Parts of the parameters that a checkpoint holds.
      recognize: `state dict -> bool`, by its keys; raises a UserError that describes a part of a model.
      sizes: `state dict -> fields` of the model that shapes show.
      published: Fields of the published models by name, where they differ from the defaults.
      hidden: Fields that shapes do not show and that cannot be guessed for unpublished models.
      stated: `(origin, sizes) -> fields` that the checkpoint states.
      guessed: `(origin, sizes) -> fields` that are likely, but neither shown nor stated.
      licence: `file name -> licence` of the weights; "" if it is not known.
      wrapper: Key under which PyTorch files hold the state dict.
      unwrap: `state dict -> state dict` with the keys of `table`.
      join: `(state dict, state dict of a second file) -> state dict`, where a model may come in two files.
      folder: `(state dict, model, origin) -> {file name: state dict or JSON object}`, where the format is a
        folder.
    """

    table: Table
    parts: tuple[str, ...]
    recognize: Callable[[StateDict], bool]
    sizes: Callable[[StateDict], dict[str, Any]]
    published: Mapping[str, dict[str, Any]] = dataclasses.field(default_factory=dict)
    hidden: tuple[str, ...] = ()
    stated: Callable[[Origin, dict[str, Any]], dict[str, Any]] = lambda origin, sizes: {}
    guessed: Callable[[Origin, dict[str, Any]], dict[str, Any]] = lambda origin, sizes: {}
    licence: Callable[[str], str] = lambda file: ""
    wrapper: str = ""
    unwrap: Callable[[StateDict], StateDict] = lambda state_dict: state_dict
    join: Callable[[StateDict, StateDict], dict[str, Any]] | None = None
    folder: Callable[[StateDict, Any, Origin], dict[str, Any]] | None = None
