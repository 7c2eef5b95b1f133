"""Atomicity of files, folders and cached results."""

import concurrent.futures
import json

import jax.numpy as jnp
import numpy as np
import pytest

from l2l_jax.utils import io
from l2l_jax.utils.io import ResultCache, atomic_file, atomic_folder, atomic_write, tree_hash
from tests.utils import forking

ARRAYS = {"mse": np.arange(3.0), "names/long": np.array(["a", "b"])}

KILLED = """
import os, pathlib, sys
import numpy as np
from l2l_jax.utils.io import ResultCache, atomic_folder, atomic_write
folder = pathlib.Path(sys.argv[1])
os.fsync = lambda file: os._exit(9)  # after the content is written, before it gets its name
os.rename = lambda *names: os._exit(9)
"""

WRITE = """
import pathlib, sys
import numpy as np
from l2l_jax.utils.io import ResultCache, atomic_write
for number in range(50):
    atomic_write(pathlib.Path(sys.argv[1], "text"), sys.argv[2] * 10_000)
    ResultCache(sys.argv[1] + "/cache", {"k": 1}).put("entry", {"x": np.full(5000, int(sys.argv[2]))})
"""


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_failed_blocks_leave_only_the_old_content(tmp_path):
    for text in (b"older", "Größe\n"):
        atomic_write(tmp_path / "file", text)
    with atomic_folder(tmp_path / "made" / "folder") as folder:
        (folder / "a").write_text("old")
    assert (tmp_path / "file").stat().st_mode == (tmp_path / "made/folder/a").stat().st_mode  # from the umask
    with pytest.raises(ZeroDivisionError), atomic_file(tmp_path / "file") as path:
        path.write_text("new")
        _ = 1 / 0
    with pytest.raises(ZeroDivisionError), atomic_folder(tmp_path / "made" / "folder") as folder:
        (folder / "a").write_text("new")
        _ = 1 / 0
    assert names(tmp_path) == ["file", "made"] and (tmp_path / "file").read_bytes() == "Größe\n".encode()
    assert names(tmp_path / "made") == ["folder"] and (tmp_path / "made/folder/a").read_text() == "old"


def test_folder_is_replaced_atomically(tmp_path):
    for name in ("a", "b"):
        (tmp_path / "folder.unfinished").mkdir()  # left by a killed process
        with atomic_folder(tmp_path / "folder") as folder:
            (folder / name).touch()
    assert names(tmp_path / "folder") == ["b"] and names(tmp_path) == ["folder"]


@pytest.mark.parametrize(
    "write",
    [
        'atomic_write(folder / "file", "new" * 100_000)',
        'ResultCache(folder / "cache", {"k": 1}).put("entry", {"x": np.ones(9)})',
        'ResultCache(folder / "cache", {"k": 1}).put("entry", [1])',
        'with atomic_folder(folder / "made") as made: (made / "a").write_text("new")',
    ],
)
def test_process_killed_before_the_rename_changes_nothing(tmp_path, write):
    atomic_write(tmp_path / "file", "old")
    ResultCache(tmp_path / "cache", {"k": 1}).put("entry", ["old"])
    with atomic_folder(tmp_path / "made") as made:
        (made / "a").write_text("old")
    code, _, errors = forking.run("-c", KILLED + write, str(tmp_path))
    assert code == 9, errors
    assert (tmp_path / "file").read_text() == (tmp_path / "made" / "a").read_text() == "old"
    assert ResultCache(tmp_path / "cache", {"k": 1}).get("entry") == ["old"]


def test_concurrent_writes_of_the_same_names(tmp_path):
    ResultCache(tmp_path / "cache", {"k": 1})  # one process claims the folder
    with concurrent.futures.ThreadPoolExecutor() as pool:
        runs = [pool.submit(forking.run, "-c", WRITE, str(tmp_path), digit) for digit in "12"]
        while not all(run.done() for run in runs):
            if (tmp_path / "text").exists():
                assert (tmp_path / "text").read_text() in ("1" * 10_000, "2" * 10_000)
    assert [run.result()[0] for run in runs] == [0, 0], runs[0].result()[2]
    x = ResultCache(tmp_path / "cache", {"k": 1}).get("entry")["x"]
    assert x[0] in (1, 2) and (x == x[0]).all()


