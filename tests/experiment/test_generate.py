"""Images that a model makes, with a model whose restorations are known."""

from types import SimpleNamespace

import jax.numpy as jnp
import numpy as np
import pytest

from l2l_jax.data.transforms import TransformConfig
from l2l_jax.errors import UserError
from l2l_jax.evals.image_set import ImageSet
from l2l_jax.experiment.generate import generate

SIZE, COUNT = 4, 20


class Mirror:
    """Restores what is missing as `gain` times the mirror image of what is there."""

    inpaints_from_patches = False

    image_size, image_shape, value_range, generative_parts = SIZE, (SIZE, SIZE, 3), (-1.0, 1.0), ("encoder",)

    def inpaint(self, params, images, mask, rng):
        return jnp.where(jnp.asarray(mask)[None, ..., None], params["encoder"] * images[:, :, ::-1], images)


MODEL, PARAMS = Mirror(), {"encoder": np.float32(0.5).reshape(1, 1, 1, 1)}


class Source:
    """Random images; some cannot be read, and one is not given because the power fails."""

    class_names, labels = ("only",), np.zeros(COUNT, int)

    def __init__(self, bad=(), cut=None):
        self.bad, self.cut, self.read = bad, cut, []

    def __len__(self):
        return COUNT

    def __getitem__(self, index):
        self.read.append(index)
        if index in self.bad:
            raise OSError(f"image {index} is gone")
        if index == self.cut:
            raise KeyboardInterrupt
        image = np.random.default_rng(index).random((SIZE, SIZE, 3), np.float32)
        return {"image": image, "label": 0, "name": str(index)}


def made(folder, source, params=PARAMS):
    setup = SimpleNamespace(model=MODEL, data=SimpleNamespace(max_bad_fraction=0.2))
    images = ImageSet(setup, source, "test", TransformConfig())
    return generate(MODEL, params, images, folder, batch_size=8, seed=0)


def by_hand(index):
    """Right half from the left, then left half from the right: 0.5 · mirror, 0.25 · itself; in [−1, 1]."""
    left = 2.0 * np.random.default_rng(index).random((SIZE, SIZE, 3), np.float32)[:, : SIZE // 2] - 1
    image = np.concatenate([0.25 * left, 0.5 * left[:, ::-1]], axis=1)
    return (image + 1) / 2


@pytest.mark.parametrize("bad", [(), (3, 17)])
def test_both_halves_are_the_models_own(bad, tmp_path):
    """Starts that cannot be decoded are left out."""
    source = made(tmp_path / "generated", Source(bad))
    good = [index for index in range(COUNT) if index not in bad]
    assert len(source) == len(good)
    for place, index in enumerate(good):
        np.testing.assert_allclose(source[place]["image"], by_hand(index), atol=0.5 / 255 + 1e-6)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["generated"]


def test_what_lies_there_is_not_made_again(tmp_path):
    made(tmp_path / "generated", Source())
    again = Source()
    assert len(made(tmp_path / "generated", again)) == COUNT and again.read == []
    other = {"encoder": PARAMS["encoder"] * 2}
    with pytest.raises(UserError, match="generated holds images that another original model"):
        made(tmp_path / "generated", Source(), other)


def cut_off(folder, index, params=PARAMS):
    """The stored blocks of 8 images, and when they were written, after the power failed at an image."""
    with pytest.raises(KeyboardInterrupt):
        made(folder, Source(cut=index), params)
    blocks = folder.with_name(f"{folder.name}.blocks").glob("*.npz")
    return {path.stem: path.stat().st_mtime_ns for path in blocks}


def test_interrupted_work_resumes(tmp_path):
    """Only what is missing is made, unless other weights began it, and the images are the same."""
    whole, folder = made(tmp_path / "whole", Source()), tmp_path / "cut"
    other = cut_off(folder, 17, {"encoder": PARAMS["encoder"] * 2})
    first, second = cut_off(folder, 10), cut_off(folder, 17)
    assert (set(other), set(first), set(second)) == ({"000000", "000001"}, {"000000"}, set(other))
    assert first["000000"] == second["000000"] != other["000000"]
    resumed = made(folder, Source())
    for index in range(COUNT):
        np.testing.assert_array_equal(resumed[index]["image"], whole[index]["image"])
