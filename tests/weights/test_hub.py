"""Models of the Hugging Face hub, found in its cache without a connection."""

import pytest

from l2l_jax.errors import UserError
from l2l_jax.weights.hub import download
from l2l_jax.weights.loading import load_model
from tests.weights.test_hugging_face import spelled, write_folder


def test_without_huggingface_hub_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "huggingface_hub", None)
    with pytest.raises(UserError, match=r"pip install huggingface_hub.*hf download a/b --local-dir FOLDER"):
        load_model("hf://a/b@main")


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty cache, without a connection."""
    constants = pytest.importorskip("huggingface_hub.constants")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    return tmp_path


def test_a_cached_model_is_found_offline(cache):
    repository = cache / "models--someone--vit-mae"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs/main").write_text("0" * 40)
    (repository / "snapshots").mkdir()
    write_folder(repository / "snapshots" / ("0" * 40), spelled("old"))
    assert load_model("hf://someone/vit-mae")[0].width == 48
    with pytest.raises(UserError, match=r"hf://someone/other cannot be downloaded.*Without a connection"):
        download("someone/other")
