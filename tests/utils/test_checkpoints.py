"""Damaged checkpoints of realistic size: one exception with the reason, and no other console output."""

import errno
import os
import types

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

from l2l_jax.utils import checkpoints
from l2l_jax.utils.checkpoints import Damaged, check_sizes, check_space, read_arrays, record_sizes
from tests.utils import forking

PROGRAM = """
import gc, pathlib, sys
import jax, numpy as np
from l2l_jax.utils.checkpoints import Damaged, check_sizes, read_arrays
folder, height = pathlib.Path(sys.argv[1]), int(sys.argv[2])
here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
array = jax.ShapeDtypeStruct((height, 200), np.float32, sharding=here)
try:
    check_sizes(folder)
    read_arrays(folder, {f"array_{i}": array for i in range(12)})
except Damaged as damaged:
    print("Damaged:", damaged)
gc.collect()  # as sooner or later in a program: asyncio reports futures as they are deleted
"""


def saved(folder, ocdbt):
    rng = np.random.default_rng(0)
    tree = {f"array_{i}": rng.random((200, 200), np.float32) for i in range(12)}
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler(use_ocdbt=ocdbt)) as checkpointer:
        checkpointer.save(folder, tree)
    record_sizes(folder)
    return tree


def cut(path):
    os.truncate(path, 1000)


@pytest.mark.parametrize(
    ("ocdbt", "damage", "height", "message"),
    [
        (True, cut, 200, "1000 bytes instead of"),
        (False, cut, 200, "1000 bytes instead of"),
        (True, os.unlink, 200, "no bytes instead of"),
        (True, lambda file: None, 100, "ValueError: Requested shape"),
    ],
)
def test_damaged_files_and_wrong_shapes_raise_one_error(tmp_path, ocdbt, damage, height, message):
    saved(tmp_path / "checkpoint", ocdbt)
    large = [f for f in (tmp_path / "checkpoint").rglob("*") if f.is_file() and f.stat().st_size > 20_000]
    for file in large:
        damage(file)
    code, output, errors = forking.run("-c", PROGRAM, tmp_path / "checkpoint", height)
    assert large and output.startswith("Damaged: ") and output.count("\n") == 1
    assert message in output and errors == "" and code == 0


def test_complete_checkpoints_are_read_and_missing_files_named(tmp_path):
    tree = saved(tmp_path / "checkpoint", True)
    target = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), tree)
    check_sizes(tmp_path / "checkpoint")
    jax.tree.map(np.testing.assert_array_equal, read_arrays(tmp_path / "checkpoint", target), tree)
    with pytest.raises(Damaged, match="array_12"):
        read_arrays(tmp_path / "checkpoint", target | {"array_12": target["array_0"]})
    with pytest.raises(Damaged, match="nowhere"):
        read_arrays(tmp_path / "nowhere", target)


def test_checkpoint_without_read_permission_is_not_damaged(tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise Exception("wrapped") from PermissionError(13, "Permission denied", "place")

    monkeypatch.setattr(ocp.StandardCheckpointer, "restore", refuse)
    with pytest.raises(PermissionError, match="place"):
        read_arrays(tmp_path, {})


def test_full_disk_is_detected_before_writing(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoints.shutil, "disk_usage", lambda _: types.SimpleNamespace(free=4000))
    check_space(tmp_path, {"a": np.zeros(1000, np.float32)})
    with pytest.raises(OSError, match=str(tmp_path)) as full:
        check_space(tmp_path, {"a": np.zeros(1000, np.float32), "b": np.zeros(1, np.int8)})
    assert full.value.errno == errno.ENOSPC


LIMITED = """
import pathlib, resource, sys
import jax, numpy as np
from l2l_jax.cli.common import run_command
from l2l_jax.train.checkpoint import Checkpointer
from l2l_jax.weights.saved_models import save_model

def command(argv):
    resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, resource.RLIM_INFINITY))
    folder, rng = pathlib.Path(argv[1]), np.random.default_rng(0)
    if argv[0] == "model":
        return save_model(folder, {str(i): rng.random(20_000, np.float32) for i in range(20)}, {})
    checkpointer = Checkpointer(folder)
    checkpointer.save(1, [jax.device_put(rng.random(2_000, np.float32)) for _ in range(200)], {})
    checkpointer.wait()

sys.exit(run_command(command, sys.argv[1:]))
"""


@pytest.mark.parametrize(("what", "named"), [("model", ""), ("checkpoint", "checkpoint/1")])
def test_file_size_limit_is_one_error(tmp_path, what, named):
    """TensorStore would report every write after the first failure."""
    code, output, errors = forking.run("-c", LIMITED, what, tmp_path / what)
    assert (code, output, errors.count("\n")) == (1, "", 1)
    assert errors.startswith(
        f"Error: A file is larger than `ulimit -f` or the disk allows: {tmp_path / named} could"
    )
