"""Batches: balancing, order, sharding, resuming."""

import contextlib
import json
import os
import signal

import numpy as np
import pytest

from l2l_jax.data.bad_images import BadImages, read_lists
from l2l_jax.data.loader import EpochOrder, LoaderOptions, TrainingBatches
from l2l_jax.data.reading import BadImage, warn_of_shrinking
from l2l_jax.data.records import Source
from l2l_jax.data.transforms import Transform, TransformConfig, in_range
from l2l_jax.errors import UserError
from tests.data.pictures import Files, encoded, gradient

UNIT = (0.0, 1.0)


class Counting(Source):
    """A source whose image i is filled with i / 100."""

    def __init__(self, count):
        self.class_names, self.labels = ("only",), np.zeros(count, int)

    def __getitem__(self, index):
        image = np.full((2, 2, 1), index / 100, np.float32)
        return {"image": image, "label": 0, "name": str(index)}


SETS = {"retain": Counting(12), "forget": Counting(5)}


def indices(batch):
    return {name: np.rint(images[:, 0, 0, 0] * 100).astype(int) for name, images in batch.items()}


def stream(seed=0, batch_size=4, **process):
    return TrainingBatches(SETS, batch_size, value_range=UNIT, seed=seed, options=LoaderOptions(**process))


def take(iterator, count):
    return [indices(next(iterator)) for _ in range(count)]


def test_every_epoch_has_each_image_once_and_the_smaller_set_repeats():
    batches = take(iter(stream(batch_size=6)), 10)  # 60 images per set
    retain = np.concatenate([b["retain"] for b in batches]).reshape(5, 12)
    forget = np.concatenate([b["forget"] for b in batches]).reshape(12, 5)
    for epochs, count in ((retain, 12), (forget, 5)):
        np.testing.assert_array_equal(np.sort(epochs, axis=1), np.tile(np.arange(count), (len(epochs), 1)))
        assert len({tuple(epoch) for epoch in epochs}) > 1  # reshuffled every epoch
    np.testing.assert_equal(take(iter(stream(batch_size=6)), 3), batches[:3])  # determined by the seed
    assert (take(iter(stream(1, batch_size=6)), 1)[0]["retain"] != batches[0]["retain"]).any()


def test_images_are_in_the_range_of_the_model():
    image = np.array([0.0, 0.5, 1.0])
    np.testing.assert_allclose(in_range(image, (-1, 1)), [-1, 0, 1])
    batch = next(iter(TrainingBatches(SETS, 4, value_range=(-1, 1), seed=0)))
    plain = next(iter(stream()))
    np.testing.assert_allclose(batch["retain"], 2 * plain["retain"] - 1, atol=1e-6)
    assert batch["retain"].shape == (4, 2, 2, 1) and batch["retain"].dtype == np.float32


def test_batch_size_not_divisible_by_processes_is_rejected():
    with pytest.raises(ValueError, match="3 processes"):
        stream(process_index=0, process_count=3)


TRANSFORMS = {split: Transform(TransformConfig(crop="random", flip=True), 6, training=True) for split in SETS}


def from_files(broken=(), seed=0, batch_size=8, counts=(40, 12), max_fraction=0.2, folder=None, **options):
    """Return a stream of random crops of uniformly colored files, with a list of bad images."""
    sets = {"retain": Files(counts[0], broken), "forget": Files(counts[1])}
    kwargs = dict(value_range=(0, 255), seed=seed, transforms=TRANSFORMS)
    return TrainingBatches(sets, batch_size, options=LoaderOptions(folder, max_fraction, **options), **kwargs)


def colors(batches, count, split="retain"):
    """Return the indices of the images in `count` batches, read from their colors."""
    with contextlib.closing(iter(batches)) as iterator:
        images = np.concatenate([next(iterator)[split] for _ in range(count)])
    return np.rint((images.mean(axis=(1, 2, 3)) - 10) / 2).astype(int)


def batches_of(stream, count, state=None):
    with contextlib.closing(iter(stream)) as iterator:
        if state is not None:
            iterator.set_state(state)
        batches = [next(iterator) for _ in range(count)]
        return batches, iterator.get_state()


def test_workers_and_threads_give_the_same_batches():
    expected, _ = batches_of(from_files(), 6)
    np.testing.assert_equal(batches_of(from_files(workers=2), 6)[0], expected)
    assert {(x.dtype.name, x.shape) for x in expected[0].values()} == {("uint8", (8, 6, 6, 3))}  # not scaled


@pytest.mark.parametrize(("before", "after"), [(0, 1), (1, 0)])
def test_resume_within_an_epoch_with_workers(before, after):
    """40 images in batches of 8: the fourth batch is within the first epoch."""
    expected, _ = batches_of(from_files(), 7)
    _, state = batches_of(from_files(workers=before), 3)
    resumed, _ = batches_of(from_files(workers=after), 4, json.loads(json.dumps(state)))
    np.testing.assert_equal(resumed, expected[3:])


def test_resume_with_other_process_count(caplog):
    """Bad images are also replaced equally for any number of processes."""
    broken = [1, 5, 8, 21, 22, 39]
    uninterrupted, _ = batches_of(from_files(broken), 5)
    parts = [batches_of(from_files(broken, process_index=p, process_count=4), 2) for p in range(4)]
    assert len({json.dumps(state) for _, state in parts}) == 1  # one checkpoint for all
    with caplog.at_level("INFO", "l2l_jax"):
        halves = [
            batches_of(from_files(broken, process_index=p, process_count=2), 3, parts[0][1])[0]
            for p in range(2)
        ]
    for number in range(3):
        for split in SETS:
            joined = np.concatenate([half[number][split] for half in halves])
            np.testing.assert_array_equal(joined, uninterrupted[2 + number][split])
    assert "read by 4 processes and are now read by 2" in caplog.text and "with batch 3" in caplog.text


