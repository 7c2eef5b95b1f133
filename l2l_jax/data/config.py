"""Config of the images: sources, and selection of the forget and retain sets."""

import dataclasses
from typing import Annotated, ClassVar, Literal

import pydantic

from l2l_jax.data.transforms import Scale, Share, TransformConfig

Count = Annotated[int, pydantic.Field(ge=0)]
REST = "rest"  # all classes that no other field names
# Names of sources other than TensorFlow Datasets
OTHER_SOURCES = ("digits", "fashion", "idx", "npz", "folder", "csv")
STRICT = pydantic.ConfigDict(extra="forbid")


def _check_classes(given: object) -> object:
    """Wrap a single class in a tuple; reject 5.0 and True, which could become the id of another class."""
    classes = (given,) if isinstance(given, str | int | float) else given
    for name in classes if isinstance(classes, tuple | list) else ():
        if isinstance(name, bool | float):
            raise ValueError(f"classes are text as typed: write {str(name)!r} with quotes, not {name}")
    return classes


# Classes by name or id; a single class needs no tuple
Classes = Annotated[tuple[str | int, ...], pydantic.BeforeValidator(_check_classes)]


@dataclasses.dataclass(frozen=True)
class SourceConfig:
    """A source of images.

    Attributes:
      source: Name of the source: "digits", the handwritten digits of scikit-learn; "fashion", a bundled
        subset of Fashion-MNIST; "idx", a folder of IDX files such as those of MNIST; "npz", a NumPy file;
        "folder", a folder with one folder of images per class; "csv", a table of image files; or the name of
        a prepared TensorFlow Datasets data set, such as "imagenet2012", "places365_small" or "coco/2017".
      path: Folder or file of the source; data_dir of a TFDS data set (empty: TFDS_DATA_DIR or
        ~/tensorflow_datasets). Local, or gs://.
      test_fraction: Fraction of each class that is held out for testing, always the same images, if the
        source has no test images.
      validation_fraction: Fraction of the training images of each class that is excluded from training,
        always the same images, for retain budgets and for choosing settings.
    """

    where: ClassVar[str] = "config.data"  # used in error messages

    source: str
    path: str = ""
    test_fraction: Annotated[float, pydantic.Field(gt=0, lt=1)] = 0.2
    validation_fraction: Annotated[float, pydantic.Field(ge=0, lt=1)] = 0.0


@dataclasses.dataclass(frozen=True)
class ProxyConfig(SourceConfig):
    """Proxy images from a separate source, with the fields of `SourceConfig` and the following.

    Attributes:
      classes: Classes of the source, as in `DataConfig.retain`; "rest" selects all classes that are neither
        forgotten nor retained. Data sets without classes, such as COCO, have a single class.
      path: As in `SourceConfig`; if proxies and forget images are both from TFDS, empty means the same
        data_dir.
      count: Number of images; 0 means all.
      weight: Share of a batch, relative to the weights of the other proxies.
    """

    __pydantic_config__ = STRICT
    where: ClassVar[str] = "config.data.proxy"

    classes: Classes = (REST,)
    count: Count = 0
    weight: Annotated[float, pydantic.Field(gt=0)] = 1.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class LoadingConfig(TransformConfig):
    """Settings for reading images, with the fields of `TransformConfig` and the following.

    Attributes:
      proxy_crop_scale: `crop_scale` of proxy images; None means `crop_scale`. The paper uses (0.2, 0.5) for
        COCO.
      workers: Number of processes that read and decode training images; 0 uses threads of this process.
      max_bad_fraction: Maximum fraction of the images of a set that cannot be decoded before the run stops.
    """

    proxy_crop_scale: Scale | None = None
    workers: Annotated[int, pydantic.Field(ge=0, le=1024)] = 0
    max_bad_fraction: Annotated[float, pydantic.Field(ge=0, le=1)] = 0.01

    @property
    def proxy_transform(self) -> TransformConfig:
        """Transform settings of proxy images."""
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(TransformConfig)}
        return TransformConfig(**values | {"crop_scale": self.proxy_crop_scale or self.crop_scale})


Proxy = Annotated[
    Annotated[str, pydantic.Tag("(name)")]
    | Annotated[int, pydantic.Tag("(id)")]
    | Annotated[ProxyConfig, pydantic.Tag("(source)")],
    pydantic.Discriminator(lambda x: {str: "(name)", int: "(id)"}.get(type(x), "(source)")),
]
"""A class of the source, or another source; discriminated by type for specific validation errors."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataConfig(SourceConfig, LoadingConfig):
    """The images of a run, with the fields of `SourceConfig` and `LoadingConfig` and the following.

    Classes are given by name, by id, or by WordNet id ("n01443537"). "@FILE" is a file with one class per
    line. "imagenet_i2i" and "places365_i2i" are the published lists of the paper: in `forget` the classes to
    forget, in `retain` those to retain. "rest" is all classes that no other field names. "cat,dog" is the
    same as ("cat", "dog").

    Attributes:
      forget: Classes to forget.
      retain: Classes to retain.
      proxy: Images that replace those of `retain` during unlearning, if retain images are no longer
        available: classes of the source, or other sources, as `{"source": "coco/2017", "weight": 1.0}` with
        the fields of `ProxyConfig`; if empty, the images of `retain` are used. They may be of classes in
        `retain`, but not in `forget`. The evaluation always uses `retain`.
      retain_images: "real", or "generated": images that the original model generates from the proxies, or
        else from noise, replace the retain images during unlearning. The evaluation uses real retain images.
      generated_count: Number of generated images; 0 means as many as there are proxies or forget images.
      prototypes: File of class prototypes to generate images from, in place of proxies or noise. If it does
        not exist, it is computed from the training images; afterwards only the file is read. See
        `l2l_jax.experiment.prototypes`.
      train_per_class: Training images per class, a fixed random choice; 0 means all. The paper uses 120
        (ImageNet-1K) and 5,000 (Places-365).
      test_per_class: Test images per class; 0 means all. The paper uses 50 and 100.
      general: Classes of a third test set, neither forgotten nor retained, which unlearning should not
        harm. "rest": all classes that no other field names; empty: no such set.
      general_images: Maximum number of test images of that set, a fixed random choice; 0 means all.
      retain_ratio: Fraction of the retain images that may be used for training.
      canaries: Number of training images per set that are marked in the middle before the original model is
        trained, to be compared with as many unmarked images. The audit reports how many marks a model
        reconstructs.
    """

    forget: Classes
    retain: Classes = (REST,)
    proxy: tuple[Proxy, ...] = ()
    train_per_class: Count = 0
    test_per_class: Count = 0
    general: Classes = ()
    general_images: Count = 0
    retain_ratio: Share = 1.0
    retain_images: Literal["real", "generated"] = "real"
    generated_count: Count = 0
    prototypes: str = ""
    canaries: Count = 0

    def __post_init__(self):
        super().__post_init__()
        if self.prototypes and (self.proxy or self.retain_images != "generated"):
            raise ValueError(
                "prototypes are the starting points of generated retain images: set retain_images=generated, "
                "and no proxy"
            )
        unused = "which the proxies replace" if self.proxy else "of which none is used with generated ones"
        if (self.proxy or self.retain_images == "generated") and self.retain_ratio != 1:
            raise ValueError(
                f"retain_ratio {self.retain_ratio:g} is a fraction of the retain images, {unused}; "
                "remove one of the two"
            )
