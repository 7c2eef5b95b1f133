"""Models of the Hugging Face hub: `hf://ORGANIZATION/NAME` or `hf://ORGANIZATION/NAME@REVISION`."""

import pathlib

from l2l_jax.errors import UserError

HUB = "hf://"

JSON = ["config.json", "preprocessor_config.json", "*.index.json"]


def download(name: str) -> pathlib.Path:
    """Download a model into the hub's cache, or find it there; interrupted downloads resume.

    `HF_HOME` and `HF_HUB_OFFLINE` are honored.

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
    try:
        for weights in ("*.safetensors", "pytorch_model*.bin"):
            patterns = [*JSON, weights]
            folder = huggingface_hub.snapshot_download(
                repository, revision=revision or None, allow_patterns=patterns
            )
            path = pathlib.Path(folder)
            if any(path.glob(weights)):
                return path
    except (OSError, ValueError) as error:  # of the hub, of connections, and of names
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{HUB}{name} cannot be downloaded ({reason}). {_by_hand(name)}") from error
    raise UserError(f"{HUB}{name} holds no weights in model.safetensors or pytorch_model.bin.")


def _by_hand(name: str) -> str:
    repository = name.partition("@")[0]
    return (
        "Without a connection to the Internet, download it elsewhere, as with `hf download "
        f"{repository} --local-dir FOLDER`, and give FOLDER."
    )
