"""Selection of the forget set, the retain set, and the images that replace the retain set."""

import dataclasses
import logging
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from l2l_jax.data.arrays import NoiseImages, PrototypeImages
from l2l_jax.data.canaries import Marked
from l2l_jax.data.class_names import class_ids
from l2l_jax.data.config import OTHER_SOURCES, REST, DataConfig, ProxyConfig
from l2l_jax.data.records import Mixture, Source, Subset
from l2l_jax.data.sources import open_source
from l2l_jax.errors import UserError
from l2l_jax.utils.text import printable, split_names

logger = logging.getLogger(__name__)
CHOICE = 1202_00351  # seed for choosing images of a class, the same in every run
NAMED = 10  # maximum number of classes named in a message


class Split(NamedTuple):
    """The two sets of an unlearning task."""

    retain: Source
    forget: Source


def describe(source: Source, kind: str = "images") -> str:
    """Describe the number of images and the classes, largest first: "30 images: bob 20, eve 10"."""
    ids, counts = np.unique(source.labels, return_counts=True)
    largest = np.argsort(-counts, kind="stable")
    named = [f"{printable(source.class_names[ids[i]])} {counts[i]:,}" for i in largest[:NAMED]]
    more = f", … ({len(ids)} classes)" if len(ids) > NAMED else ""
    return f"{len(source):,} {kind}: {', '.join(named)}{more}"


def training_sets(data: DataConfig, source: Source, image_size: int) -> Split:
    """Select the retain set (or its proxies) and the forget set from the training images of `data`'s source.

    If the original model generates the retain images, the retain set holds the images that it starts from.
    `image_size` is the side in pixels of proxies from sources without files.

    Raises:
      UserError: A class is unknown, a forget class is also in another set, a set is empty, a class has too
        few images, or there are too few proxies.
    """
    ids = _named_classes(source.class_names, data)
    count = _Count(data.train_per_class, "config.data.train_per_class", "training")
    forget = _select(source, ids["forget"], "forget", count)
    if data.proxy:
        retain = _proxies(data, source, ids, count, image_size)
        if data.retain_images == "generated":
            retain = _choose(retain, data.generated_count, "config.data.generated_count", "proxies")
    elif data.prototypes:
        names = [source.class_names[i] for i in ids["retain"]]
        retain = PrototypeImages(data.prototypes, names, data.generated_count or len(forget), CHOICE)
    elif data.retain_images == "generated":
        retain = NoiseImages(data.generated_count or len(forget), image_size, CHOICE)
    else:
        retain = _select(source, ids["retain"], "retain", count._replace(share=data.retain_ratio))
    return Split(retain, forget)


def open_training(data: DataConfig, image_size: int) -> Source:
    """Open the training images of `data`, with the marks of its canaries."""
    source = open_source(data, "train", image_size)
    if not data.canaries:
        return source
    chosen = canaries(data, source)
    return Marked(source, np.concatenate([indices[: data.canaries] for indices in chosen.values()]))


def canaries(data: DataConfig, source: Source) -> dict[str, np.ndarray]:
    """Choose the canaries among the training images of each set, and as many unmarked images to compare with.

    Returns:
      Indices in the source by set, marked images first.

    Raises:
      UserError: There are too few images.
    """
    ids, chosen = _named_classes(source.class_names, data), {}
    count = _Count(data.train_per_class, "config.data.train_per_class", "training")
    for name in ("forget", "retain"):
        images = _select(source, ids[name], name, count)
        if len(images) < 2 * data.canaries:
            raise UserError(
                f"config.data.canaries is {data.canaries}, which takes {2 * data.canaries} images of each "
                f"set, but there are {len(images)} to {name}; use a smaller number."
            )
        order = np.random.default_rng(CHOICE).permutation(len(images))
        chosen[name] = images.indices[order[: 2 * data.canaries]]
    return chosen


