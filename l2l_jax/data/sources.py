"""The image source that a configuration names."""

from l2l_jax.data.config import SourceConfig
from l2l_jax.data.digits import DigitsSource
from l2l_jax.data.fashion import open_fashion
from l2l_jax.data.files import FileSource, open_csv, open_folder
from l2l_jax.data.idx import open_idx
from l2l_jax.data.npz import open_npz
from l2l_jax.data.records import Source, Split, Subset, held_out
from l2l_jax.data.tfds_source import open_tfds
from l2l_jax.errors import UserError


def open_source(config: SourceConfig, split: Split, image_size: int) -> Source:
    """The training, validation or test images of a source.

    Validation images are a share of the source's own training images, `config.validation_fraction`.

    Args:
      config: which source.
      split: "train", "validation" or "test".
      image_size: side in pixels of the images that are not files (the digits).

    Raises:
      UserError: no such source, or it is not where `config.path` says, or holds no images.
    """
    try:
        source = _opened(config, "test" if split == "test" else "train", image_size)
    except OSError as error:
        place = error.filename or config.path
        raise UserError(f"{config.where}: {place} cannot be read ({error.strerror or error}).") from error
    if split == "test" or not (config.validation_fraction or split == "validation"):
        return source
    return _kept_or_held_out(config, source, split)


def _kept_or_held_out(config: SourceConfig, source: Source, split: Split) -> Source:
    """The training images of a source that are, or are not, validation images."""
    if not config.validation_fraction:
        raise UserError(
            f"{config.where}.validation_fraction is 0, so that there are no validation images; 0.1 would "
            "keep one training image in ten for them."
        )
    names = source.paths if isinstance(source, FileSource) else list(map(str, range(len(source))))
    kept, held = held_out(names, source.labels, config.validation_fraction)
    return Subset(source, held if split == "validation" else kept)


def _opened(config: SourceConfig, split: Split, image_size: int) -> Source:
    if config.source in ("digits", "fashion"):
        if config.path:
            raise UserError(
                f"{config.where}.path is {config.path!r}, but the source {config.source!r} reads no files; "
                "images of your own are the source 'folder', 'csv' or 'idx'."
            )
        return DigitsSource(split, image_size) if config.source == "digits" else open_fashion(split)
    if config.source == "idx":
        return open_idx(config, split)
    if config.source == "npz":
        return open_npz(config, split)
    if config.source == "folder":
        return open_folder(config, split)
    if config.source == "csv":
        return open_csv(config, split)
    return open_tfds(config, split)
