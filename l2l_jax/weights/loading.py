"""Loading of models: saved folders, checkpoints, Hugging Face folders and hub, shipped models, adapters."""

import contextlib
import functools
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from l2l_jax import shipped
from l2l_jax.errors import UserError
from l2l_jax.models.base import FAMILIES, Model, Params
from l2l_jax.weights import adapters
from l2l_jax.weights.checkpoints import about, build, field, open_recognized
from l2l_jax.weights.reading import PIPELINE
from l2l_jax.weights.saved_models import CARD, load_params, read_card

HUB = "hf://"  # prefix of ORGANIZATION/NAME or ORGANIZATION/NAME@REVISION
TEXTS = ["config.json", "preprocessor_config.json", "*.index*.json"]
COMPONENTS = ["scheduler", "unet", "vae", *("text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2")]
TEXTS += [PIPELINE, *(f"{name}/*.{kind}" for name in COMPONENTS for kind in ("json", "txt"))]
"""Patterns of files to download in addition to the weights, for models and diffusers pipelines."""

WEIGHTS: tuple[tuple[str, list[str]], ...] = (
    ("*.safetensors", ["*.fp16.*", "*.non_ema.*"]),
    ("*.fp16.safetensors", []),
    ("*model*.bin", []),
)
"""Patterns of weight files in order of preference, with patterns to exclude."""


def load_model(
    path: str | pathlib.Path, *, adapter: str | pathlib.Path | None = None, **fields: Any
) -> tuple[Model, Params]:
    """Load a model and its parameters; all sizes come from its metadata, config.json or the weights.

    Args:
      path: Folder of a saved model, such as `runs/x/unlearned`; name of a shipped model; checkpoint file;
        Hugging Face folder, or `hf://ORGANIZATION/NAME`.
      adapter: File of an adapter that was trained on this model, to be merged into it.
      **fields: Model fields to override, or that cannot be inferred from the weights.

    Raises:
      UserError: There is no model, it cannot be read, or fields are missing or contradict the weights.
    """
    path = locate(path)
    family, stored, hidden = stored_fields(path)
    with about(path):
        unknown = [name for name in hidden if name not in fields]
        if unknown:
            flags = " ".join(f"{name}=…" for name in unknown)
            raise UserError(f"its weights do not show {', '.join(unknown)}: give {flags}")
        model = build(family, {**stored, **fields})
    params = load_pretrained(path, family, model)
    if adapter is not None:
        params = adapters.with_adapter(pathlib.Path(adapter), params, family, model)
    return model, params


def locate(given: str | pathlib.Path) -> pathlib.Path:
    """Resolve the name of a shipped model, `hf://ORGANIZATION/NAME` (downloaded), or a path, to a path."""
    text = str(given)
    return download(text.removeprefix(HUB)) if text.startswith(HUB) else shipped.resolved(text)


def download(name: str) -> pathlib.Path:
    """Download a model into the hub's cache unless it is there; interrupted downloads resume.

    For a pipeline, the components that generate images and embed prompts are downloaded, in full precision
    if available. `HF_HOME` and `HF_HUB_OFFLINE` are respected.

    Raises:
      UserError: huggingface_hub is not installed, or the model cannot be downloaded.
    """
    repository, _, revision = name.partition("@")
    by_hand = (
        "Without a connection to the Internet, download it elsewhere, as with `hf download "
        f"{repository} --local-dir FOLDER`, and give FOLDER."
    )
    try:
        import huggingface_hub  # optional dependency
    except ImportError as error:
        needed = f"{HUB}{name} needs huggingface_hub: pip install huggingface_hub."
        raise UserError(f"{needed} {by_hand}") from error
    fetch = functools.partial(huggingface_hub.snapshot_download, repository, revision=revision or None)
    try:
        is_pipeline = (pathlib.Path(fetch(allow_patterns=TEXTS)) / PIPELINE).is_file()
        for weights, others in WEIGHTS:
            patterns = [f"{name}/{weights}" for name in COMPONENTS] if is_pipeline else [weights]
            path = pathlib.Path(fetch(allow_patterns=[*TEXTS, *patterns], ignore_patterns=others))
            if any((path / "unet" if is_pipeline else path).glob(weights)):
                return path
    except (OSError, ValueError) as error:  # hub errors, connection errors, invalid names
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{HUB}{name} cannot be downloaded ({reason}). {by_hand}") from error
    raise UserError(f"{HUB}{name} holds no weights in safetensors or *model.bin files.")


