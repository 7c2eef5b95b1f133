"""Folders and tables of user images."""

import importlib.util
import os
import pathlib
import pickle

import numpy as np
import pytest
from etils import epath

from l2l_jax.data.config import DataConfig, SourceConfig
from l2l_jax.data.sources import open_source, source_digest
from l2l_jax.data.splits import evaluation_sets
from l2l_jax.errors import UserError

SPLITS = ("train", "validation", "test")


def write(folder, *names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(f"content of {name}".encode())
    return folder


def open_folder(path, split="train", **fields):
    return open_source(SourceConfig("folder", str(path), **fields), split, 8)


def open_csv(path, split="train", **fields):
    return open_source(SourceConfig("csv", str(path), **fields), split, 8)


def contents(*sources):
    """Return the contents that `write` stored in all images of sources."""
    records = [source[i] for source in sources for i in range(len(source))]
    return {record["image"].decode().removeprefix("content of ") for record in records}


def both(path):
    return [open_folder(path, split) for split in ("train", "test")]


def test_class_folders_with_held_out_fraction(tmp_path):
    cats = [f"cat/{i}.jpg" for i in range(10)]
    dogs = [f"dog/deeper/{i}.PNG" for i in range(5)]
    write(tmp_path, *cats, *dogs, "only/one.webp", "cat/notes.txt", "empty/y.txt")
    train, test = open_folder(tmp_path), open_folder(tmp_path, "test")
    assert train.class_names == test.class_names == ("cat", "dog", "empty", "only")
    np.testing.assert_array_equal(np.bincount(train.labels), [8, 4, 0, 1])
    np.testing.assert_array_equal(np.bincount(test.labels), [2, 1])
    assert contents(train) | contents(test) == {*cats, *dogs, "only/one.webp"}
    assert not contents(train) & contents(test)
    half = open_folder(tmp_path, "test", test_fraction=0.5)
    assert contents(test) < contents(half) and len(half) == 5 + 2
    record = train[0]
    assert record["label"] == 0 and record["name"].startswith(str(tmp_path / "cat"))
    assert pathlib.Path(record["name"]).read_bytes() == record["image"]
    assert pickle.loads(pickle.dumps(train))[0] == record  # as for worker processes


@pytest.mark.parametrize("name", ["test", "val", "valid", "Validation"])
def test_folders_of_training_and_test_images(tmp_path, name):
    write(tmp_path, "train/cat/0.jpg", "train/cat/1.jpg", f"{name}/dog/2.jpg", f"{name}/cat/3.jpg")
    train, test = open_folder(tmp_path), open_folder(tmp_path, "test")
    assert train.class_names == test.class_names == ("cat", "dog")
    assert contents(train) == {"train/cat/0.jpg", "train/cat/1.jpg"} and list(train.labels) == [0, 0]
    assert contents(test) == {f"{name}/cat/3.jpg", f"{name}/dog/2.jpg"} and list(test.labels) == [0, 1]


def test_images_without_class_folders_are_one_class(tmp_path):
    source = open_folder(write(tmp_path / "holidays", "a.jpg", "b.jpg"), test_fraction=0.5)
    assert source.class_names == ("holidays",) and len(source) == 1
    sources = both(write(tmp_path / "holidays", "holidays/c.jpg", "sea/d.jpg"))
    assert sources[0].class_names == ("holidays", "sea")
    assert contents(*sources) == {"a.jpg", "b.jpg", "holidays/c.jpg", "sea/d.jpg"}


def test_links_are_followed_and_cycles_end(tmp_path):
    write(tmp_path / "elsewhere", "0.jpg", "1.jpg")
    (tmp_path / "root").mkdir()
    os.symlink(tmp_path / "elsewhere", tmp_path / "root" / "cat")
    os.symlink(tmp_path / "elsewhere", tmp_path / "elsewhere" / "again")
    sources = both(tmp_path / "root")
    assert [len(source) for source in sources] == [1, 1] and contents(*sources) == {"0.jpg", "1.jpg"}


def test_non_utf8_names(tmp_path):
    folder = os.fsencode(tmp_path) + b"/caf\xe9"
    os.mkdir(folder)
    for name in (b"1.jpg", b"\xff.jpg"):
        with open(folder + b"/" + name, "wb") as file:
            file.write(b"x")
    source = open_folder(tmp_path)
    assert len(source) == 1 and source[0]["image"] == b"x" and source.class_names == ("café",)
    assert os.fsencode(source[0]["name"]).startswith(folder) and source.name(0) == source[0]["name"]
    os.mkdir(tmp_path / "café")
    (tmp_path / "café" / "2.jpg").write_bytes(b"y")
    assert open_folder(tmp_path).class_names == ("caf\udce9", "café")[::-1]


def test_hidden_and_unsupported_files_are_skipped_and_reported(tmp_path, caplog):
    """The same rules apply at every depth; HEIC and other suffixes are named."""
    write(tmp_path, "bob/0.jpg", "bob/1.jfif", "bob/deep/2.JPE")
    write(tmp_path, "bob/.ipynb_checkpoints/0-checkpoint.jpg", "bob/.AppleDouble/0.jpg", "bob/._0.jpg")
    write(tmp_path, "__MACOSX/bob/0.jpg", "lost+found/x.jpg", "bob/Thumbs.db", "bob/3.HEIC", "bob/4.heic")
    os.mkfifo(tmp_path / "bob" / "pipe.jpg")
    os.symlink("nowhere", tmp_path / "bob" / "link.jpg")
    with caplog.at_level("INFO", "l2l_jax"):
        sources = both(tmp_path)
    assert sources[0].class_names == ("bob",)
    assert contents(*sources) == {"bob/0.jpg", "bob/1.jfif", "bob/deep/2.JPE"}
    (warning,) = (r.getMessage() for r in caplog.records if r.levelname == "WARNING")
    for part in (
        "2 files ending in .heic: convert to JPEG or PNG (bob/3.HEIC, bob/4.heic)",
        "2 hidden folders (bob/.AppleDouble, bob/.ipynb_checkpoints)",
        "1 hidden file (bob/._0.jpg)",
        "2 folders of the operating system (__MACOSX, lost+found)",
        "1 broken link (bob/link.jpg)",
        "1 special file, such as a pipe (bob/pipe.jpg)",
    ):
        assert part in warning


def test_error_of_an_empty_class_lists_skipped_files(tmp_path):
    write(tmp_path, "alice/0.jpg", "alice/1.jpg", *(f"bob/{i}.HEIC" for i in range(12)))
    data = DataConfig("folder", str(tmp_path), forget=("bob",))
    with pytest.raises(UserError, match=r"no test image \(bob\).* 12 files ending in .heic: convert to JPEG"):
        evaluation_sets(data, open_source(data, "test", 8))


def test_folder_is_read_as_splits_only_if_unambiguous(tmp_path, caplog):
    """Vehicles: car, bus, train."""
    vehicles = write(tmp_path / "a", *(f"{name}/{i}.jpg" for name in ("car", "bus", "train") for i in "01"))
    assert open_folder(vehicles).class_names == ("bus", "car", "train")
    write(vehicles, "test/0.jpg")
    assert open_folder(vehicles).class_names == ("bus", "car", "test", "train")
    write(tmp_path / "b", "train/a/0.jpg", "train/a/1.jpg", "notes/readme.txt")
    assert open_folder(tmp_path / "b").class_names == ("a",)
    write(tmp_path / "b", "extra/0.jpg")
    with pytest.raises(UserError, match="and next to it extra: is train a class, or does it hold"):
        open_folder(tmp_path / "b")
    write(tmp_path / "c", "train/a/0.jpg", "test/0.jpg", "val/a/1.jpg", "cover.jpg")
    with caplog.at_level("INFO", "l2l_jax"):
        assert contents(open_folder(tmp_path / "c", "test")) == {"val/a/1.jpg"}
    skipped = "1 folder of another split (test)", "1 image next to the splits"
    for part in ("test images those in val", *skipped):
        assert part in caplog.text


def test_linked_image_cannot_be_in_two_classes_or_splits(tmp_path):
    folders = write(tmp_path / "a", "bob/0.jpg")
    os.symlink(folders / "bob", folders / "alice")
    with pytest.raises(UserError, match="are the same file, through a link"):
        open_folder(folders)
    files = write(tmp_path / "b", "train/bob/0.jpg", "train/bob/1.jpg", "test/bob/2.jpg")
    os.symlink(files / "train" / "bob" / "1.jpg", files / "train" / "bob" / "again.jpg")
    assert len(open_folder(files)) == 2
    os.symlink(files / "train" / "bob" / "0.jpg", files / "test" / "bob" / "3.jpg")
    with pytest.raises(UserError, match="are the same file, through a link"):
        open_folder(files)


def test_digest_depends_on_names_and_sizes_not_on_location(tmp_path):
    def digest(folder, split="train"):
        return source_digest(open_folder(folder, split))

    names = [f"cat/{i}.jpg" for i in range(10)]
    base = digest(write(tmp_path / "a", *names))
    assert base == digest(f"{write(tmp_path / 'b', *names)}/") != digest(tmp_path / "a", "test")
    (tmp_path / "b" / "cat" / "0.jpg").write_bytes(b"other")
    assert (base, digest(tmp_path / "a", "test")) != (digest(tmp_path / "b"), digest(tmp_path / "b", "test"))
    write(tmp_path / "a", "cat/10.jpg", "cat/11.jpg")
    assert digest(tmp_path / "a") != base


def test_unreadable_folders_are_named(tmp_path, monkeypatch):
    """Missing folders, and files in their place, are covered in cli/test_mistakes.py."""
    with pytest.raises(UserError, match="'fashion' reads no files"):
        open_source(SourceConfig("fashion", "somewhere"), "train", 8)
    write(tmp_path, "cat/0.jpg", "dog/1.jpg")
    scandir = os.scandir

    def refuse(path):
        if os.fspath(path).endswith("dog"):
            raise PermissionError(13, "Permission denied", os.fspath(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(UserError, match=r"^config.data: .*/dog cannot be read \(Permission denied\)"):
        open_folder(tmp_path)


def test_remote_folders_and_tables(bucket):
    names = {"cat/deeper/0.jpg", "cat/1.jpg", "dog/2.jpg", "dog/3.jpg"}
    root = write(epath.Path(bucket) / "photos", *names)
    sources = both(f"{bucket}/photos")
    assert sources[0].class_names == ("cat", "dog") and [list(s.labels) for s in sources] == [[0, 1]] * 2
    assert contents(*sources) == names
    assert epath.Path(sources[0][0]["name"]).read_bytes() == sources[0][0]["image"]
    table = root / "table.csv"
    table.write_text(f"path,label,split\ncat/1.jpg,cat,train\n{bucket}/photos/dog/2.jpg,dog,train\n")
    assert contents(open_csv(f"{bucket}/photos/table.csv")) == {"cat/1.jpg", "dog/2.jpg"}


@pytest.mark.skipif(
    any(importlib.util.find_spec(name) for name in ("gcsfs", "tensorflow")), reason="gs:// can be read"
)
def test_remote_folders_without_gcsfs():
    for source in ("folder", "imagenet2012"):
        with pytest.raises(UserError, match=r"Reading gs://bucket/photos.* needs gcsfs .* install gcsfs"):
            open_source(SourceConfig(source, "gs://bucket/photos"), "train", 8)


TABLE = """path,label,split
images/a.jpg,10,train
images/b.jpg,9,train
"images/c, d.jpg",9,val
images/e.jpg,10,test
"""


def test_csv_table(tmp_path):
    write(tmp_path, "images/a.jpg", "images/b.jpg", "images/c, d.jpg", "images/e.jpg")
    (tmp_path / "table.csv").write_text(TABLE)
    train, test = open_csv(tmp_path / "table.csv"), open_csv(tmp_path / "table.csv", "test")
    assert train.class_names == test.class_names == ("9", "10")  # sorted numerically
    assert contents(train) == {"images/a.jpg", "images/b.jpg"} and list(train.labels) == [1, 0]
    assert contents(test) == {"images/c, d.jpg", "images/e.jpg"} and list(test.labels) == [0, 1]


def test_csv_table_written_by_spreadsheets(tmp_path):
    """Byte order mark, CRLF, capitals in splits, absolute paths; no split column."""
    names = [str(tmp_path / f"{i}.jpg") for i in range(10)]
    write(tmp_path, *(f"{i}.jpg" for i in range(10)))
    table = tmp_path / "elsewhere" / "table.csv"
    table.parent.mkdir()
    table.write_bytes("\r\n".join(["\ufeffpath, label", *(f"{n}, cat" for n in names)]).encode())
    train, test = open_csv(table), open_csv(table, "test")
    assert (len(train), len(test)) == (8, 2) and train.class_names == ("cat",)
    assert contents(train) | contents(test) == {f"{i}.jpg" for i in range(10)}


def open_table(tmp_path, *lines, split="train"):
    write(tmp_path, "a.jpg", *(f"{name}/{i}.jpg" for name in ("alice", "bob") for i in range(3)))
    (tmp_path / "table.csv").write_text("\n".join(lines))
    return open_csv(tmp_path / "table.csv", split)


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["file,label", "a.jpg,cat"], "has no column 'path': its first line .* is file,label"),
        ([], "has no column 'path'.* is empty"),
        (["path,label,label", "bob/0.jpg,bob,bob"], "has two columns 'label'"),
        (["path,label"], "lists no images"),
        (["path,label", "a.jpg,"], "line 2: path or label is missing"),
        (["path,label", "bob/0.jpg,bob", " ,bob"], "line 3: path or label is missing"),
        (["path,label,split", "a.jpg,cat,dev"], "line 2: split is 'dev'; known: train, test, val"),
        (["path,label,split", "a.jpg,cat,train"], "lists no test image"),
        (["path,label", "a.jpg,cat", "b.jpg,cat"], "1 of 1 files looked for do not exist, the first .*b.jpg"),
        (["path,label", "bob/0.jpg,bob", "bob/1.jpg,bob, jr"], "line 3 has 3 fields, but the header names 2"),
        (
            ["path,label,split", "bob/0.jpg,bob,train", "./bob//0.jpg,bob,val"],
            r"line 3: ./bob//0.jpg \(bob, for testing\) is the file of line 2 already \(bob, for training\)",
        ),
        (["path,label", "bob/0.jpg,bob", "bob/0.jpg,alice"], r"line 3: .* \(alice\) .* line 2 .*\(bob\)"),
        (["path,label", 'bob/0.jpg,"' + "x" * 200_000], "is not a table of comma-separated values"),
        (["path,label,split", "bob/0.jpg,bob,test", "alice,alice,train"], "line 3: .*alice is a folder, not"),
        (["path,label", '"a\n.jpg",bob', "bob/0.jpg,bob"], r"the first .*a\\n.jpg \(line 3\)"),
        (["path,label", "file:///a.jpg,cat", "s3://a/b.jpg,cat"], "gs:// buckets; (file|s3):// is not read"),
    ],
)
def test_invalid_csv_tables(tmp_path, lines, message):
    with pytest.raises(UserError, match=message):
        [open_table(tmp_path, *lines, split=split) for split in ("test", "train")]


