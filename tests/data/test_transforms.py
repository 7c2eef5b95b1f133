"""Cropping and resizing compared with NumPy and Pillow."""

import numpy as np
import pytest
from PIL import Image

from l2l_jax.data.decoding import open_image
from l2l_jax.data.transforms import Box, Transform, TransformConfig, random_crop, resize
from tests.data.pictures import encoded, gradient

RATIO = (3 / 4, 4 / 3)


def noise(height, width, seed=0):
    picture = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    return np.asarray(Image.fromarray(picture).resize((width, height), Image.Resampling.BOX))


def cubic_weights(length, size):
    """Return weights `[size, length]` of bicubic resizing: Keys' kernel, a = −0.5, widened to downsample."""
    scale = length / size
    width = max(scale, 1)
    centres = (np.arange(size) + 0.5) * scale - 0.5
    x = np.abs(np.arange(length)[None] - centres[:, None]) / width
    near = 1.5 * x**3 - 2.5 * x**2 + 1
    far = -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2
    weights = np.where(x < 1, near, np.where(x < 2, far, 0))
    return weights / weights.sum(axis=1, keepdims=True)


@pytest.mark.parametrize("shape", [(60, 100), (23, 41), (32, 90), (128, 32)])
@pytest.mark.parametrize("kind", ["uint8", "float32"])
def test_resizing_is_antialiased_bicubic(shape, kind):
    picture = noise(*shape) if kind == "uint8" else noise(*shape).astype(np.float32) / 255
    rows, columns = (cubic_weights(length, 32) for length in shape)
    top = 255 if kind == "uint8" else 1
    narrow = np.einsum("ij,jkc->ikc", rows, picture)
    if kind == "uint8":  # uint8 is rounded and clipped between the passes
        narrow = np.clip(np.rint(narrow), 0, 255)
    expected = np.clip(np.einsum("ikc,lk->ilc", narrow, columns), 0, top)
    result = resize(picture, Box(0, 0, *shape), 32)
    assert result.dtype == picture.dtype
    # Weights for uint8 have 16 bits.
    np.testing.assert_allclose(result, expected, atol=1.5 if kind == "uint8" else 1e-5)


def test_pixels_outside_the_box_are_ignored():
    picture = noise(60, 80)
    box = Box(10, 20, 31, 45)
    other = np.full_like(picture, 255)
    other[10:41, 20:65] = picture[10:41, 20:65]
    np.testing.assert_array_equal(resize(picture, box, 16), resize(other, box, 16))
    image = np.random.default_rng(0).random((16, 16, 3), np.float32)
    np.testing.assert_array_equal(transform()(image, (0,)), image)


def draws(count, height=375, width=500, scale=(0.2, 1.0)):
    return [random_crop(height, width, scale, RATIO, np.random.default_rng(i)) for i in range(count)]


def test_random_crops_have_the_specified_area_and_aspect_ratio():
    top, left, height, width = np.array(draws(3000)).T
    assert (np.minimum(top, left) >= 0).all()
    assert (top + height <= 375).all() and (left + width <= 500).all()
    share, ratio = height * width / (375 * 500), width / height
    rounding = 0.01
    assert share.min() >= 0.2 - rounding and share.max() <= 1
    assert ratio.min() >= 3 / 4 - rounding and ratio.max() <= 4 / 3 + rounding
    assert share.min() < 0.21 and share.max() > 0.9  # the full range is used
    assert abs(np.log(ratio[share < 0.4]).mean()) < 0.02  # symmetric in the logarithm, where all fit


def test_small_crops_are_uniform_in_area_and_position():
    """Below 0.4 of the area every aspect ratio fits, so no crop is resampled."""
    top, left, height, width = np.array(draws(4000, scale=(0.1, 0.4))).T
    share = height * width / (375 * 500)
    tenths = np.histogram(share, 10, (0.1, 0.4))[0] / 4000
    np.testing.assert_allclose(tenths, 0.1, atol=0.025)  # five standard deviations
    for place in ((top / (375 - height)), (left / (500 - width))):
        np.testing.assert_allclose(np.histogram(place, 10, (0, 1))[0] / 4000, 0.1, atol=0.03)


@pytest.mark.parametrize(
    ("height", "width", "expected"),
    [
        (10, 1000, Box(0, 493, 10, 13)),  # too wide: 4/3 of the height, centered
        (1000, 10, Box(493, 0, 13, 10)),  # too high: width / (3/4)
        (1, 1, Box(0, 0, 1, 1)),
    ],
)
def test_center_crop_if_no_random_crop_fits(height, width, expected):
    assert random_crop(height, width, (0.9, 1.0), RATIO, np.random.default_rng(0)) == expected


def transform(size=16, training=True, **config):
    return Transform(TransformConfig(**config), size, training=training)


def test_randomness_depends_only_on_the_seed():
    file = encoded(noise(40, 60), "PNG")
    crop = transform(crop="random", flip=True)
    np.testing.assert_array_equal(crop(file, (1, 0, 2, 3)), crop(file, (1, 0, 2, 3)))
    assert any((crop(file, (1, 0, 2, 3)) != crop(file, (1, 0, epoch, 3))).any() for epoch in (3, 4))


def test_flip_half_of_training_images_and_no_test_images():
    picture = gradient(16, 16)
    flip = transform(flip=True)
    squares = [flip(encoded(picture, "PNG"), (i,)) for i in range(200)]
    mirrored = [np.array_equal(image, picture[:, ::-1]) for image in squares]
    assert all(m or np.array_equal(image, picture) for m, image in zip(mirrored, squares, strict=True))
    assert 65 < sum(mirrored) < 135  # five standard deviations
    np.testing.assert_array_equal(
        transform(flip=True, training=False)(encoded(picture, "PNG"), (0,)), picture
    )


@pytest.mark.parametrize(("crop", "training"), [("random", False), ("centre", True), ("centre", False)])
def test_center_crops(crop, training):
    """Test images are center-cropped even if training images are cropped randomly."""
    picture = noise(16, 40)
    for axes in ((0, 1, 2), (1, 0, 2)):
        file = encoded(np.ascontiguousarray(picture.transpose(axes)), "PNG")
        square = transform(crop=crop, training=training)(file, (0,))
        np.testing.assert_array_equal(square, picture[:, 12:28].transpose(axes))


def test_large_jpegs_are_decoded_at_reduced_size():
    """Decoded at half the size, because the result is a sixth; compared with a crop of the full image."""
    picture = np.asarray(Image.fromarray(noise(40, 50)).resize((500, 400), Image.Resampling.BICUBIC))
    file = encoded(picture, "JPEG", quality=95)
    small = transform(64)(file, (0,))
    full = resize(open_image(file).pixels(), Box(0, 0, 400, 500), 64)
    assert (small != full).any()
    error = np.square(small.astype(float) - full).mean()
    assert 10 * np.log10(255**2 / error) > 38
