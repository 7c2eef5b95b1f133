"""The image source that a configuration names."""

from l2l_jax.data.config import SourceConfig
from l2l_jax.data.digits import DigitsSource
from l2l_jax.data.files import open_csv, open_folder
from l2l_jax.data.records import Source, Split
from l2l_jax.data.tfds_source import open_tfds
from l2l_jax.errors import UserError


def open_source(config: SourceConfig, split: Split, image_size: int) -> Source:
    """The training or test images of a source.

    Args:
      config: which source.
      split: "train" or "test".
      image_size: side in pixels of the images that are no files (the digits).

    Raises:
      UserError: no such source, or it is not where `config.path` says, or holds no images.
    """
    try:
        return _opened(config, split, image_size)
    except OSError as error:
        place = error.filename or config.path
        raise UserError(f"{config.where}: {place} cannot be read ({error.strerror or error}).") from error


def _opened(config: SourceConfig, split: Split, image_size: int) -> Source:
    if config.source == "digits":
        if config.path:
            raise UserError(
                f"{config.where}.path is {config.path!r}, but the source 'digits' reads no files; images of "
                "your own are the source 'folder' or 'csv'."
            )
        return DigitsSource(split, image_size)
    if config.source == "folder":
        return open_folder(config, split)
    if config.source == "csv":
        return open_csv(config, split)
    return open_tfds(config, split)
