"""Noise with the spectrum of photographs, and images from an array file."""

import pickle

import numpy as np

from l2l_jax.data.generated import EXPONENTS, GeneratedImages, NoiseImages, spectrum_noise


def test_noise_images_fill_the_range_and_follow_their_number():
    images = NoiseImages(count=3, size=8, seed=5)
    assert len(images) == 3 and list(images.labels) == [0, 0, 0]
    pixels = [images[i]["image"] for i in range(3)]
    for image in pixels:
        assert image.shape == (8, 8, 3) and image.dtype == np.float32
        assert image.min() == 0 and image.max() == 1
    assert np.abs(pixels[0] - pixels[1]).max() > 0.1
    np.testing.assert_array_equal(NoiseImages(count=100, size=8, seed=5)[2]["image"], pixels[2])
    assert np.abs(NoiseImages(count=3, size=8, seed=6)[2]["image"] - pixels[2]).max() > 0.1


def test_the_spectrum_falls_by_the_exponents():
    """Along the axes the power of frequency f is 1 / f^2a and 1 / f^2b of that of frequency 1."""
    size, number = 32, 4000

    class Fixed:
        """a = 1, b = 2, and the normal draws of a generator."""

        def __init__(self, rng):
            self.standard_normal = rng.standard_normal

        def uniform(self, low, high, count):
            assert (low, high) == EXPONENTS and count == 2
            return np.array([1.0, 2.0])

    rng = np.random.default_rng(0)
    power = 0.0
    for _ in range(number):
        channel = spectrum_noise(Fixed(rng), size)[..., 0].astype(float)
        transformed = np.abs(np.fft.fft2(channel)) ** 2
        power += transformed / transformed[1:, 1:].sum()  # the stretch to [0, 1] cancels
    # Along x, fy = 0: amplitude 1 / |fx|. 4,000 exponential draws: standard error 1.6 %.
    for frequency in (2, 4, 8):
        np.testing.assert_allclose(power[0, frequency] / power[0, 1], frequency**-2.0, rtol=0.12)
        np.testing.assert_allclose(power[frequency, 0] / power[1, 0], frequency**-4.0, rtol=0.12)


def test_generated_images_are_read_from_their_file(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (5, 4, 4, 3), np.uint8)
    np.save(tmp_path / "images.npy", pixels)
    source = GeneratedImages(tmp_path / "images.npy", 3)
    assert len(source) == len(source.labels) == 3
    source[0]  # opens the file, which is not pickled
    sent = pickle.dumps(source)
    assert len(sent) < 1000
    for each in (source, pickle.loads(sent)):
        record = each[2]
        assert (
            record["label"] == 0 and record["name"] == "generated/2" and record["image"].dtype == np.float32
        )
        np.testing.assert_allclose(record["image"], pixels[2] / 255, rtol=1e-6)
