"""Fixtures shared by the tests of this folder."""

import pytest

from l2l_jax.weights import transfer
from tests.weights.checkpoints import SMALL, write_safetensors


@pytest.fixture(scope="package")
def imported(tmp_path_factory):
    """The small cases, as files and as imported folders."""
    folder = tmp_path_factory.mktemp("small")
    for name, small in SMALL.items():
        path = write_safetensors(folder / f"{name}.safetensors", small.state_dict)
        transfer.import_checkpoint(path, folder / name, fields=small.given)
    return folder
