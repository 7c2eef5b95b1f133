"""Blocks on the disk: there whole, of these settings, or not at all."""

import numpy as np

from l2l_jax.evals.block_store import BlockStore

ARRAYS = {"mse": np.arange(3.0), "names/long": np.array(["a", "b"])}


def store(folder, key=1):
    made = BlockStore(folder / "store")
    made.claim({"key": key})
    return made


def test_blocks_are_found_by_their_fingerprint_and_joined_in_order(tmp_path):
    blocks = store(tmp_path)
    assert not blocks.has("0", "one")
    blocks.save("1", "two", {"mse": np.array([9.0])})
    blocks.save("0", "one", ARRAYS)
    assert blocks.has("0", "one") and not blocks.has("0", "two")
    again = store(tmp_path)  # of a later run
    np.testing.assert_array_equal(again.join(["0", "1"], "mse"), [0, 1, 2, 9])
    assert again.join(["0", "1"], "psnr") is None
    assert set(again.load("0", "mse", "nothing")) == {"mse"}
    assert list(again.load("0", "names/long")["names/long"]) == ["a", "b"]


def test_other_settings_start_anew(tmp_path):
    store(tmp_path).save("0", "one", ARRAYS)
    assert store(tmp_path).has("0", "one")
    assert not store(tmp_path, key=2).has("0", "one")


def test_what_is_damaged_or_unfinished_is_not_there(tmp_path):
    blocks = store(tmp_path)
    blocks.save("0", "one", ARRAYS)
    path = tmp_path / "store" / "0.npz"
    whole = path.read_bytes()
    for damaged in (b"", whole[: len(whole) // 2], b"PK" + bytes(100)):
        path.write_bytes(damaged)
        assert not blocks.has("0", "one")
    (tmp_path / "store" / ".1.npz.123").write_bytes(whole)  # killed before it was renamed
    assert not blocks.has("1", "one")
