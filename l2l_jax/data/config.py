"""The config of the images: where they come from, and which are forgotten and retained."""

import dataclasses
from typing import Annotated, ClassVar, Literal

import pydantic

from l2l_jax.data.transforms import Scale, Share, TransformConfig

Count = Annotated[int, pydantic.Field(ge=0)]
REST = "rest"  # stands for all classes that are named nowhere else
# Names of sources other than the data sets of TensorFlow Datasets
OTHER_SOURCES = ("digits", "fashion", "idx", "npz", "folder", "csv")
STRICT = pydantic.ConfigDict(extra="forbid")


def _check_classes(given: object) -> object:
    """Make one class a tuple; refuse 5.0 and True, which might become the number of another class."""
    classes = (given,) if isinstance(given, str | int | float) else given
    for name in classes if isinstance(classes, tuple | list) else ():
        if isinstance(name, bool | float):
            raise ValueError(f"classes are text as typed: write {str(name)!r} with quotes, not {name}")
    return classes


# Classes by name or id; one alone may stand without brackets
Classes = Annotated[tuple[str | int, ...], pydantic.BeforeValidator(_check_classes)]


@dataclasses.dataclass(frozen=True)
class SourceConfig:
    """A source of images.

    Attributes:
      source: "digits", the handwritten digits of scikit-learn; "fashion", a subset of Fashion-MNIST that is
        part of this package; "idx", a folder of IDX files such as those of MNIST; "npz", a NumPy file;
        "folder", a folder with a folder of images for each class; "csv", a table of image files; or a
        prepared data set of TensorFlow Datasets by its name, such as "imagenet2012", "places365_small" or
        "coco/2017".
      path: Folder or file of the source; data_dir of a TFDS data set (empty: TFDS_DATA_DIR or
        ~/tensorflow_datasets). Local, or gs://.
      test_fraction: Share of each class that is held out for testing, always the same images, where the
        source has no test images of its own.
      validation_fraction: Share of the training images of each class that nothing is trained on, always the
        same ones: for retain budgets, and for choosing settings.
    """

    where: ClassVar[str] = "config.data"  # for messages

    source: str
    path: str = ""
    test_fraction: Annotated[float, pydantic.Field(gt=0, lt=1)] = 0.2
    validation_fraction: Annotated[float, pydantic.Field(ge=0, lt=1)] = 0.0


@dataclasses.dataclass(frozen=True)
class ProxyConfig(SourceConfig):
    """Proxy images from a source of their own. It has the fields of `SourceConfig`, too.

    Attributes:
      classes: Classes of the source, as in `DataConfig.retain`; "rest": all that are neither forgotten nor
        retained. Data sets without classes, such as COCO, have one.
      path: As in `SourceConfig`; if the proxies and the images to forget are both of TFDS, empty is the same
        data_dir.
      count: Number of images; 0: all.
      weight: Share of a batch, relative to the weights of the other proxies.
    """

    __pydantic_config__ = STRICT
    where: ClassVar[str] = "config.data.proxy"

    classes: Classes = (REST,)
    count: Count = 0
    weight: Annotated[float, pydantic.Field(gt=0)] = 1.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class LoadingConfig(TransformConfig):
    """Settings of reading images. It has the fields of `TransformConfig`, too.

    Attributes:
      proxy_crop_scale: `crop_scale` of proxy images; None: the same. The paper has (0.2, 0.5) for COCO.
      workers: Processes that read and decode training images; 0: threads of this process.
      max_bad_fraction: Share of the images of a set that may be impossible to decode before the run stops.
    """

    proxy_crop_scale: Scale | None = None
    workers: Annotated[int, pydantic.Field(ge=0, le=1024)] = 0
    max_bad_fraction: Annotated[float, pydantic.Field(ge=0, le=1)] = 0.01

    @property
    def proxy_transform(self) -> TransformConfig:
        """Transform of proxy images."""
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(TransformConfig)}
        return TransformConfig(**values | {"crop_scale": self.proxy_crop_scale or self.crop_scale})


Proxy = Annotated[
    Annotated[str, pydantic.Tag("(name)")]
    | Annotated[int, pydantic.Tag("(id)")]
    | Annotated[ProxyConfig, pydantic.Tag("(source)")],
    pydantic.Discriminator(lambda x: {str: "(name)", int: "(id)"}.get(type(x), "(source)")),
]
"""A class of the source, or another source; told apart first, so that mistakes are named."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataConfig(SourceConfig, LoadingConfig):
    """The images of a run. It has the fields of `SourceConfig` and of `LoadingConfig`, too.

    Classes are given by name, by id, or by WordNet id ("n01443537"); "@FILE" is a file with one
    class a line; "imagenet_i2i" and "places365_i2i" are the published lists of the paper, the one to
    forget in `forget` and the one to retain in `retain`; "rest" is all classes but those that the
    other fields name. "cat,dog" is the same as ("cat", "dog").

    Attributes:
      forget: Classes to forget.
      retain: Classes to retain.
      proxy: Images that replace those of `retain` while unlearning, if retain images may no longer be kept:
        classes of the source, or other sources, as `{"source": "coco/2017", "weight": 1.0}` with the fields
        of `ProxyConfig`; none: the images of `retain` themselves. They may be of classes in `retain`, but
        not in `forget`. The evaluation is on `retain` in any case.
      retain_images: "real", or "generated": while unlearning, images that the original model makes, from the
        proxies or else from noise, replace the retain images. The evaluation is on real images of `retain`.
      generated_count: Number of images it makes; 0: as many as there are proxies, or images to forget.
      prototypes: File of class prototypes from which it makes them, in place of proxies or noise; made from
        the training images if it does not exist, and read alone afterwards. See
        `l2l_jax.experiment.prototypes`.
      train_per_class: Training images of each class, a fixed random choice; 0: all. The paper has 120
        (ImageNet-1K) and 5,000 (Places-365).
      test_per_class: Test images of each class; 0: all. The paper has 50 and 100.
      general: Classes of a third test set, which are neither forgotten nor retained: unlearning should not
        harm them. "rest": all that no other field names; none: there is no such set.
      general_images: Test images of that set, at most, a fixed random choice; 0: all.
      retain_ratio: Share of the retain images that may be used for training.
      canaries: Training images of each set that get a mark in the middle before the original model is
        trained; as many others are compared with them. The audit says how many marks models restore.
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
                "prototypes is what generated retain images start from: set retain_images=generated, and no "
                "proxy"
            )
        unused = "which the proxies replace" if self.proxy else "of which none is used with generated ones"
        if (self.proxy or self.retain_images == "generated") and self.retain_ratio != 1:
            raise ValueError(
                f"retain_ratio {self.retain_ratio:g} is a share of the retain images, {unused}; leave out "
                "one of the two"
            )
