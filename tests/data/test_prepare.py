"""Checks of archives, and preparation with the builders of TensorFlow Datasets, which needs TensorFlow."""

import importlib.util
import io
import pathlib
import signal
import subprocess
import sys
import tarfile
import time
import zipfile

import pytest
import requests
import tensorflow_datasets
from etils import epath
from tensorflow_datasets.core.download import checksums

from l2l_jax.data import prepare
from l2l_jax.data.config import SourceConfig
from l2l_jax.data.sources import open_source
from l2l_jax.errors import UserError
from tests.data import small_archives

ROOT = pathlib.Path(__file__).parents[2]
TENSORFLOW = importlib.util.find_spec("tensorflow") is not None
needs_tensorflow = pytest.mark.skipif(not TENSORFLOW, reason="needs TensorFlow")
SPLITS = {
    "imagenet2012": (sum(small_archives.IMAGENET_TRAIN.values()), small_archives.IMAGENET_VAL),
    "places365_small": (7, len(small_archives.PLACES_VAL)),
    "coco/2017": (small_archives.COCO["train2017"], small_archives.COCO["val2017"]),
}


def start(dataset, folder):
    command = [sys.executable, "-m", "tests.data.small_archives", dataset]
    flags = [f"--manual_dir={folder / 'archives'}", f"--data_dir={folder / 'data'}"]
    pipes = dict(stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    return subprocess.Popen(command + flags, cwd=ROOT, **pipes)


def run(dataset, folder):
    process = start(dataset, folder)
    output, errors = process.communicate(timeout=300)
    return process.returncode, output, errors


@pytest.mark.skipif(TENSORFLOW, reason="TensorFlow is there")
def test_error_without_tensorflow_names_the_package(tmp_path):
    code, _, errors = run("coco/2017", tmp_path)
    assert code == 1 and errors.startswith("Error: Preparing a data set needs TensorFlow")
    assert "pip install tensorflow" in errors and "Traceback" not in errors


@needs_tensorflow
@pytest.mark.slow
@pytest.mark.parametrize("dataset", SPLITS)
def test_archives_in_the_official_layout(tmp_path, dataset):
    code, output, errors = run(dataset, tmp_path)
    assert code == 0, errors
    train, test = SPLITS[dataset]
    assert f"{train} train images\n{test} test images" in output
    assert "Generating train examples" in errors  # the progress bar
    for split, count in zip(("train", "test"), SPLITS[dataset], strict=True):
        source = open_source(SourceConfig(dataset, str(tmp_path / "data")), split, 8)
        assert len(source) == count and all(source[i]["image"][:2] == b"\xff\xd8" for i in range(count))
    code, output, _ = run(dataset, tmp_path)
    assert code == 0 and "is already prepared" in output


@needs_tensorflow
@pytest.mark.slow
def test_prepare_can_be_rerun_after_a_kill(tmp_path):
    """A run is killed while writing; leftovers are removed, and a concurrent second process is rejected."""
    small_archives_with_much_to_write(tmp_path / "archives")
    place = tmp_path / "data" / "imagenet2012"
    process = start("imagenet2012", tmp_path)
    while not list(place.glob("incomplete.*/*")):
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.02)
    process.send_signal(signal.SIGSTOP)
    code, _, errors = run("imagenet2012", tmp_path)
    assert code == 1 and "Another process is preparing" in errors
    process.kill()
    process.communicate()
    (left,) = place.glob("incomplete.*")
    downloads = tmp_path / "data" / "downloads"
    lefts = [left, downloads / "extracted" / "incomplete.1f_TAR.x", downloads / "coco" / "x.zip.tmp.1f"]
    for folder in lefts[1:]:
        (folder / "deeper").mkdir(parents=True)
    finished = downloads / "coco" / "x.zip"
    finished.write_bytes(b"kept")
    code, output, errors = run("imagenet2012", tmp_path)
    assert code == 0, errors
    for left in lefts:
        assert f"Removing leftovers of an interrupted run: {left}" in output and not left.exists()
    assert finished.exists()
    assert "3,000 train images\n3 test images" in output


def small_archives_with_much_to_write(folder):
    folder.mkdir()
    small_archives.imagenet(folder)
    inner = io.BytesIO()
    images = {f"n01440764_{i}.JPEG": small_archives.picture(i) for i in range(1, 3001)}
    small_archives.write_tar(inner, images)
    with open(folder / "ILSVRC2012_img_train.tar", "wb") as file:
        small_archives.write_tar(file, {"n01440764.tar": inner.getvalue()})