def _card(path: pathlib.Path) -> dict[str, Any] | None:
    """Return the metadata of a saved or shipped model, or None for a checkpoint."""
    if not path.exists():
        raise UserError(
            f"config.model.pretrained={path} does not exist; it should be a folder of a saved model, such as "
            "runs/digits_mae/pretrained, a checkpoint file, a Hugging Face folder, hf://ORGANIZATION/NAME, "
            f"or a shipped model: {', '.join(shipped.names())}."
        )
    if path.parent == shipped.FOLDER:
        return shipped.card(path.stem)
    imported = any((path / name).is_file() for name in ("config.json", PIPELINE))
    if path.is_dir() and ((path / CARD).is_file() or not imported):
        return read_card(path)
    return None


def stored_fields(path: str | pathlib.Path) -> tuple[str, dict[str, Any], tuple[str, ...]]:
    """Return a model's family, the fields stored with its weights, and the fields that must be specified."""
    path = locate(path)
    card = _card(path)
    if card is None:
        _, recognized = open_recognized(path)
        with about(path):
            return recognized.family, recognized.fields(), recognized.unknown()
    family = str(card.get("family"))
    if family not in FAMILIES:
        raise UserError(f"{path}: this is a {family} model; known: {', '.join(FAMILIES)}.")
    return family, card.get("model", {}), ()


def load_pretrained(path: pathlib.Path, family: str, model: Model) -> Params:
    """Load all parts of `config.model.pretrained` and check them against the config's family and model."""
    path = locate(path)
    card = _card(path)
    if card is not None and path.parent != shipped.FOLDER:
        return _load_saved(path, card, family, model)
    _, recognized = open_recognized(path)
    with about(path):
        _check_family(recognized.family, family)
        if card is None:
            _check_fields(recognized.certain_fields(), model.canonical())
        else:
            _check_card(card, model, recognized.format.parts)
        return recognized.params(model) | model.derived_parts()


def _load_saved(path: pathlib.Path, card: Mapping[str, Any], family: str, model: Model) -> Params:
    with about(path):
        _check_family(card.get("family"), family)
        shapes = model.shapes()
        parts = card.get("parts", list(shapes))
        if unknown := [part for part in map(str, parts) if part not in shapes]:
            raise UserError(f"its model.json is damaged: a {family} model has no part {unknown[0]!r}.")
        _check_card(card, model, parts)
    params = load_params(path, {part: shapes[part] for part in parts})
    return params if len(parts) == len(shapes) else params | model.derived_parts()


def _check_family(stored: Any, expected: str) -> None:
    if stored is None:
        raise UserError("its model.json does not name the model's family: the folder is damaged.")
    if stored != expected:
        raise UserError(f"this is a {stored} model, but config.model.family is {expected}.")


def _check_fields(stored: Mapping[str, Any], model: Model) -> None:
    for name, value in stored.items():
        expected = field(model, name)
        if value != expected:
            raise UserError(
                f"this model has {name}={value}, but config.model.{name} is {expected}. Make them agree, or "
                "name other weights."
            )


def _check_card(card: Mapping[str, Any], model: Model, parts: Sequence[str]) -> None:
    """Raise a UserError for the first field that differs and affects the weights or the shapes of parts."""
    saved = build(FAMILIES.name_of(type(model)), card.get("model", {}))
    _check_fields({name: field(saved, name) for name in model.TRAINED_WITH}, model)

    def shapes(candidate: Model) -> Params:
        all_shapes = candidate.shapes()
        return {part: all_shapes[part] for part in parts}

    expected = shapes(model)
    if shapes(saved) == expected:
        return
    for name, value in saved.as_fields().items():
        with contextlib.suppress(ValueError):  # the sizes are invalid
            if shapes(model.replace(**{name: value})) == expected:
                continue
        _check_fields({name: value}, model)


def original_weights(path: pathlib.Path) -> dict[str, Any]:
    """Return JSON-serializable metadata of weights: origin, SHA-256 and license.

    A locally trained model does not come from a file and has no SHA-256. For a model that was unlearned, the
    metadata of its original is stored under "original_weights".
    """
    path = locate(path)
    card = _card(path)
    if card is None:
        source, recognized = open_recognized(path)
        return {"origin": f"read from {path.name}", **source.facts(), "licence": recognized.licence}
    if path.parent == shipped.FOLDER:
        facts = {name: card[name] for name in ("sha256", "trained_on", "seed", "licence")}
        return {"origin": f"the shipped model {path.stem}", **facts}
    facts = {"origin": card.get("origin", "unknown"), **card.get("source", {})}
    return facts | {name: card[name] for name in ("licence", "original_weights") if name in card}
