"""Models of the Hugging Face hub: `hf://ORGANIZATION/NAME` or `hf://ORGANIZATION/NAME@REVISION`."""

import functools
import pathlib

from l2l_jax.errors import UserError
from l2l_jax.weights.reading import PIPELINE

HUB = "hf://"

TEXTS = ["config.json", "preprocessor_config.json", "*.index*.json"]
COMPONENTS = ["scheduler", "unet", "vae", *("text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2")]
TEXTS += [PIPELINE, *(f"{name}/*.{kind}" for name in COMPONENTS for kind in ("json", "txt"))]
"""Files besides the weights, of models and of pipelines of diffusers."""

WEIGHTS: tuple[tuple[str, list[str]], ...] = (
    ("*.safetensors", ["*.fp16.*", "*.non_ema.*"]),
    ("*.fp16.safetensors", []),
    ("*model*.bin", []),
)
"""Patterns of weights, the best first, and of files that are no such weights."""


def download(name: str) -> pathlib.Path:
    """Download a model into the hub's cache, or find it there; interrupted downloads resume.

    Of a pipeline, the components that make images and embed prompts are downloaded, in full precision if they
    are stored so. `HF_HOME` and `HF_HUB_OFFLINE` are honored.

    Raises:
      UserError: huggingface_hub is not installed, or the model cannot be downloaded.
    """
    try:
        import huggingface_hub  # an optional extra
    except ImportError as error:
        raise UserError(
            f"{HUB}{name} needs huggingface_hub: pip install huggingface_hub. {_by_hand(name)}"
        ) from error
    repository, _, revision = name.partition("@")
    fetch = functools.partial(huggingface_hub.snapshot_download, repository, revision=revision or None)
    try:
        is_pipeline = (pathlib.Path(fetch(allow_patterns=TEXTS)) / PIPELINE).is_file()
        for weights, others in WEIGHTS:
            patterns = [f"{name}/{weights}" for name in COMPONENTS] if is_pipeline else [weights]
            path = pathlib.Path(fetch(allow_patterns=[*TEXTS, *patterns], ignore_patterns=others))
            if any((path / "unet" if is_pipeline else path).glob(weights)):
                return path
    except (OSError, ValueError) as error:  # of the hub, of connections, and of names
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{HUB}{name} cannot be downloaded ({reason}). {_by_hand(name)}") from error
    raise UserError(f"{HUB}{name} holds no weights in safetensors or *model.bin files.")


def _by_hand(name: str) -> str:
    repository = name.partition("@")[0]
    return (
        "Without a connection to the Internet, download it elsewhere, as with `hf download "
        f"{repository} --local-dir FOLDER`, and give FOLDER."
    )
