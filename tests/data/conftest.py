"""Prepared data sets, without TensorFlow."""

import pathlib
import tarfile

import pytest


@pytest.fixture
def prepared(tmp_path):
    """A data_dir with the data sets that `tests.data.small_archives` made and TFDS prepared."""
    with tarfile.open(pathlib.Path(__file__).with_name("prepared.tar.gz")) as archive:
        archive.extractall(tmp_path / "tfds", filter="data")
    return tmp_path / "tfds"
