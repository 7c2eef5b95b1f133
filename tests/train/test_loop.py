"""The training loop: resuming, damaged checkpoints, stopping, divergence."""

import dataclasses
import functools
import os
import pathlib
import shutil
import signal
import threading

import jax
import numpy as np
import pytest

from l2l_jax.data.loader import TrainingBatches
from l2l_jax.errors import Diverged, Interrupted, UserError
from l2l_jax.methods.encoder import Encoder
from l2l_jax.train import loop, sharding
from l2l_jax.train.hooks import Observe, read_metrics
from l2l_jax.train.optim import TrainingConfig
from tests.fixtures.linear import LINEAR, TEACHER
from tests.fixtures.training import Images, Watched, crash_at, image_batches, signal_at

OBJECTIVE = Encoder().objective(LINEAR)
MESH = sharding.make_mesh(jax.devices()[:1])
CONFIG = TrainingConfig(
    steps=12, batch_size=4, learning_rate=0.01, warmup_steps=4, checkpoint_every=4, log_every=2, ema_decay=0.9
)


@functools.cache
def trainer(objective, config):
    """Return a trainer shared by many tests, which use one compiled step."""
    return loop.Trainer("unlearn", objective, config, seed=1, mesh=MESH)


def run(folder, batches=None, params=TEACHER, config=CONFIG, objective=OBJECTIVE, teacher=None):
    batches = batches or image_batches(side=2)
    started = loop.TrainRun(params, batches, folder, alpha=0.5, teacher=teacher)
    return trainer(objective, config).train(started)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    return run(folder), read_metrics(folder), folder


@pytest.fixture
def finished(uninterrupted, tmp_path):
    return shutil.copytree(uninterrupted[2], tmp_path / "finished")


