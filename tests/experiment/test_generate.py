"""Images that a model makes, with a model whose restorations are known."""

import jax.numpy as jnp
import numpy as np
import pytest

from l2l_jax.data.transforms import Transform, TransformConfig
from l2l_jax.errors import UserError
from l2l_jax.evals.image_set import ImageSet
from l2l_jax.experiment import generate as generation
from l2l_jax.utils.io import ResultCache

SIZE, COUNT = 4, 20


class Mirror:
    """Restores what is missing as `gain` times the mirror image of what is there."""

    inpaints_from_patches = False

    image_size, image_shape, value_range, generative_parts = SIZE, (SIZE, SIZE, 3), (-1.0, 1.0), ("encoder",)

    def inpaint(self, params, images, mask, rng):
        return jnp.where(jnp.asarray(mask)[None, ..., None], params["encoder"] * images[:, :, ::-1], images)


MODEL, PARAMS = Mirror(), {"encoder": np.float32(0.5).reshape(1, 1, 1, 1)}


class Source:
    """Random images; some cannot be read."""

    class_names, labels = ("only",), np.zeros(COUNT, int)

    def __init__(self, bad=()):
        self.bad, self.read = bad, []

    def __len__(self):
        return COUNT

    def __getitem__(self, index):
        self.read.append(index)
        if index in self.bad:
            raise OSError(f"image {index} is gone")
        image = np.random.default_rng(index).random((SIZE, SIZE, 3), np.float32)
        return {"image": image, "label": 0, "name": str(index)}


def made(folder, source, params=PARAMS):
    how = Transform(TransformConfig(), SIZE, training=False)
    images = ImageSet(source, how, MODEL.value_range, max_bad_fraction=0.2)
    return generation.generate(MODEL, params, images, folder, batch_size=8, seed=0)


def by_hand(index):
    """Right half from the left, then left half from the right: 0.5 · mirror, 0.25 · itself; in [−1, 1]."""
    left = 2.0 * np.random.default_rng(index).random((SIZE, SIZE, 3), np.float32)[:, : SIZE // 2] - 1
    image = np.concatenate([0.25 * left, 0.5 * left[:, ::-1]], axis=1)
    return (image + 1) / 2


def test_both_halves_are_the_models_own(tmp_path):
    source = made(tmp_path / "generated", Source())
    assert len(source) == COUNT
    for index in range(COUNT):
        np.testing.assert_allclose(source[index]["image"], by_hand(index), atol=0.5 / 255 + 1e-6)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["generated"]


def test_what_lies_there_is_not_made_again(tmp_path):
    made(tmp_path / "generated", Source())
    again = Source()
    assert len(made(tmp_path / "generated", again)) == COUNT and again.read == []
    other = {"encoder": PARAMS["encoder"] * 2}
    with pytest.raises(UserError, match="generated holds images that another original model"):
        made(tmp_path / "generated", Source(), other)


def blocks_made(folder, monkeypatch, params=PARAMS, fails_at=None):
    """Generate images; the source, if it got so far, and the names of the blocks that were stored."""
    stored = []

    class Recorded(ResultCache):
        def put(self, name, *args, **options):
            stored.append(name)
            if name == fails_at:
                raise KeyboardInterrupt("power failure")
            super().put(name, *args, **options)

    monkeypatch.setattr(generation, "ResultCache", Recorded)
    if fails_at is None:
        return made(folder, Source(), params), stored
    with pytest.raises(KeyboardInterrupt):
        made(folder, Source(), params)
    assert not folder.exists()
    return None, stored


def test_interrupted_work_resumes(tmp_path, monkeypatch):
    """Only what is missing is made, and the images are the same."""
    whole, blocks = blocks_made(tmp_path / "whole", monkeypatch)
    assert blocks == ["000000", "000001", "000002"]
    blocks_made(tmp_path / "cut", monkeypatch, fails_at="000001")
    after, blocks = blocks_made(tmp_path / "cut", monkeypatch)
    assert blocks == ["000001", "000002"]
    for index in range(COUNT):
        np.testing.assert_array_equal(after[index]["image"], whole[index]["image"])


def test_what_other_weights_began_is_begun_again(tmp_path, monkeypatch):
    other = {"encoder": PARAMS["encoder"] * 2}
    blocks_made(tmp_path / "generated", monkeypatch, other, fails_at="000002")
    source, blocks = blocks_made(tmp_path / "generated", monkeypatch)
    assert blocks == ["000000", "000001", "000002"]
    np.testing.assert_allclose(source[0]["image"], by_hand(0), atol=0.5 / 255 + 1e-6)


def test_starts_that_cannot_be_decoded_are_left_out(tmp_path):
    source = made(tmp_path / "generated", Source(bad=(3, 17)))
    assert len(source) == COUNT - 2
    good = [index for index in range(COUNT) if index not in (3, 17)]
    for place, index in enumerate(good):
        np.testing.assert_allclose(source[place]["image"], by_hand(index), atol=0.5 / 255 + 1e-6)