@needs_tensorflow
@pytest.mark.slow
def test_damaged_archives_and_unknown_data_sets_are_user_errors(tmp_path, capsys):
    """Archives with the correct size and header, but truncated content."""
    assert prepare.main(["imagenet2013", f"--data_dir={tmp_path}"]) == 1
    assert "Error: TensorFlow Datasets has no data set 'imagenet2013'" in capsys.readouterr().err
    (tmp_path / "archives").mkdir()
    small_archives.imagenet(tmp_path / "archives")
    train = tmp_path / "archives" / "ILSVRC2012_img_train.tar"
    content = train.read_bytes()
    with tarfile.open(train) as archive:
        second = archive.getmembers()[1].offset_data
    train.write_bytes(content[: second + 600])
    code, _, errors = run("imagenet2012", tmp_path)
    assert code == 1 and "An archive of imagenet2012 in" in errors and "Download it again." in errors
    assert "Traceback" not in errors
    assert not list((tmp_path / "data" / "imagenet2012").glob("incomplete.*"))


def test_failures_inside_tfds_are_explained(tmp_path):
    """The cause is found at any depth of the exception chain."""

    class NonMatchingChecksumError(Exception):
        pass

    def explained(error, cause=None):
        error.__cause__ = cause
        return prepare.explain("coco/2017", epath.Path("/archives"), error)

    offline = explained(RuntimeError("no\n route"), requests.exceptions.ConnectionError("no route"))
    assert offline.startswith("coco/2017 could not be downloaded (no route).")
    assert "download train2017.zip, val2017.zip, " in offline and offline.endswith("put them into /archives.")
    assert "is damaged or unexpected" in explained(NonMatchingChecksumError("wrong checksum"))
    assert "in /archives is damaged (torn)" in explained(RuntimeError("torn"), zipfile.BadZipFile("File"))
    assert explained(KeyError("n1")) == "coco/2017 could not be prepared: KeyError: 'n1'"


def test_archive_sizes_match_tfds():
    tables = ("url_checksums/coco.txt", "datasets/places365_small/checksums.tsv")
    sizes = {}
    for table in tables:
        sizes |= checksums.load_url_infos(tensorflow_datasets.core.tfds_path(table))
    downloads = [a for archives in prepare.ARCHIVES.values() for a in archives if a.url]
    assert len(downloads) == 9
    for archive in downloads:
        assert sizes[archive.url].size == archive.size and sizes[archive.url].filename == archive.name


def test_missing_and_damaged_archives_are_named(tmp_path, monkeypatch):
    small_archives.imagenet(tmp_path)
    small = [
        archive._replace(size=(tmp_path / archive.name).stat().st_size)
        for archive in prepare.ARCHIVES["imagenet2012"]
    ]
    monkeypatch.setitem(prepare.ARCHIVES, "imagenet2012", small)
    imagenet = epath.Path(tmp_path)
    prepare.check("imagenet2012", imagenet)
    text = prepare.describe("imagenet2012", imagenet)
    assert text.count(" there") == 2 and "ILSVRC2012_img_val.tar" in text
    train, val = imagenet / "ILSVRC2012_img_train.tar", imagenet / "ILSVRC2012_img_val.tar"
    content = val.read_bytes()
    val.write_bytes(content[:-1024])
    with pytest.raises(UserError, match="has 9,216 bytes instead of 10,240, the download was not finished"):
        prepare.check("imagenet2012", imagenet)
    val.write_bytes(bytes([1]) * len(content))
    with pytest.raises(UserError, match="ILSVRC2012_img_val.tar is not a tar archive"):
        prepare.check("imagenet2012", imagenet)
    val.unlink()
    val.mkdir()
    train.unlink()
    with pytest.raises(UserError, match="train.tar is missing; .*_val.tar is a folder.* Register at"):
        prepare.check("imagenet2012", imagenet)


def test_downloadable_archives_may_be_missing(tmp_path):
    folder = epath.Path(tmp_path)
    prepare.check("coco/2017", folder)
    place = "will be downloaded from http://images.cocodataset.org/zips/train2017.zip"
    assert place in prepare.describe("coco/2017", folder)
    (tmp_path / "val2017.zip").write_bytes(b"PK")
    with pytest.raises(UserError, match="val2017.zip has .* instead of 815,585,330, .* remove them"):
        prepare.check("coco/2017", folder)


def test_required_archives_are_listed_first(tmp_path, capsys):
    assert prepare.main(["imagenet2012", f"--data_dir={tmp_path}"]) == 1
    output, errors = capsys.readouterr()
    assert f"is prepared from these files in {tmp_path}/downloads/manual:" in output
    assert "ILSVRC2012_img_train.tar           147,897,477,120 bytes  missing" in output
    assert errors.startswith("Error: imagenet2012 cannot be prepared from") and "Traceback" not in errors
    assert list(tmp_path.iterdir()) == []


def test_prepared_data_set_is_unchanged(prepared, capsys):
    assert prepare.main(["imagenet2012", f"--data_dir={prepared}"]) == 0
    output, _ = capsys.readouterr()
    assert "is already prepared" in output and "9 train images\n3 test images" in output
    assert f"--config.data.source=imagenet2012 --config.data.path={prepared}" in output
    assert (prepared / "imagenet2012" / "5.1.0" / "labels-train.npz").exists()