def assert_identical(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


def test_only_the_encoder_changes_and_scalars_are_complete(uninterrupted):
    assert_identical(uninterrupted[0]["decoder"], TEACHER["decoder"])
    assert np.abs(uninterrupted[0]["encoder"] - TEACHER["encoder"]).max() > 1e-4
    rows = uninterrupted[1]
    assert [row["step"] for row in rows] == [2, 4, 6, 8, 10, 12]
    for row in rows:
        np.testing.assert_allclose(row["loss"], row["retain"] + 0.5 * row["forget"], rtol=1e-5)
    # Four warm-up steps, then half a cosine from 0.01 over 8; the row of step n has the rate of that update.
    expected = [0.0025, 0.0075, *(0.005 * (1 + np.cos(np.pi * (n - 5) / 8)) for n in (6, 8, 10, 12))]
    np.testing.assert_allclose([row["learning_rate"] for row in rows], expected, rtol=1e-5)


def give_up_at_7(number, fetch):
    """Simulate a read that never returns."""
    if number == 7:
        raise Interrupted(6, signal.SIGINT)
    return fetch()


@pytest.mark.parametrize(
    ("before", "error", "kept"),
    [(signal_at(6), Interrupted, 6), (give_up_at_7, Interrupted, 6), (crash_at(11), KeyboardInterrupt, 8)],
)
def test_resuming_is_bit_identical(before, error, kept, uninterrupted, tmp_path):
    """A signal stops after its step; a crash loses the steps since 8, but does not duplicate log lines."""
    with pytest.raises(error) as stopped:
        run(tmp_path, Watched(image_batches(side=2), before))
    assert error is not Interrupted or stopped.value.step == 6
    assert max(int(path.name) for path in (tmp_path / "checkpoints").iterdir()) == kept
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    assert_identical(run(tmp_path), uninterrupted[0])
    assert read_metrics(tmp_path) == uninterrupted[1]


def damage(checkpoint: pathlib.Path, damaged: str) -> None:
    files = [f for f in checkpoint.rglob("*") if f.is_file()]
    if damaged == "truncated":
        largest = max(files, key=lambda f: f.stat().st_size)
        os.truncate(largest, largest.stat().st_size // 2)
    elif damaged == "emptied":
        for file in files:
            file.write_bytes(b"")
    else:
        for file in (checkpoint / "state").rglob("*"):
            if file.is_file():
                file.unlink()


@pytest.mark.parametrize("damaged", ["truncated", "emptied", "without its state"])
def test_damaged_checkpoint_is_named_and_skipped(uninterrupted, finished, damaged, caplog):
    damage(finished / "checkpoints" / "12", damaged)
    with caplog.at_level("WARNING", logger="l2l_jax"):
        assert_identical(run(finished), uninterrupted[0])
    assert "checkpoint of step 12 is damaged" in caplog.text
    assert (finished / "checkpoints" / "12.damaged").is_dir()
    assert (finished / "checkpoints" / "12").is_dir()  # written again


def test_no_readable_checkpoint_is_an_error(finished):
    for step in ("8", "12"):
        damage(finished / "checkpoints" / step, "emptied")
    with pytest.raises(UserError, match=r"None of the checkpoints in .* \(steps 12, 8\)"):
        run(finished)


def test_non_finite_loss_stops_the_run(tmp_path):
    def poison(number, fetch):
        batch = fetch()
        return {**batch, "forget": batch["forget"] * np.nan} if number == 10 else batch

    with pytest.raises(Diverged, match="not finite at step 10"):
        run(tmp_path, Watched(image_batches(side=2), poison))
    # Earlier checkpoints are intact, and nothing was saved afterwards.
    assert sorted(p.name for p in (tmp_path / "checkpoints").iterdir()) == ["4", "8"]


def test_batch_size_not_divisible_by_devices_is_rejected():
    with pytest.raises(UserError, match="8 devices times 1"):
        loop.Trainer("unlearn", OBJECTIVE, CONFIG, seed=1, mesh=sharding.make_mesh())


def test_training_works_outside_the_main_thread(uninterrupted, tmp_path):
    """As in notebooks and servers, where signal handlers cannot be set."""
    results = []
    thread = threading.Thread(target=lambda: results.append(run(tmp_path)))
    thread.start()
    thread.join()
    assert_identical(results[0], uninterrupted[0])


def test_nothing_is_compiled_after_the_first_step(tmp_path):
    """This includes eager operations, which are also compiled at first use."""
    batches, compiled = [], []

    def listen(event, seconds, **_):
        if event == "/jax/core/compile/backend_compile_duration":
            compiled.append(seconds)

    def count(number, fetch):
        batches.append(len(compiled))
        return fetch()

    fresh = loop.Trainer("unlearn", OBJECTIVE, CONFIG, seed=1, mesh=MESH)
    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        fresh.train(loop.TrainRun(TEACHER, Watched(image_batches(side=2), count), tmp_path, alpha=0.5))
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)
    # The first step is compiled before batch 2; 12 steps, 3 checkpoints and 6 log lines follow.
    assert batches[0] < batches[1] and batches[1:] == [batches[1]] * 11 and len(compiled) == batches[1]


def test_uint8_images_are_scaled_on_the_devices(tmp_path):
    """Files have uint8 pixels: the run matches a run with the same pixels as floats."""

    class Stored(Images):
        def __init__(self, dtype):
            super().__init__()
            self._dtype = dtype

        def __getitem__(self, index):
            image = np.random.default_rng(index).integers(0, 256, (2, 2, 3), np.uint8)
            pixels = image if self._dtype == np.uint8 else (image / 255).astype(np.float32)
            return {"image": pixels, "label": 0, "name": str(index)}

    results = []
    for dtype in (np.uint8, np.float32):
        images, folder = Stored(dtype), tmp_path / np.dtype(dtype).name
        batches = TrainingBatches({"retain": images, "forget": images}, 4, value_range=(0, 1), seed=0)
        assert next(iter(batches))["retain"].dtype == dtype
        results.append((run(folder, batches), read_metrics(folder)))
    (_, mine), (_, theirs) = results
    for row, other in zip(mine, theirs, strict=True):
        assert row == pytest.approx(other, rel=1e-3)


def test_teacher_can_differ_from_the_initial_model(uninterrupted, tmp_path):
    """This occurs if the objective starts training from other weights than the teacher's."""
    teacher = {**TEACHER, "encoder": 1.5 * TEACHER["encoder"]}
    taught = run(tmp_path / "taught", teacher=teacher)
    replaced = dataclasses.replace(OBJECTIVE, start=lambda _, rng: {"encoder": TEACHER["encoder"]})
    assert_identical(taught, run(tmp_path / "replaced", params=teacher, objective=replaced))
    assert np.any(taught["encoder"] != uninterrupted[0]["encoder"])


def test_tensorboard_files_and_truncated_lines(finished, tmp_path):
    from tensorboardX.proto.event_pb2 import Event

    (file,) = finished.glob("events.out.tfevents.*")
    data, scalars = file.read_bytes(), []
    while data:
        size = int.from_bytes(data[:8], "little")
        event = Event.FromString(data[12 : 12 + size])
        scalars += [(event.step, v.tag, v.simple_value) for v in event.summary.value]
        data = data[16 + size :]
    rows = {(row["step"], name): row[name] for row in read_metrics(finished) for name in row}
    assert len(scalars) == 6 * 5  # loss, retain, forget, grad_norm, learning_rate
    for step, tag, value in scalars:
        np.testing.assert_allclose(value, rows[step, tag], rtol=1e-5)
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "loss": 1.0}\n{"step": 2, "lo')
    assert read_metrics(tmp_path) == [{"step": 1, "loss": 1.0}]


def test_trainer_yields_intermediate_models_and_is_traced_once(tmp_path):
    traced, models = [], {}

    def prepare(*arguments):
        traced.append(1)
        return OBJECTIVE.prepare(*arguments)

    constant = dataclasses.replace(CONFIG, schedule="constant")
    trainer = loop.Trainer(
        "unlearn", dataclasses.replace(OBJECTIVE, prepare=prepare), constant, seed=1, mesh=MESH
    )
    results = []
    for folder, steps in {"unseen": (), "seen": (7, 12)}.items():
        batches = image_batches(side=2)
        hooks = [Observe(steps, models.__setitem__)]
        results.append(
            trainer.train(loop.TrainRun(TEACHER, batches, tmp_path / folder, alpha=0.5, hooks=hooks))
        )
    short = loop.TrainRun(TEACHER, image_batches(side=2), tmp_path / "short", alpha=0.5, steps=7)
    assert_identical(trainer.train(short), models[7])
    assert list(models) == [7, 12] and len(traced) == 1
    assert_identical(*results)  # observing has no effect
    assert_identical(models[12], results[1])
