"""Prepare a data set of TensorFlow Datasets in the format that training reads.

    python -m l2l_jax.data.prepare imagenet2012 --manual_dir=/data/archives --data_dir=/data/tfds

Archives in --manual_dir are used if present; otherwise those of Places-365 and COCO are downloaded. After an
interruption, rerun the command. Preparation needs TensorFlow (pip install tensorflow); training does not.
"""

import contextlib
import fcntl
import os
import sys
import tarfile
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from etils import epath

from l2l_jax.cli.common import Parser, run_command
from l2l_jax.data.config import SourceConfig
from l2l_jax.data.tfds_source import data_dir, find_prepared, open_tfds
from l2l_jax.errors import UserError

BAR_EVERY_SECONDS = "10"  # seconds between progress bars if there is no terminal


class Archive(NamedTuple):
    """A published file: name, size in bytes, and URL (empty if it must be downloaded manually)."""

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
"""Archives that TFDS reads and that are checked before a data set is prepared."""

# Instructions for files that are not downloaded automatically
BY_HAND = {"imagenet2012": "Register at https://image-net.org/download-images to get the links."}


def describe(dataset: str, manual_dir: epath.Path) -> str:
    """List the files that a data set is prepared from, and whether each of them exists."""
    lines = [f"{dataset} is prepared from these files in {manual_dir}:"]
    for archive in ARCHIVES[dataset]:
        missing = f"will be downloaded from {archive.url}" if archive.url else "missing"
        state = "there" if (manual_dir / archive.name).exists() else missing
        lines.append(f"  {archive.name:34} {archive.size:>15,} bytes  {state}")
    return "\n".join(lines)


def check(dataset: str, manual_dir: epath.Path) -> None:
    """Check the size and first bytes of the files of a data set."""
    faults = [fault for archive in ARCHIVES[dataset] if (fault := _fault(manual_dir / archive.name, archive))]
    if faults:
        advice = BY_HAND.get(dataset, "Fetch them again, or remove them to have them downloaded.")
        raise UserError(f"{dataset} cannot be prepared from {manual_dir}: {'; '.join(faults)}. {advice}")


def _fault(path: epath.Path, archive: Archive) -> str:
    if not path.exists():
        return "" if archive.url else f"{archive.name} is missing"
    if path.is_dir():
        return f"{archive.name} is a folder; the archive itself is needed, not its content"
    size = path.stat().length
    if size != archive.size:
        short = ", the download was not finished" if size < archive.size else ""
        return f"{archive.name} has {size:,} bytes instead of {archive.size:,}{short}"
    kind = "zip" if archive.name.endswith(".zip") else "tar"
    with path.open("rb") as file:
        is_archive = zipfile.is_zipfile(file) if kind == "zip" else tarfile.is_tarfile(file)
    return "" if is_archive else f"{archive.name} is not a {kind} archive"


def run(argv: Sequence[str]) -> None:
    """Prepare the data set according to the command line; `argv` excludes the program name."""
    parser = Parser(prog="python -m l2l_jax.data.prepare", description=__doc__)
    names = f"{', '.join(ARCHIVES)}, or another image data set of TFDS by its name"
    parser.add_argument("dataset", help=names)
    place = "folder of data sets; default: TFDS_DATA_DIR or ~/tensorflow_datasets"
    parser.add_argument("--data_dir", default="", help=place)
    archives = "folder of the archives; default: downloads/manual in data_dir"
    parser.add_argument("--manual_dir", default="", help=archives)
    args = parser.parse_args(argv)
    config = SourceConfig(args.dataset, args.data_dir)
    root = data_dir(config)
    manual_dir = epath.Path(args.manual_dir or root / "downloads" / "manual").expanduser()
    folder = find_prepared(config)
    if folder is None:
        if args.dataset in ARCHIVES:
            try:
                print(describe(args.dataset, manual_dir), flush=True)
                check(args.dataset, manual_dir)
            except ImportError as error:
                raise UserError(f"Reading {manual_dir} needs gcsfs ({error}): pip install gcsfs.") from error
        folder = _write(args.dataset, root, manual_dir)
    else:
        print(f"{args.dataset} is already prepared: {folder}")
    for split in ("train", "test"):
        print(f"{len(open_tfds(config, split)):,} {split} images")
    where = f" --config.data.path={args.data_dir}" if args.data_dir else ""
    print(f"{folder}\nTrain on it with --config.data.source={args.dataset}{where}")


