"""State dicts and checkpoint files shared by the tests of this folder."""

import dataclasses
import pathlib

import numpy as np
import safetensors.numpy

from l2l_jax.models.palette.diffusion import schedule_buffers
from tests.models import test_mae, test_mage, test_unet
from tests.reference_arrays import Case


@dataclasses.dataclass(frozen=True)
class Small:
    """A reference case as a published checkpoint; `given` has fields that cannot be inferred from it."""

    model: object
    state_dict: dict[str, np.ndarray]
    given: dict[str, object]


def network(unet):
    """Return Palette's `Network` with a U-Net and the buffers of its training schedule."""
    wrapped = {f"denoise_fn.{key}": value for key, value in unet.items()}
    return wrapped | schedule_buffers(np.linspace(1e-6, 0.01, 2000))


HEADS = dict(num_heads=4, decoder_num_heads=4)
PALETTE = dict(image_size=32, num_head_channels=16, hole_bank_size=1)
SMALL = {
    "mae": Small(test_mae.TINY, Case("mae_tiny").state_dict(), HEADS),
    "mage": Small(test_mage.TINY, test_mage.state_dict(), HEADS),
    "palette": Small(test_unet.TINY, network(Case("palette_unet_tiny").state_dict()), PALETTE),
}


def write_safetensors(path: pathlib.Path, state_dict) -> pathlib.Path:
    contiguous = {key: np.ascontiguousarray(value) for key, value in state_dict.items()}
    safetensors.numpy.save_file(contiguous, path)
    return path


def options(given):
    return [argument for name, value in given.items() for argument in ("--set", f"{name}={value}")]


def assert_same_bits(found, expected):
    """Assert equal keys, dtypes, shapes and bits."""
    assert set(found) == set(expected)
    for key, value in expected.items():
        array = np.asarray(found[key])
        assert (array.dtype, array.shape) == (value.dtype, value.shape), key
        assert np.ascontiguousarray(array).tobytes() == np.ascontiguousarray(value).tobytes(), key
