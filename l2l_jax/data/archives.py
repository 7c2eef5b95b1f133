"""The files that data sets are prepared from."""

import dataclasses
import tarfile
import zipfile
from collections.abc import Mapping

from etils import epath

from l2l_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Archive:
    """A file as its publisher offers it.

    Attributes:
      name: of the file.
      size: in bytes.
      url: where it is downloaded from if it is not there; empty: it must be fetched by hand.
    """

    name: str
    size: int
    url: str = ""


def _downloads(root: str, sizes: Mapping[str, int]) -> tuple[Archive, ...]:
    return tuple(Archive(path.rpartition("/")[2], size, root + path) for path, size in sizes.items())


ARCHIVES: dict[str, tuple[Archive, ...]] = {
    "imagenet2012": (
        Archive("ILSVRC2012_img_train.tar", 147_897_477_120),
        Archive("ILSVRC2012_img_val.tar", 6_744_924_160),
    ),
    "places365_small": _downloads(
        "http://data.csail.mit.edu/places/places365/",
        {
            "train_256_places365standard.tar": 26_103_685_120,
            "val_256.tar": 525_158_400,
            "test_256.tar": 4_736_829_440,
            "filelist_places365-standard.tar": 67_498_496,
        },
    ),
    "coco/2017": _downloads(
        "http://images.cocodataset.org/",
        {
            "zips/train2017.zip": 19_336_861_798,
            "zips/val2017.zip": 815_585_330,
            "zips/test2017.zip": 6_646_970_404,
            "annotations/annotations_trainval2017.zip": 252_907_541,
            "annotations/image_info_test2017.zip": 1_144_034,
        },
    ),
}
"""The archives of each data set that can be checked before it is prepared, as TFDS reads them."""

BY_HAND = {"imagenet2012": "Register at https://image-net.org/download-images to get the links."}
"""How to come by the files that are not downloaded."""


def describe(dataset: str, manual_dir: epath.Path) -> str:
    """Which files a data set is prepared from, and which of them are there, a line for each."""
    lines = [f"{dataset} is prepared from these files in {manual_dir}:"]
    for archive in ARCHIVES[dataset]:
        there = (manual_dir / archive.name).exists()
        missing = f"will be downloaded from {archive.url}" if archive.url else "missing"
        lines.append(f"  {archive.name:34} {archive.size:>15,} bytes  {'there' if there else missing}")
    return "\n".join(lines)


def check(dataset: str, manual_dir: epath.Path) -> None:
    """Whether the files are what they should be, as far as their size and first bytes show.

    Raises:
      UserError: a file that is not downloaded is missing, or one is incomplete or something else.
    """
    faults = []
    for archive in ARCHIVES[dataset]:
        path = manual_dir / archive.name
        if path.exists():
            faults += _faults(path, archive)
        elif not archive.url:
            faults.append(f"{archive.name} is missing")
    if faults:
        how = BY_HAND.get(dataset, "Fetch them again, or remove them to have them downloaded.")
        raise UserError(f"{dataset} cannot be prepared from {manual_dir}: {'; '.join(faults)}. {how}")


def _faults(path: epath.Path, archive: Archive) -> list[str]:
    if path.is_dir():
        return [f"{archive.name} is a folder; the archive itself is needed, not what is in it"]
    size = path.stat().length
    if size != archive.size:
        short = ", the download was not finished" if size < archive.size else ""
        return [f"{archive.name} has {size:,} bytes instead of {archive.size:,}{short}"]
    is_archive, kind = (
        (zipfile.is_zipfile, "zip") if archive.name.endswith(".zip") else (tarfile.is_tarfile, "tar")
    )
    with path.open("rb") as file:
        return [] if is_archive(file) else [f"{archive.name} is not a {kind} archive"]