@pytest.mark.parametrize("other", ["{}/bob/0.jpg", "alice.jpg"])
def test_absolute_relative_and_linked_paths_to_one_file(tmp_path, monkeypatch, other):
    monkeypatch.chdir(tmp_path)
    os.symlink(tmp_path / "bob" / "0.jpg", "alice.jpg")
    lines = ["path,label", "bob/0.jpg,bob", f"{other.format(tmp_path)},alice"]
    (tmp_path / "table.csv").write_text("\n".join(lines))
    with pytest.raises(UserError, match=r"line 3: .* \(alice\) is the file of line 2 already"):
        open_source(SourceConfig("csv", "table.csv"), "train", 8)


@pytest.mark.parametrize("place", ["photos", "elsewhere"])
def test_moved_images_of_a_csv_table_keep_their_identity(tmp_path, place):
    """This includes held-out images, and absolute paths as well as paths relative to the table's folder."""
    digests = set()
    for moved in ("a", "b"):
        folder = write(tmp_path / moved / "photos", *(f"x/{i}.jpg" for i in range(20)))
        table = tmp_path / moved / place / "table.csv"
        table.parent.mkdir(exist_ok=True)
        for prefix in {f"{folder}/", "" if place == "photos" else f"{folder}/"}:
            table.write_text("\n".join(["path,label", *(f"{prefix}x/{i}.jpg,x" for i in range(20))]))
            both = (source_digest(open_csv(table, split, validation_fraction=0.2)) for split in SPLITS)
            digests.add(tuple(both))
    assert len(digests) == 1 and len(set(*digests)) == len(SPLITS)
    source = open_csv(table)
    before = source_digest(source)
    pathlib.Path(source.name(0)).unlink()
    assert source_digest(source) != before  # a missing file is not an error here


def test_repeated_lines_are_used_once(tmp_path, caplog):
    """Copies of an image cannot be in both training and test set."""
    lines = [f"bob/{i}.jpg,bob" for i in range(3)]
    sources = [open_table(tmp_path, "path,label", *lines * 4, split=split) for split in ("train", "test")]
    assert [len(source) for source in sources] == [2, 1]
    assert "9 repetitions of earlier lines' files left out, the first in line 5" in caplog.text


def test_csv_table_in_windows_1252(tmp_path, caplog):
    write(tmp_path, "a.jpg", "b.jpg")
    (tmp_path / "table.csv").write_bytes("path,label\na.jpg,Jürgen\nb.jpg,Jürgen\n".encode("cp1252"))
    assert open_csv(tmp_path / "table.csv").class_names == ("Jürgen",)
    assert "is not UTF-8 (line 2)" in caplog.text