def evaluation_sets(data: DataConfig, source: Source) -> Split:
    """Select the retain set and the forget set from the test images of `data`'s source."""
    return _select_named(data, source, _Count(data.test_per_class, "config.data.test_per_class", "test"))


def validation_sets(data: DataConfig, source: Source) -> Split:
    """Select the retain set and the forget set from the validation images of `data`'s source."""
    return _select_named(data, source, _Count(0, "config.data.validation_fraction", "validation"))


def general_set(data: DataConfig, source: Source) -> Source | None:
    """Select the test images of `data.general`, neither forgotten nor retained; None if there are none."""
    ids = _named_classes(source.class_names, data)
    general = [*_listed(source.class_names, data.general)]
    named, field = [c for c in general if c != REST], "config.data.general"
    classes = class_ids(source.class_names, named, field, "general")
    for other, others in ids.items():
        _refuse_both(source.class_names, classes, others, field, other)
    if REST in general:
        classes = sorted(set(np.unique(source.labels).tolist()).difference(*ids.values()))
    if not classes:
        return None
    images = _select(source, classes, "general", _Count(0, "", "test"))
    return _choose(images, min(data.general_images, len(images)))


def retained_names(data: DataConfig, class_names: Sequence[str]) -> tuple[str, ...]:
    """Return the names of the classes to retain."""
    return tuple(class_names[i] for i in _named_classes(class_names, data)["retain"])


class _Count(NamedTuple):
    """Number of images per class, `number` (0 means all), times `share`."""

    number: int
    field: str
    kind: str
    share: float = 1.0


def _select_named(data: DataConfig, source: Source, count: _Count) -> Split:
    ids = _named_classes(source.class_names, data)
    return Split(*(_select(source, ids[name], name, count) for name in Split._fields))


def _named_classes(class_names: Sequence[str], data: DataConfig) -> dict[str, list[int]]:
    """Return class ids by set: "forget", "retain", and "proxy" for proxy classes of the source itself."""
    fields = {"forget": data.forget, "retain": data.retain}
    fields["proxy"] = tuple(entry for entry in data.proxy if not isinstance(entry, ProxyConfig))
    listed = {name: [*_listed(class_names, classes)] for name, classes in fields.items()}
    if REST in listed["forget"] and REST not in class_names:
        raise UserError(f"config.data.forget is {REST!r}: name the classes to forget.")
    if REST in listed["retain"] and REST in listed["proxy"]:
        raise UserError(
            f"config.data.retain and config.data.proxy are both {REST!r}, so nothing is left for the "
            "proxies; name the classes of one of them."
        )
    ids: dict[str, list[int]] = {}
    for name, classes in listed.items():
        others = set(range(len(class_names))).difference(*ids.values())
        named = [c for c in classes if c != REST or name == "forget"]
        named_ids = class_ids(class_names, named, f"config.data.{name}", name)
        ids[name] = sorted(others) if len(named) < len(classes) else named_ids
    for name in ("retain", "proxy"):
        _refuse_both(class_names, ids[name], ids["forget"], f"config.data.{name}", "forget")
    return ids


def _listed(class_names: Sequence[str], classes: Sequence[str | int]) -> Iterator[str]:
    """Yield classes, splitting lists such as `a,b` unless a class has that name."""
    for text in classes:
        yield from split_names(str(text), class_names)


def _refuse_both(
    class_names: Sequence[str], classes: Sequence[int], others: Sequence[int], field: str, other: str
) -> None:
    """Raise a UserError if two fields share classes."""
    both = sorted(set(classes) & set(others))
    if both:
        names = ", ".join(class_names[i] for i in both[:NAMED])
        raise UserError(f"Classes both in {field} and in config.data.{other}: {names}. Take each out of one.")