def test_tree_hash_depends_only_on_names_shapes_dtypes_and_values():
    x, rest = np.float32([1, 2]), [np.int32(3), jnp.ones((2, 1), jnp.bfloat16)]
    assert tree_hash({"b": {"x": x}, "a": rest}) == tree_hash({"a": rest, "b": {"x": jnp.asarray(x)}})
    trees = [{"x": x}, {"y": x}, {"x": x[None]}, {"x": x.view(np.int32)}, {"x": x + 1}]
    assert len({tree_hash({"a": rest, "b": tree}) for tree in trees}) == 5


def test_tree_hash_matches_adapters_of_earlier_versions():
    """Computed by version 0.3's `fingerprint` of the parts "encoder" and "decoder"."""
    tree = {
        "decoder": {"bias": np.zeros((), np.float32)},
        "encoder": {
            "a": {"kernel": np.arange(6, dtype=np.float32).reshape(2, 3)},
            "a-b": np.ones(2, np.int8),
        },
    }
    assert tree_hash(tree) == "9e560286f23185c94784831556fdbd86a60d8e2feeb0a5ae47d20c8e8bb332c3"


def test_entries_are_found_by_name_and_stamp(tmp_path):
    cache = ResultCache(tmp_path / "cache", {"seed": 1, "sizes": (1, 2)})
    assert cache.get("set/0") is None
    cache.put("set/1", {"mse": np.array([9.0])}, stamp=["two"])
    cache.put("set/0", ARRAYS, stamp=["one"])
    cache.put("facts", {"error": 0.5, "why": "Größe"})
    again = ResultCache(tmp_path / "cache", {"sizes": [1, 2], "seed": 1})  # cache of a later run
    assert again.get("set/0", stamp=["one"]) is not None and again.get("set/0", stamp=["two"]) is None
    np.testing.assert_array_equal(again.join(["set/0", "set/1"], "mse"), [0, 1, 2, 9])
    assert again.join(["set/0", "set/1"], "psnr") is None
    assert set(again.get("set/0", members=["mse", "nothing"])) == {"mse"}
    assert list(again.get("set/0")["names/long"]) == ["a", "b"]
    assert again.get("facts") == {"error": 0.5, "why": "Größe"}
    again.put("facts", ARRAYS)  # another kind of value
    assert set(again.get("facts")) == set(ARRAYS)


def test_different_key_empties_the_folder(tmp_path):
    def opened(seed):
        return ResultCache(tmp_path / "cache", {"seed": seed})

    opened(1).put("0", ARRAYS)
    assert opened(1).get("0") is not None
    assert opened(2).get("0") is None and opened(1).get("0") is None
    opened(1).put("0", ARRAYS)
    (tmp_path / "cache" / io.KEY).write_text('{"seed"')
    assert opened(1).get("0") is None


@pytest.mark.parametrize("value", [ARRAYS, ["x"]])
def test_damaged_entries_are_recomputed(tmp_path, monkeypatch, value):
    monkeypatch.setattr(io, "SHARED_WITHIN", 0)
    cache = ResultCache(tmp_path / "cache", {})
    cache.put("0", value)
    (path,) = (tmp_path / "cache").glob("0.*")
    content = path.read_bytes()
    for damaged in (b"", content[: len(content) // 2], b"PK" + bytes(100), b"\xff", b"[]", b"{}"):
        path.write_bytes(damaged)
        assert cache.get("0") is None
        with pytest.raises(FileNotFoundError, match="missing or damaged"):
            cache.join(["0"], "mse")
    calls = []
    for _ in range(2):
        result = cache.get_or_compute("0", lambda: calls.append(1) or value, stamp=1)
        assert json.dumps(result, default=list) == json.dumps(value, default=list)
    assert calls == [1]