def test_process_reads_only_its_own_images():
    class Listing(Counting):
        def __init__(self, count):
            super().__init__(count)
            self.read = []

        def __getitem__(self, index):
            self.read.append(index)
            return super().__getitem__(index)

    source = Listing(400)  # an epoch of 20 batches, more than are prefetched
    part = LoaderOptions(process_index=1, process_count=4)
    batches_of(TrainingBatches({"all": source}, 20, value_range=UNIT, seed=0, options=part), 2)
    everything = TrainingBatches({"all": Counting(400)}, 20, value_range=UNIT, seed=0)
    mine = [np.rint(b["all"][5:10, 0, 0, 0] * 100).astype(int) for b in batches_of(everything, 20)[0]]
    assert set(source.read) <= set(np.concatenate(mine)) and len(source.read) >= 10


@pytest.mark.parametrize("workers", [0, 1])
def test_bad_images_are_replaced(workers, tmp_path):
    """Batches stay full, other positions keep their image, and the list has the bad images."""
    good = colors(from_files(), 5)  # one epoch
    replaced = colors(from_files(broken=[3, 30], folder=tmp_path, workers=workers), 5)
    at = np.isin(good, [3, 30])
    np.testing.assert_array_equal(replaced[~at], good[~at])
    places = np.flatnonzero(at)
    np.testing.assert_array_equal(replaced[at], good[(places + 20) % 40])  # half an epoch later
    listed = [json.loads(line) for line in (tmp_path / "bad_images.jsonl").read_text().splitlines()]
    assert {(row["set"], row["image"]) for row in listed} == {("retain", "image 3"), ("retain", "image 30")}
    assert all("runcated" in row["reason"] for row in listed)


@pytest.mark.parametrize(("broken", "most", "count"), [(9, 0.2, 9), (1, 0.0, 1), (40, 1.0, "")])
def test_too_many_bad_images_stop_the_run_with_a_list(broken, most, count, tmp_path):
    stream = from_files(broken=range(broken), max_fraction=most, folder=tmp_path)
    message = rf"{count} of 40 images of the retain set .*max_bad_fraction={most:g} .*image \d \("
    with pytest.raises(UserError, match=message):
        colors(stream, 6)


def test_error_if_all_records_are_one_bad_file():
    class Same(Files):
        def __getitem__(self, index):
            return {**super().__getitem__(index), "name": "the only one"}

    kwargs = dict(value_range=UNIT, seed=0, options=LoaderOptions(None, 0.9))
    stream = TrainingBatches(
        {"all": Same(6, range(6))}, 2, transforms={"all": TRANSFORMS["retain"]}, **kwargs
    )
    with pytest.raises(UserError, match="There is no image to replace"):
        colors(stream, 1, "all")


def test_killed_worker_ends_the_stream_with_an_error():
    with contextlib.closing(iter(from_files(workers=1))) as iterator:
        next(iterator)
        os.kill(iterator.worker_ids[0], signal.SIGKILL)
        with pytest.raises(UserError, match=r"worker process.*exit code -9.*config\.data\.workers"):
            for _ in range(100):  # prefetched batches come first
                next(iterator)


def test_bad_image_list_with_non_utf8_names(tmp_path):
    names = ["Jos\udce9/1.jpg", "Jürgen/2.jpg", "\u7530\u4e2d.jpg"]
    bad = BadImages(tmp_path, {"all": 100}, 0.5)
    bad.record("all", [BadImage(name, "empty") for name in names])
    assert read_lists(tmp_path) == {"all": dict.fromkeys(names, "empty")}


@pytest.mark.parametrize(
    ("shape", "size", "warns"),
    [((300, 400), 16, True), ((28, 28), 8, True), ((28, 28), 16, False), ((2000, 2000), 224, False)],
)
def test_warning_if_images_shrink_a_lot(shape, size, warns, caplog):
    class Same(Files):
        def __getitem__(self, index):
            return {"image": encoded(np.zeros((*shape, 3), np.uint8), "PNG"), "label": 0, "name": str(index)}

    warn_of_shrinking(Same(3), size)
    assert (f"{shape[1]}×{shape[0]} → {size}×{size} pixels" in caplog.text) == warns


def test_crop_depends_on_the_epoch_but_not_on_the_batch():
    """An image has the same crop in any batch of an epoch, and a different crop in the next epoch."""
    picture = encoded(gradient(), "PNG")

    class Same(Files):
        def __getitem__(self, index):
            return {"image": picture, "label": 0, "name": str(index)}

    def crops(batch_size, count):
        stream = TrainingBatches(
            {"all": Same(8)}, batch_size, value_range=UNIT, seed=0, transforms={"all": TRANSFORMS["retain"]}
        )
        return np.concatenate([batch["all"] for batch in batches_of(stream, count)[0]])

    two_epochs = crops(4, 4)
    np.testing.assert_array_equal(two_epochs, crops(8, 2))
    assert len({image.tobytes() for image in two_epochs}) == 16


def test_order_is_stable_across_versions():
    """Raw words of Philox, whose stream NumPy guarantees, sorted in Python."""
    words = np.random.Philox(np.random.SeedSequence((5, 2))).random_raw(6)
    by_hand = np.array(sorted(range(6), key=lambda i: words[i]))
    order, places = EpochOrder(6, seed=5), np.array([14, 12, 17])
    np.testing.assert_array_equal(order(np.arange(12, 18))[1], by_hand)
    np.testing.assert_array_equal(order(places)[1], by_hand[places - 12])  # positions are independent