def _select(source: Source, classes: Sequence[int], name: str, count: _Count) -> Subset:
    """Select images of some classes.

    The selection in a class does not depend on other classes, and a smaller selection is a subset of a
    larger one.
    """
    chosen = [np.empty(0, int)]
    order = np.argsort(source.labels, kind="stable")
    first, last = (np.searchsorted(source.labels, classes, side, order) for side in ("left", "right"))
    for class_id, start, end in zip(classes, first, last, strict=True):
        indices = order[start:end]
        if len(indices) < count.number:
            raise UserError(
                f"{count.field} is {count.number}, but the class {source.class_names[class_id]!r} has "
                f"{len(indices)} {count.kind} images; use a smaller number, or 0 for all."
            )
        number = count.number or len(indices)
        if count.share < 1 and number:
            number = max(1, round(count.share * number))
        if number < len(indices):
            indices = np.random.default_rng([CHOICE, class_id]).permutation(indices)[:number]
        chosen.append(indices)
    indices = np.sort(np.concatenate(chosen))
    if not len(indices):
        names = ", ".join(printable(source.class_names[i]) for i in classes[:NAMED]) or "no class"
        hint = f" Skipped: {source.passed_over}." if source.passed_over else ""
        raise UserError(
            f"The {name} set is empty: config.data.{name} selects no {count.kind} image ({names}).{hint}"
        )
    return Subset(source, indices)


def _proxies(
    data: DataConfig, source: Source, ids: Mapping[str, Sequence[int]], count: _Count, image_size: int
) -> Source:
    """Return the replacement of the retain images: one set, or a mixture of sets."""
    sources: dict[str, Source] = {}
    weights = []
    entries = [entry for entry in data.proxy if isinstance(entry, ProxyConfig)]
    if len(entries) < len(data.proxy):
        sources[data.source] = _select(source, ids["proxy"], "proxy", count)
        weights.append(1.0)
    avoided = {name: {source.class_names[i] for i in ids[name]} for name in ("forget", "retain")}
    for entry in entries:
        name, proxies = _other_proxies(entry, data, source, avoided, image_size)
        if name in sources:
            raise UserError(f"config.data.proxy names the source {name} twice; name all its classes in one.")
        sources[name] = proxies
        weights.append(entry.weight)
    for name, proxies in sources.items():
        logger.info("Proxies: %d images of %s", len(proxies), name)
    return Mixture(sources, weights) if len(sources) > 1 else next(iter(sources.values()))


def _other_proxies(
    entry: ProxyConfig, data: DataConfig, source: Source, avoided: Mapping[str, set[str]], image_size: int
) -> tuple[str, Source]:
    """Return the name of a proxy source, which may be `source` itself, and the images selected from it."""
    if (entry.source == "digits") != (data.source == "digits"):
        raise UserError(
            f"config.data.proxy is of {entry.source} and config.data of {data.source}: digits are not files, "
            "and cannot be combined with other sources."
        )
    if not entry.path and not {entry.source, data.source} & set(OTHER_SOURCES):
        entry = dataclasses.replace(entry, path=data.path)
    if (entry.source, entry.path) != (data.source, data.path):
        source = open_source(entry, "train", image_size)
    field = f"config.data.proxy ({entry.source})"
    named = class_ids(source.class_names, [c for c in entry.classes if c != REST], field, "proxy")
    forget = [i for i, name in enumerate(source.class_names) if name in avoided["forget"]]
    _refuse_both(source.class_names, named, forget, field, "forget")
    if REST in entry.classes:
        unnamed = avoided["forget"] | avoided["retain"]
        named = [i for i, name in enumerate(source.class_names) if name not in unnamed or i in named]
    chosen = _select(source, named, "proxy", _Count(0, "", "training"))
    return f"{entry.source} {entry.path}".strip(), _choose(chosen, entry.count, f"{field}: count", "images")


def _choose(source: Source, count: int, field: str = "", noun: str = "") -> Source:
    """Return a fixed random choice of `count` images; 0 means all."""
    if count > len(source):
        raise UserError(f"{field} is {count}, but there are {len(source)} {noun}; 0 takes all.")
    if not count:
        return source
    return Subset(source, np.sort(np.random.default_rng(CHOICE).permutation(len(source))[:count]))