def _write(dataset: str, root: epath.Path, manual_dir: epath.Path) -> epath.Path:
    """Write the data set with TFDS; return its folder."""
    try:
        import tensorflow  # noqa: F401  (optional; TFDS imports it late, with a less helpful error)
    except ImportError as error:
        raise UserError(
            f"Preparing a data set needs TensorFlow ({error}): pip install tensorflow, best in an "
            "environment of its own. Training needs none."
        ) from error
    import tensorflow_datasets as tfds  # late import, for fast startup

    if not sys.stderr.isatty():
        os.environ.setdefault("TQDM_MININTERVAL", BAR_EVERY_SECONDS)
    try:
        builder = tfds.builder(dataset, data_dir=os.fspath(root), file_format="array_record")
    except (tfds.core.registered.DatasetNotFoundError, ValueError) as error:
        first = str(error).strip().splitlines()[0]
        raise UserError(f"TensorFlow Datasets has no data set {dataset!r} ({first}).") from error
    downloads, place = root / "downloads", builder.data_path.parent
    for folder in (downloads, place):
        folder.mkdir(parents=True, exist_ok=True)
    with _lock(root):
        leftovers = [*place.glob("incomplete.*"), *(downloads / "extracted").glob("incomplete.*")]
        for entry in [*leftovers, *downloads.glob("*/*.tmp.*")]:
            print(f"Removing leftovers of an interrupted run: {entry}", flush=True)
            entry.rmtree()  # TFDS would neither use nor remove it
        print(f"Writing {builder.data_path}", flush=True)
        config = tfds.download.DownloadConfig(manual_dir=os.fspath(manual_dir), try_download_gcs=False)
        try:
            builder.download_and_prepare(download_config=config)
        except Exception as error:
            raise UserError(explain(dataset, manual_dir, error)) from error
    return builder.data_path


@contextlib.contextmanager
def _lock(folder: epath.Path) -> Iterator[None]:
    """Lock a folder for one preparing process at a time; buckets are not locked."""
    if "://" in os.fspath(folder):
        yield
        return
    with open(folder / ".prepare.lock", "w", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # released when the process ends
        except BlockingIOError:
            raise UserError(f"Another process is preparing {folder}; wait until it has finished.") from None
        yield


def explain(dataset: str, manual_dir: epath.Path, error: BaseException) -> str:
    """Describe a failure inside TFDS in one sentence."""
    causes = [error]
    while cause := causes[-1].__cause__ or causes[-1].__context__:
        causes.append(cause)
    reason = " ".join(str(error).split()) or type(error).__name__
    kinds = {kind.__name__ for cause in causes for kind in type(cause).__mro__}
    if kinds & {"DownloadError", "ConnectionError", "RequestException"}:
        names = ", ".join(archive.name for archive in ARCHIVES.get(dataset, ()) if archive.url)
        return (
            f"{dataset} could not be downloaded ({reason}). Without an Internet connection, download "
            f"{names or 'its files'} elsewhere and put them into {manual_dir}."
        )
    if "NonMatchingChecksumError" in kinds:
        return f"A file of {dataset} is damaged or unexpected ({reason}). Remove it and download it again."
    if kinds & {"TarError", "BadZipFile"}:
        return f"An archive of {dataset} in {manual_dir} is damaged ({reason}). Download it again."
    return f"{dataset} could not be prepared: {type(error).__name__}: {reason}"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the program and return its exit code."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # TensorFlow's messages about instruction sets
    return run_command(run, sys.argv[1:] if argv is None else argv)


if __name__ == "__main__":
    sys.exit(main())
