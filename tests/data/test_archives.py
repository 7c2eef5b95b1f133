"""The files that data sets are prepared from: what is asked for, and what is found wrong."""

import dataclasses
import zipfile

import pytest
import tensorflow_datasets
from etils import epath
from tensorflow_datasets.core.download import checksums

from l2l_jax.data import archives, prepare
from l2l_jax.errors import UserError
from tests.data import small_archives


@pytest.fixture
def imagenet(tmp_path, monkeypatch):
    """ImageNet's archives in small, and a table that knows their sizes."""
    small_archives.imagenet(tmp_path)
    small = tuple(
        dataclasses.replace(archive, size=(tmp_path / archive.name).stat().st_size)
        for archive in archives.ARCHIVES["imagenet2012"]
    )
    monkeypatch.setitem(archives.ARCHIVES, "imagenet2012", small)
    return epath.Path(tmp_path)


def test_sizes_are_those_that_tfds_expects():
    tables = ("url_checksums/coco.txt", "datasets/places365_small/checksums.tsv")
    known = {}
    for table in tables:
        known |= checksums.load_url_infos(tensorflow_datasets.core.tfds_path(table))
    downloads = [a for of in archives.ARCHIVES.values() for a in of if a.url]
    assert len(downloads) == 9
    for archive in downloads:
        assert known[archive.url].size == archive.size and known[archive.url].filename == archive.name


def test_complete_archives_pass(imagenet):
    archives.check("imagenet2012", imagenet)
    text = archives.describe("imagenet2012", imagenet)
    assert text.count(" there") == 2 and "ILSVRC2012_img_val.tar" in text


def test_missing_and_damaged_archives_are_named(imagenet):
    train, val = imagenet / "ILSVRC2012_img_train.tar", imagenet / "ILSVRC2012_img_val.tar"
    content = val.read_bytes()
    val.write_bytes(content[:-1024])
    with pytest.raises(UserError, match="has 9,216 bytes instead of 10,240, the download was not finished"):
        archives.check("imagenet2012", imagenet)
    val.write_bytes(bytes([1]) * len(content))
    with pytest.raises(UserError, match="ILSVRC2012_img_val.tar is not a tar archive"):
        archives.check("imagenet2012", imagenet)
    val.unlink()
    val.mkdir()
    train.unlink()
    with pytest.raises(
        UserError, match="train.tar is missing; ILSVRC2012_img_val.tar is a folder.* Register at"
    ):
        archives.check("imagenet2012", imagenet)


def test_what_can_be_downloaded_may_be_missing(tmp_path):
    archives.check("coco/2017", epath.Path(tmp_path))
    assert "will be downloaded from http://images.cocodataset.org/zips/train2017.zip" in archives.describe(
        "coco/2017", epath.Path(tmp_path)
    )
    with zipfile.ZipFile(tmp_path / "val2017.zip", "w") as file:
        file.writestr("val2017/000000000001.jpg", b"")
    with pytest.raises(UserError, match="val2017.zip has .* instead of 815,585,330, .* remove them"):
        archives.check("coco/2017", epath.Path(tmp_path))


def test_the_program_says_beforehand_what_must_lie_where(tmp_path, capsys):
    assert prepare.main(["imagenet2012", f"--data_dir={tmp_path}"]) == 1
    output, errors = capsys.readouterr()
    assert f"is prepared from these files in {tmp_path}/downloads/manual:" in output
    assert "ILSVRC2012_img_train.tar           147,897,477,120 bytes  missing" in output
    assert errors.startswith("Error: imagenet2012 cannot be prepared from") and "Traceback" not in errors
    assert list(tmp_path.iterdir()) == []


def test_a_prepared_data_set_is_left_alone(prepared, capsys):
    assert prepare.main(["imagenet2012", f"--data_dir={prepared}"]) == 0
    output, _ = capsys.readouterr()
    assert "is prepared already" in output and "9 train images\n3 test images" in output
    assert f"--config.data.source=imagenet2012 --config.data.path={prepared}" in output
    assert (prepared / "imagenet2012" / "5.1.0" / "labels-train.npz").exists()


def test_an_interruption_is_no_traceback(monkeypatch, capsys):
    def interrupt(_):
        raise KeyboardInterrupt

    monkeypatch.setattr(prepare, "run", interrupt)
    assert prepare.main(["coco/2017"]) == 130
    assert capsys.readouterr().err == "Interrupted; run the same command again.\n"


def test_the_command_line_says_what_is_wrong(capsys):
    assert prepare.main([]) == 1 and prepare.main(["coco/2017", "--data-dir=x"]) == 1
    assert "required: dataset. See --help." in capsys.readouterr().err
