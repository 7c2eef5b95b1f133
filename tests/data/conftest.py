"""Prepared data sets, without TensorFlow."""

import pathlib
import tarfile

import pytest
from etils.epath import backend
from fsspec.implementations.memory import MemoryFileSystem


@pytest.fixture
def prepared(tmp_path):
    """A data_dir with data sets created by `tests.data.small_archives` and prepared by TFDS."""
    with tarfile.open(pathlib.Path(__file__).with_name("prepared.tar.gz")) as archive:
        archive.extractall(tmp_path / "tfds", filter="data")
    return tmp_path / "tfds"


class Bucket(MemoryFileSystem):
    """In-memory Google Cloud Storage; like gcsfs, it returns paths without `gs://`."""

    protocol = ("gs", "gcs")

    @classmethod
    def _strip_protocol(cls, path):
        return "/" + path.removeprefix("gs://").strip("/")


@pytest.fixture
def bucket(monkeypatch):
    monkeypatch.setattr(Bucket, "store", {})
    monkeypatch.setattr(Bucket, "pseudo_dirs", [""])
    memory = Bucket(skip_instance_cache=True)
    monkeypatch.setattr(backend.fsspec_backend, "fs", lambda path: memory)
    return "gs://bucket"
