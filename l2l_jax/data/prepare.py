"""Write a data set of TensorFlow Datasets in the form that training reads.

    python -m l2l_jax.data.prepare imagenet2012 --manual_dir=/data/archives --data_dir=/data/tfds
    python -m l2l_jax.data.prepare places365_small --data_dir=/data/tfds
    python -m l2l_jax.data.prepare coco/2017 --data_dir=/data/tfds

Archives are taken from --manual_dir if they lie there; those of Places-365 and COCO are downloaded
otherwise. Run it again after an interruption. It needs TensorFlow (pip install 'l2l_jax[prepare]');
training does not.
"""

import contextlib
import fcntl
import os
import sys
import tarfile
import zipfile
from collections.abc import Iterable, Iterator, Sequence
from typing import IO

from etils import epath

from l2l_jax.cli.arguments import Parser
from l2l_jax.cli.common import run_command
from l2l_jax.data import archives
from l2l_jax.data.config import SourceConfig
from l2l_jax.data.tfds_source import data_dir, find_prepared, open_tfds
from l2l_jax.errors import UserError

BAR_EVERY_SECONDS = "10"
"""How often progress bars are drawn where there is no terminal."""


def _parser() -> Parser:
    parser = Parser(prog="python -m l2l_jax.data.prepare", description=__doc__)
    parser.add_argument(
        "dataset", help=f"{', '.join(archives.ARCHIVES)}, or another image data set of TFDS by its name"
    )
    parser.add_argument(
        "--data_dir", default="", help="where data sets lie; default: TFDS_DATA_DIR or ~/tensorflow_datasets"
    )
    parser.add_argument(
        "--manual_dir", default="", help="where the archives lie; default: downloads/manual in data_dir"
    )
    return parser


def run(argv: Sequence[str]) -> None:
    """Do what the command line asks for; `argv` leaves the program's name out.

    Raises:
      UserError: something that the user can mend.
    """
    args = _parser().parse_args(argv)
    config = SourceConfig(args.dataset, args.data_dir)
    root = data_dir(config)
    manual_dir = epath.Path(args.manual_dir or root / "downloads" / "manual").expanduser()
    folder = find_prepared(config)
    if folder is None:
        if args.dataset in archives.ARCHIVES:
            _check_archives(args.dataset, manual_dir)
        folder = _write(args.dataset, root, manual_dir)
    else:
        print(f"{args.dataset} is prepared already: {folder}")
    for split in ("train", "test"):
        print(f"{len(open_tfds(config, split)):,} {split} images")
    where = f" --config.data.path={args.data_dir}" if args.data_dir else ""
    print(f"{folder}\nTrain on it with --config.data.source={args.dataset}{where}")


def _check_archives(dataset: str, manual_dir: epath.Path) -> None:
    try:
        print(archives.describe(dataset, manual_dir), flush=True)
        archives.check(dataset, manual_dir)
    except ImportError as error:
        raise UserError(f"Reading {manual_dir} needs gcsfs ({error}): pip install 'l2l_jax[gcs]'.") from error


def _write(dataset: str, root: epath.Path, manual_dir: epath.Path) -> epath.Path:
    """Have TFDS write the data set; returns its folder."""
    try:
        import tensorflow  # noqa: F401  (TFDS imports it late and says less)
    except ImportError as error:
        raise UserError(
            f"Preparing a data set needs TensorFlow ({error}): pip install 'l2l_jax[prepare]', best in an "
            "environment of its own. Training needs none."
        ) from error
    import tensorflow_datasets as tfds

    if not sys.stderr.isatty():
        os.environ.setdefault("TQDM_MININTERVAL", BAR_EVERY_SECONDS)
    try:
        builder = tfds.builder(dataset, data_dir=os.fspath(root), file_format="array_record")
    except (tfds.core.registered.DatasetNotFoundError, ValueError) as error:
        first = str(error).strip().splitlines()[0]
        raise UserError(f"TensorFlow Datasets knows no data set {dataset!r} ({first}).") from error
    place = builder.data_path.parent
    with _alone(place), _clean_downloads(root / "downloads"):
        _remove(place.glob("incomplete.*"))
        print(f"Writing {builder.data_path}", flush=True)
        config = tfds.download.DownloadConfig(manual_dir=os.fspath(manual_dir), try_download_gcs=False)
        try:
            builder.download_and_prepare(download_config=config)
        except Exception as error:
            raise UserError(explain(dataset, manual_dir, error)) from error
    return builder.data_path


