"""Damaged checkpoints of a realistic size: one exception with the reason, and nothing else on the console."""

import asyncio
import os
import subprocess
import sys

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

from l2l_jax.train.checkpoint_reading import Damaged, read

PROGRAM = """
import gc, pathlib, sys
import jax, numpy as np, orbax.checkpoint as ocp
from l2l_jax.train.checkpoint_reading import Damaged, read
height, here = int(sys.argv[2]), jax.sharding.SingleDeviceSharding(jax.devices()[0])
array = jax.ShapeDtypeStruct((height, 200), np.float32, sharding=here)
target = {f"array_{i}": array for i in range(12)}
try:
    read(ocp.StandardCheckpointHandler(), pathlib.Path(sys.argv[1]), ocp.args.StandardRestore(target))
except Damaged as damaged:
    print("Damaged:", damaged)
gc.collect()  # as sooner or later in a program: asyncio reports futures as they are deleted
"""


def saved(folder, ocdbt):
    rng = np.random.default_rng(0)
    tree = {f"array_{i}": rng.random((200, 200), np.float32) for i in range(12)}
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler(use_ocdbt=ocdbt)) as checkpointer:
        checkpointer.save(folder, tree)
    return tree


def program(folder, height):
    """Reads 12 arrays of that height in a process of its own."""
    command = [sys.executable, "-c", PROGRAM, str(folder), str(height)]
    return subprocess.run(command, capture_output=True, text=True)


@pytest.mark.parametrize("ocdbt", [True, False])
def test_a_truncated_checkpoint_is_one_sentence(tmp_path, ocdbt):
    saved(tmp_path / "checkpoint", ocdbt)
    large = [f for f in (tmp_path / "checkpoint").rglob("*") if f.is_file() and f.stat().st_size > 20_000]
    assert large
    for file in large:
        os.truncate(file, 1000)
    done = program(tmp_path / "checkpoint", 200)
    assert done.stdout.startswith("Damaged: ValueError:") and done.stdout.count("\n") == 1
    assert done.stderr == "" and done.returncode == 0


def test_arrays_of_another_shape_are_one_sentence(tmp_path):
    saved(tmp_path / "checkpoint", True)
    done = program(tmp_path / "checkpoint", 100)
    assert done.stdout.startswith("Damaged: ValueError: Requested shape") and done.stdout.count("\n") == 1
    assert done.stderr == "" and done.returncode == 0


def test_what_is_whole_is_read_and_what_is_missing_named(tmp_path):
    tree = saved(tmp_path / "checkpoint", True)
    hook = sys.unraisablehook
    target = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), tree)
    handler = ocp.StandardCheckpointHandler()
    found = read(handler, tmp_path / "checkpoint", ocp.args.StandardRestore(target))
    jax.tree.map(np.testing.assert_array_equal, found, tree)
    assert sys.unraisablehook is hook
    with pytest.raises(Damaged, match="array_12"):
        more = target | {"array_12": target["array_0"]}
        read(handler, tmp_path / "checkpoint", ocp.args.StandardRestore(more))
    with pytest.raises(Damaged, match="nowhere"):
        read(handler, tmp_path / "nowhere", ocp.args.StandardRestore(target))


def test_a_checkpoint_that_may_not_be_read_is_not_called_damaged(tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise Exception("wrapped") from PermissionError(13, "Permission denied", "place")

    monkeypatch.setattr(ocp.Checkpointer, "restore", refuse)
    with pytest.raises(PermissionError, match="place"):
        read(ocp.StandardCheckpointHandler(), tmp_path, ocp.args.StandardRestore({}))


def test_after_a_failed_read_only_its_own_abandoned_futures_are_silent(tmp_path, caplog):
    async def abandon(error):
        asyncio.get_running_loop().create_future().set_exception(error)

    with pytest.raises(Damaged):
        read(ocp.StandardCheckpointHandler(), tmp_path / "nowhere", ocp.args.StandardRestore({}))
    asyncio.run(abandon(ValueError("DATA_LOSS: array_3 is too short")))
    with pytest.raises(ValueError, match="Requested shape") as of_orbax:
        exec('raise ValueError("Requested shape: (8,)")', {"__name__": "orbax.checkpoint.a_part"})
    asyncio.run(abandon(of_orbax.value))
    assert caplog.records == []
    asyncio.run(abandon(ValueError("a mistake of the user's")))
    (record,) = caplog.records
    assert record.name == "asyncio" and str(record.exc_info[1]) == "a mistake of the user's"
