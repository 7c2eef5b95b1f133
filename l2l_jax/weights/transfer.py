"""Import, export and inspection of checkpoints: implementation of the command line."""

import collections
import json
import math
import pathlib
import shutil
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
import safetensors.numpy

from l2l_jax.errors import UserError
from l2l_jax.models import mapping
from l2l_jax.models.base import FAMILIES
from l2l_jax.utils.io import atomic_file, atomic_folder
from l2l_jax.weights import adapters, checkpoints, reading
from l2l_jax.weights.checkpoints import about, build, part_shapes
from l2l_jax.weights.reading import PIPELINE, SAFETENSORS_SUFFIX, SUFFIXES, TORCH_SUFFIXES
from l2l_jax.weights.saved_models import CARD, load_params, read_card, save_model


def import_checkpoint(
    path: pathlib.Path,
    output: pathlib.Path,
    *,
    ema: bool = False,
    vqgan: pathlib.Path | None = None,
    fields: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Convert a checkpoint to a saved model in the folder `output`, and return its metadata.

    Args:
      path: Checkpoint file, Hugging Face folder or pipeline.
      output: Folder to create.
      ema: Whether to use the exponential moving average of the weights.
      vqgan: File of MAGE's VQGAN, if `path` does not hold it.
      fields: Model fields that cannot be inferred from the weights.

    Raises:
      UserError: The output exists, or the checkpoint cannot be read or does not fit; nothing is written.
    """
    check_new(output)
    source, recognized = checkpoints.open_recognized(path, ema=ema, vqgan=vqgan)
    with about(path):
        model, assumed = recognized.model(fields or {})
        params = recognized.params(model)
    card = {
        "family": recognized.family,
        "variant": recognized.variant(),
        "model": model.as_fields(),
        "origin": f"imported from {path.name}",
        "source": source.facts(),
        "licence": recognized.licence,
        "parts": list(params),
        "assumed": assumed,
    }
    save_model(output, params, card)
    return card


def export_model(
    folder: pathlib.Path,
    output: pathlib.Path,
    dtype: str = "float32",
    *,
    adapter: pathlib.Path | None = None,
    lora: bool = False,
    pipeline: pathlib.Path | None = None,
) -> dict[str, Any]:
    """Write a saved model as a checkpoint that the original PyTorch code loads strictly; return its metadata.

    Args:
      folder: Folder of a saved model: imported, or `pretrained` or `unlearned` of a workdir.
      output: File to create, see `SUFFIXES`; without suffix, a Hugging Face folder or pipeline.
      dtype: Dtype of the floating-point arrays, a key of `l2l_jax.models.mapping.FLOATS`.
      adapter: File of an adapter that was trained on this model, to be merged into it.
      lora: Whether to write only the adapter, as diffusers' pytorch_lora_weights.safetensors.
      pipeline: Folder of the pipeline that a diffusers model was imported from; None: its path at import.

    Raises:
      UserError: There is no saved model, this version cannot build it, the adapter belongs to another model,
        the pipeline is missing, or the output exists.
    """
    card = read_card(folder) if (folder / CARD).is_file() else {}
    family = card.get("family", "")
    formats = FAMILIES[family].FORMATS if family in FAMILIES else ()
    folders = [kind for kind in formats if kind.is_folder]
    check_output(output, folders=bool(folders) and not lora)
    card = read_card(folder)
    if not formats:
        names = ", ".join(family for family in FAMILIES if FAMILIES[family].FORMATS)
        raise UserError(f"{folder} holds a {family} model, which has no PyTorch format; known: {names}.")
    model = build(family, card["model"])
    shapes = model.shapes()
    params = load_params(folder, {part: shapes[part] for part in card.get("parts", shapes)})
    if lora:
        if adapter is None or output.suffix != SAFETENSORS_SUFFIX:
            raise UserError("--lora writes an adapter alone: give --adapter FILE, --output NAME.safetensors.")
        content = formats[0].lora(adapters.read_adapter(adapter, params, family, model), params)
        write_checkpoint(output, {key: value.astype(mapping.FLOATS[dtype]) for key, value in content.items()})
        return card
    if adapter is not None:
        params = adapters.with_adapter(adapter, params, family, model)
    kind = formats[0] if output.suffix or not folders else folders[0]
    weights = {part: params[part] for part in kind.parts}
    state_dict = mapping.to_torch(kind.table, weights, model, mapping.FLOATS[dtype])
    if not kind.is_folder:
        write_checkpoint(output, state_dict, kind.wrapper)
    elif output.suffix:
        raise UserError(f"--output {output}: a Hugging Face folder has no suffix.")
    else:
        origin = _origin(card)
        content = kind.folder(state_dict, model, origin)
        if pipeline or "pipeline" in origin:
            content = other_components(pipeline or pathlib.Path(origin["pipeline"])) | content
        write_folder(output, content)
    return card


def _origin(card: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the metadata of the checkpoint that a model (or its original model) was imported from."""
    source = card.get("source", card)
    while "file" not in source and "original_weights" in source:
        source = source["original_weights"]
    return source


def other_components(folder: pathlib.Path) -> dict[str, Any]:
    """Return the files of a pipeline for `write_folder`, without the weights of U-Net and autoencoder.

    Text files are copied. model_index.json lists only existing components. Weights in any format are written
    as model.safetensors.
    """
    if not (folder / PIPELINE).is_file():
        raise UserError(
            f"{folder}, the pipeline that the model was imported from, does not exist. Its text encoder and "
            "tokenizer are needed: name a copy with --pipeline FOLDER."
        )
    files: dict[str, Any] = {}
    for place in (folder, *sorted(path for path in folder.iterdir() if path.is_dir())):
        texts = [path for path in place.glob("*") if path.suffix in (".json", ".txt", ".md")]
        files |= {str(path.relative_to(folder)): path for path in texts if ".index." not in path.name}
        weights = [path for path in place.glob("*") if path.suffix in (SAFETENSORS_SUFFIX, ".bin")]
        if weights and place != folder and place.name not in ("unet", "vae"):
            files[f"{place.name}/model.safetensors"] = reading.component_weights(place).state_dict
    index = json.loads((folder / PIPELINE).read_text("utf-8"))
    named = [name for name, kind in index.items() if isinstance(kind, list) and any(kind)]
    absent = [name for name in named if not (folder / name).is_dir()]
    if absent:  # such as a safety checker that was not downloaded
        files[PIPELINE] = index | dict.fromkeys(absent, [None, None])
    return files


def inspect(
    path: pathlib.Path,
    *,
    ema: bool = False,
    vqgan: pathlib.Path | None = None,
    fields: Mapping[str, Any] | None = None,
) -> dict[str, str]:
    """Describe a checkpoint or a saved model, as text by heading, without importing it.

    The options are those of `import_checkpoint`. A checkpoint that can be read but not imported is described,
    with the reason.
    """
    if (path / CARD).is_file():
        return {key: _text(value) for key, value in read_card(path).items()}
    adapter = adapters.read_card(path)
    if adapter is not None:
        size = f"{path.name}, {path.stat().st_size / 1e6:,.2f} MB, merged into its model by export --adapter"
        return {"file": size, **{key: _text(value) for key, value in adapter.items()}}
    source = checkpoints.open_checkpoint(path, ema=ema, vqgan=vqgan)
    megabytes = sum(file.stat().st_size for file in source.files) / 1e6
    arrays = list(source.state_dict.values())
    values = sum(math.prod(array.shape) for array in arrays)
    kinds = collections.Counter(str(array.dtype) for array in arrays)
    counts = ", ".join(f"{number} {kind}" for kind, number in kinds.most_common())
    facts = {
        "file": f"{path.name}, {source.kind}, {megabytes:,.1f} MB",
        "sha256": source.sha256(),
        "holds": ", ".join(name or "state dict" for name in source.copies),
        "arrays": f"{len(arrays)} with {values:,} values: {counts}",
    }
    if source.left_out:
        facts["left out"] = mapping.listing(source.left_out)
    try:
        recognized = checkpoints.recognize(source.state_dict, source.origin)
        facts |= {"family": recognized.family, "variant": recognized.variant() or "no published size"}
        model, assumed = recognized.model(fields or {})
        names = dict.fromkeys((*recognized.sizes, *model.TRAINED_WITH))
        facts["model"] = _text({name: checkpoints.field(model, name) for name in names})
        facts["assumed"] = _text(assumed) or "nothing"
        shapes = part_shapes(model, recognized.format.parts)
        fit = mapping.fit(recognized.format.table, recognized.state_dict, shapes)
    except UserError as error:
        return facts | {"import": f"not possible: {error}"}
    facts |= {"missing": mapping.listing(fit.missing), "unexpected": mapping.listing(fit.unexpected)}
    facts["licence"] = recognized.licence
    if not fit.complaint():
        return facts | {"import": "possible"}
    if fit.misshapen:
        facts["misshapen"] = mapping.listing(fit.misshapen)
    return facts | {"import": "not possible: it must hold exactly what the model needs"}


def _text(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{key}={inner}" for key, inner in value.items())
    return str(value)


def check_new(path: pathlib.Path) -> None:
    """Raise a UserError if the output exists."""
    if path.exists():
        raise UserError(f"{path} exists. Choose another --output, or delete it first.")


def check_output(path: pathlib.Path, folders: bool = False) -> None:
    """Raise a UserError if the output exists or does not have the suffix of a checkpoint."""
    check_new(path)
    if path.name.endswith(TORCH_SUFFIXES):
        reading.import_torch()
    elif path.suffix != SAFETENSORS_SUFFIX and not (folders and not path.suffix):
        raise UserError(f"--output {path}: its name must end in {', '.join(SUFFIXES)}.")


def write_checkpoint(path: pathlib.Path, state_dict: Mapping[str, np.ndarray], wrapper: str = "") -> None:
    """Write contiguous arrays; PyTorch files hold `{wrapper: state_dict}`. See `check_output` for errors."""
    check_output(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_file(path) as unfinished:
        if path.suffix == SAFETENSORS_SUFFIX:
            _write_safetensors(unfinished, state_dict)
        else:
            _write_torch(unfinished, state_dict, wrapper)


def write_folder(path: pathlib.Path, content: Mapping[str, Any]) -> None:
    """Write a folder of JSON objects (`.json`), state dicts (`.safetensors`) and copied paths, by name."""
    with atomic_folder(path) as unfinished:
        for name, value in content.items():
            (unfinished / name).parent.mkdir(exist_ok=True)
            if isinstance(value, pathlib.Path):
                shutil.copyfile(value, unfinished / name)
            elif name.endswith(SAFETENSORS_SUFFIX):
                _write_safetensors(unfinished / name, value)
            else:
                (unfinished / name).write_text(json.dumps(value, indent=2) + "\n", "utf-8")


def _write_safetensors(path: pathlib.Path, state_dict: Mapping[str, Any]) -> None:
    path.touch()
    mode = path.stat().st_mode
    arrays = {key: np.asarray(value) for key, value in state_dict.items()}
    # transformers rejects files without this "pt".
    safetensors.numpy.save_file(arrays, path, metadata={"format": "pt"})
    path.chmod(mode)  # safetensors creates files that other users cannot read


def _write_torch(path: pathlib.Path, state_dict: Mapping[str, np.ndarray], wrapper: str) -> None:
    torch = reading.import_torch()

    def tensor(array: np.ndarray) -> Any:
        if array.dtype == jnp.bfloat16:
            return torch.tensor(array.view(np.int16)).view(torch.bfloat16)
        return torch.tensor(array)

    tensors = {key: tensor(array) for key, array in state_dict.items()}
    torch.save({wrapper: tensors} if wrapper else tensors, path)