@contextlib.contextmanager
def _alone(place: epath.Path) -> Iterator[None]:
    """Keep a second process from preparing the same data set; the lock ends with the process."""
    place.mkdir(parents=True, exist_ok=True)
    with _lock_file(place) as file:
        if not _lock(file, fcntl.LOCK_EX | fcntl.LOCK_NB):
            raise UserError(f"Another process is preparing {place} just now; wait for it.")
        yield


@contextlib.contextmanager
def _clean_downloads(downloads: epath.Path) -> Iterator[None]:
    """Remove what killed runs left in the downloads, unless another data set is being prepared just now."""
    downloads.mkdir(parents=True, exist_ok=True)
    with _lock_file(downloads) as file:
        if _lock(file, fcntl.LOCK_EX | fcntl.LOCK_NB):
            _remove((downloads / "extracted").glob("incomplete.*"))
            _remove(downloads.glob("*/*.tmp.*"))
        _lock(file, fcntl.LOCK_SH)
        yield


def _lock_file(folder: epath.Path) -> contextlib.AbstractContextManager[IO[str] | None]:
    """A file to lock; there is none in a bucket."""
    if "://" in os.fspath(folder):
        return contextlib.nullcontext()
    return open(folder / ".prepare.lock", "w", encoding="utf-8")


def _lock(file: IO[str] | None, how: int) -> bool:
    """Whether the lock was got."""
    try:
        return file is None or fcntl.flock(file, how) is None
    except BlockingIOError:
        return False


def _remove(unfinished: Iterable[epath.Path]) -> None:
    """Remove what TFDS did not finish: it would never be used again, nor removed."""
    for entry in list(unfinished):
        print(f"Removing what an interrupted run left: {entry}", flush=True)
        entry.rmtree()


def explain(dataset: str, manual_dir: epath.Path, error: BaseException) -> str:
    """One sentence for a failure inside TFDS."""
    causes = [error]
    while causes[-1].__cause__ or causes[-1].__context__:
        causes.append(causes[-1].__cause__ or causes[-1].__context__)
    reason = " ".join(str(error).split()) or type(error).__name__
    kinds = {kind.__name__ for cause in causes for kind in type(cause).__mro__}
    if kinds & {"DownloadError", "ConnectionError", "RequestException"}:
        names = ", ".join(archive.name for archive in archives.ARCHIVES.get(dataset, ()) if archive.url)
        return (
            f"{dataset} could not be downloaded ({reason}). Where there is no internet, fetch "
            f"{names or 'its files'} elsewhere and put them into {manual_dir}."
        )
    if "NonMatchingChecksumError" in kinds:
        return f"A file of {dataset} is damaged or another one ({reason}). Remove it and fetch it again."
    if any(isinstance(cause, tarfile.TarError | zipfile.BadZipFile) for cause in causes):
        return f"An archive of {dataset} in {manual_dir} is damaged ({reason}). Fetch it again."
    return f"{dataset} could not be prepared: {type(error).__name__}: {reason}"


def main(argv: Sequence[str] | None = None) -> int:
    """Run; the exit code is 0, or 1 (130 after Ctrl-C) with one sentence on stderr."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # TensorFlow's messages about instruction sets
    return run_command(run, sys.argv[1:] if argv is None else argv)


if __name__ == "__main__":
    sys.exit(main())
