"""Batches: balance, order, sharding, resuming."""

import numpy as np
import pytest

from l2l_jax.data.pipeline import in_range, training_batches

UNIT = (0.0, 1.0)


class Counting:
    """A source whose image i is filled with i / 100."""

    def __init__(self, count):
        self.class_names, self.labels = ("only",), np.zeros(count, int)

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, index):
        image = np.full((2, 2, 1), index / 100, np.float32)
        return {"image": image, "label": 0, "name": str(index)}


SETS = {"retain": Counting(12), "forget": Counting(5)}


def indices(batch):
    return {name: np.rint(images[:, 0, 0, 0] * 100).astype(int) for name, images in batch.items()}


def stream(seed=0, batch_size=4, **process):
    return training_batches(SETS, batch_size, value_range=UNIT, seed=seed, **process)


def take(iterator, count):
    return [indices(next(iterator)) for _ in range(count)]


def test_every_epoch_holds_each_image_once_and_the_smaller_set_repeats():
    batches = take(iter(stream(batch_size=6)), 10)  # 60 images of each set
    retain = np.concatenate([b["retain"] for b in batches]).reshape(5, 12)
    forget = np.concatenate([b["forget"] for b in batches]).reshape(12, 5)
    for epochs, count in ((retain, 12), (forget, 5)):
        np.testing.assert_array_equal(np.sort(epochs, axis=1), np.tile(np.arange(count), (len(epochs), 1)))
        assert len({tuple(epoch) for epoch in epochs}) > 1  # shuffled anew


def test_order_depends_on_the_seed_alone():
    first, again, other = (take(iter(stream(seed)), 3) for seed in (0, 0, 1))
    np.testing.assert_equal(first, again)
    assert any((a["retain"] != b["retain"]).any() for a, b in zip(first, other, strict=True))


@pytest.mark.parametrize("count", [2, 4])
def test_processes_share_the_global_batch(count):
    whole = take(iter(stream()), 6)
    parts = [take(iter(stream(process_index=p, process_count=count)), 6) for p in range(count)]
    for number, batch in enumerate(whole):
        for name in SETS:
            joined = np.concatenate([part[number][name] for part in parts])
            np.testing.assert_array_equal(joined, batch[name])


def test_resuming_continues_exactly():
    uninterrupted = take(iter(stream()), 8)
    iterator = iter(stream())
    take(iterator, 3)
    state = iterator.get_state()
    resumed = iter(stream())
    resumed.set_state(state)
    np.testing.assert_equal(take(resumed, 5), uninterrupted[3:])


def test_images_come_in_the_range_of_the_model():
    image = np.array([0.0, 0.5, 1.0])
    np.testing.assert_allclose(in_range(image, (-1, 1)), [-1, 0, 1])
    batch = next(iter(training_batches(SETS, 4, value_range=(-1, 1), seed=0)))
    plain = next(iter(stream()))
    np.testing.assert_allclose(batch["retain"], 2 * plain["retain"] - 1, atol=1e-6)
    assert batch["retain"].shape == (4, 2, 2, 1) and batch["retain"].dtype == np.float32


def test_a_batch_that_processes_cannot_share_is_refused():
    with pytest.raises(ValueError, match="3 processes"):
        stream(process_index=0, process_count=3)
