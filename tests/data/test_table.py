"""Tables of the user's own images."""

import os

import pytest

from l2l_jax.data.config import SourceConfig
from l2l_jax.data.sources import open_source, source_digest
from l2l_jax.errors import UserError
from tests.data.test_files import contents, open_csv, write

TABLE = """path,label,split
images/a.jpg,10,train
images/b.jpg,9,train
"images/c, d.jpg",9,val
images/e.jpg,10,test
"""


def test_a_table(tmp_path):
    write(tmp_path, "images/a.jpg", "images/b.jpg", "images/c, d.jpg", "images/e.jpg")
    (tmp_path / "table.csv").write_text(TABLE)
    train, test = open_csv(tmp_path / "table.csv"), open_csv(tmp_path / "table.csv", "test")
    assert train.class_names == test.class_names == ("9", "10")  # as numbers
    assert contents(train) == {"images/a.jpg", "images/b.jpg"} and list(train.labels) == [1, 0]
    assert contents(test) == {"images/c, d.jpg", "images/e.jpg"} and list(test.labels) == [0, 1]


def test_a_table_as_spreadsheets_write_it(tmp_path):
    """Byte order mark, CRLF, capitals in splits, absolute paths; no split column."""
    names = [str(tmp_path / f"{i}.jpg") for i in range(10)]
    write(tmp_path, *(f"{i}.jpg" for i in range(10)))
    table = tmp_path / "elsewhere" / "table.csv"
    table.parent.mkdir()
    table.write_bytes("\r\n".join(["\ufeffpath, label", *(f"{n}, cat" for n in names)]).encode())
    train, test = open_csv(table), open_csv(table, "test")
    assert (len(train), len(test)) == (8, 2) and train.class_names == ("cat",)
    assert contents(train) | contents(test) == {f"{i}.jpg" for i in range(10)}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "file,label\na.jpg,cat\n",
            "has no column 'path': its first line should be path,label .* is file,label",
        ),
        ("", "has no column 'path'.* is empty"),
        ("path;label\na.jpg;cat\n", "has no column 'path'.* is path;label"),
        ("path,label\n", "names no image"),
        ("path,label\na.jpg,\n", "line 2: path or label is missing"),
        ("path,label,split\na.jpg,cat,dev\n", "line 2: split is 'dev'; known: train, test, val"),
        ("path,label,split\na.jpg,cat,train\n", "names no test image"),
        (
            "path,label\na.jpg,cat\nb.jpg,cat\n",
            "1 of 1 files looked for do not exist, the first being .*b.jpg",
        ),
    ],
)
def test_mistakes_in_tables_are_named(tmp_path, text, message):
    write(tmp_path, "a.jpg")
    (tmp_path / "table.csv").write_text(text)
    with pytest.raises(UserError, match=message):
        [open_csv(tmp_path / "table.csv", split) for split in ("test", "train")]


def open_table(tmp_path, *lines, split="train"):
    write(tmp_path, *(f"{name}/{i}.jpg" for name in ("alice", "bob") for i in range(3)))
    (tmp_path / "table.csv").write_text("\n".join(lines) + "\n")
    return open_csv(tmp_path / "table.csv", split)


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["path,label", "bob/0.jpg,bob", "bob/1.jpg,bob, jr"], "line 3 has 3 fields, but the header names 2"),
        (
            ["path,label,split", "bob/0.jpg,bob,train", "./bob//0.jpg,bob,val"],
            r"line 3: ./bob//0.jpg \(bob, for testing\) is the file of line 2 already \(bob, for training\)",
        ),
        (["path,label", "bob/0.jpg,bob", "bob/0.jpg,alice"], r"line 3: .* \(alice\) .* line 2 .*\(bob\)"),
        (["path,label", "bob/0.jpg,bob", "alice,alice"], "line 3: .*alice is a folder, not an image"),
        (["path,label,label", "bob/0.jpg,bob,bob"], "has two columns 'label'"),
        (["path,label", "bob/0.jpg,bob", " ,bob"], "line 3: path or label is missing"),
        (["path,label", 'bob/0.jpg,"' + "x" * 200_000], "is not a table of comma-separated values"),
    ],
)
def test_contradictory_lines_are_named(tmp_path, lines, message):
    with pytest.raises(UserError, match=message):
        [open_table(tmp_path, *lines, split=split) for split in ("train", "test")]


def test_absolute_and_relative_paths_of_one_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    lines = ["path,label", "bob/0.jpg,bob", f"{tmp_path}/bob/0.jpg,alice"]
    (tmp_path / "table.csv").write_text("\n".join(lines))
    with pytest.raises(UserError, match="line 3: .* is the file of line 2 already"):
        open_source(SourceConfig("csv", "table.csv"), "train", 8)


def test_a_link_to_a_file_of_another_class(tmp_path):
    write(tmp_path, "bob/0.jpg")
    os.symlink(tmp_path / "bob" / "0.jpg", tmp_path / "alice.jpg")
    with pytest.raises(UserError, match=r"line 3: alice.jpg \(alice\) is the file of line 2"):
        open_table(tmp_path, "path,label", "bob/0.jpg,bob", "alice.jpg,alice")


def test_the_digest_does_not_depend_on_the_folder_of_absolute_paths(tmp_path):
    digests = []
    for folder in (tmp_path / "a", tmp_path / "b"):
        write(folder, "x/0.jpg", "y/1.jpg")
        lines = ["path,label,split", f"{folder}/x/0.jpg,x,train", f"{folder}/y/1.jpg,y,train"]
        (folder / "table.csv").write_text("\n".join(lines))
        digests.append(source_digest(open_csv(folder / "table.csv")))
    assert digests[0] == digests[1]
    source = open_csv(tmp_path / "a" / "table.csv")
    (tmp_path / "a" / "x" / "0.jpg").unlink()
    assert source_digest(source) != digests[0]  # a file that is gone is no error here


def test_repeated_lines_count_once(tmp_path, caplog):
    """One copy cannot be trained on while the other is tested."""
    lines = [f"bob/{i}.jpg,bob" for i in range(3)]
    sources = [open_table(tmp_path, "path,label", *lines * 4, split=split) for split in ("train", "test")]
    assert [len(source) for source in sources] == [2, 1]
    assert (
        "9 lines repeat the file of an earlier line and are left out, the first being line 5" in caplog.text
    )


def test_a_table_in_windows_1252(tmp_path, caplog):
    write(tmp_path, "a.jpg", "b.jpg")
    (tmp_path / "table.csv").write_bytes("path,label\na.jpg,Jürgen\nb.jpg,Jürgen\n".encode("cp1252"))
    assert open_csv(tmp_path / "table.csv").class_names == ("Jürgen",)
    assert "is not UTF-8 (line 2)" in caplog.text
