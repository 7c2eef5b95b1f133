"""Loading of models from saved folders, checkpoints and shipped names, and errors."""

import dataclasses

import jax
import numpy as np
import pytest

from l2l_jax.errors import UserError
from l2l_jax.models.mae.model import MAE
from l2l_jax.weights import transfer
from l2l_jax.weights.loading import download, load_model, load_pretrained, original_weights
from l2l_jax.weights.saved_models import save_model
from tests.weights.checkpoints import SMALL
from tests.weights.test_hugging_face import spelled, write_folder


@pytest.mark.parametrize("name", SMALL)
def test_sizes_come_from_metadata_or_weights(imported, name):
    small = SMALL[name]
    model, folder = load_model(str(imported / name))
    again, file = load_model(imported / f"{name}.safetensors", **small.given)
    assert model == again
    for field in transfer.FAMILIES[name].FORMATS[0].sizes(small.state_dict):
        assert getattr(model, field) == getattr(small.model, field)
    shapes = jax.tree.map(lambda x: (x.shape, x.dtype), model.shapes())
    for params in (folder, file, load_pretrained(imported / name, name, small.model)):
        assert jax.tree.map(lambda x: (x.shape, x.dtype), params) == shapes
        jax.tree.map(np.testing.assert_array_equal, params, folder)


def test_shipped_models_by_name():
    model, params = load_model("digits_mae", dtype="bfloat16")
    assert (model.image_size, model.dtype) == (16, "bfloat16")
    assert jax.tree.map(np.shape, params) == jax.tree.map(lambda x: x.shape, model.shapes())


def test_fields_not_inferred_from_weights_are_optional_or_required(imported):
    model, _ = load_model(imported / "mae", mask_ratio=0.5, scan=True)
    assert (model.width, model.num_heads, model.mask_ratio, model.scan) == (48, 4, 0.5, True)
    with pytest.raises(UserError, match=r"do not show num_heads, .*give num_heads=…"):
        load_model(imported / "mae.safetensors")
    with pytest.raises(UserError, match="mae.safetensors: this model has width=48, but .*width is 64"):
        load_model(imported / "mae.safetensors", width=64, **SMALL["mae"].given)


def test_training_masks_follow_the_config_and_not_the_imported_folder(imported):
    model = dataclasses.replace(SMALL["palette"].model, hole_bank_size=3)
    params = load_pretrained(imported / "palette", "palette", model)
    np.testing.assert_array_equal(params["holes"], model.derived_parts()["holes"])


@pytest.mark.parametrize("path", ["mae", "mae.safetensors"])
@pytest.mark.parametrize("name, value", [("depth", 3), ("width", 64)])
def test_model_that_differs_from_the_config(imported, path, name, value):
    complaint = rf"{path}: this model has {name}=\d+, but config.model.{name} is {value}\. Make them"
    # The fraction of hidden patches may differ, and is not named.
    model = dataclasses.replace(SMALL["mae"].model, mask_ratio=0.25, **{name: value})
    with pytest.raises(UserError, match=complaint):
        load_pretrained(imported / path, "mae", model)


def test_fields_not_inferred_from_shapes_must_agree(imported):
    fields = dict(num_heads=2, norm_pix_loss=True, pixel_mean=(0.5,) * 3, layer_norm_eps=1e-12)
    for name, value in fields.items():
        with pytest.raises(UserError, match=name):
            load_pretrained(imported / "mae", "mae", SMALL["mae"].model.replace(**{name: value}))


def test_other_families_and_missing_weights(imported):
    for path in ("mae", "mae.safetensors"):
        with pytest.raises(UserError, match="this is a mae model, but config.model.family is mage"):
            load_pretrained(imported / path, "mage", SMALL["mage"].model)
    for load in (load_model, lambda path: load_pretrained(path, "mae", SMALL["mae"].model)):
        with pytest.raises(UserError, match="pretrained=.*nowhere does not exist; it should be"):
            load(imported / "nowhere")


def test_metadata_of_the_original_weights(imported, tmp_path):
    folder, file = original_weights(imported / "mae"), original_weights(imported / "mae.safetensors")
    assert folder["sha256"] == file["sha256"] and len(file["sha256"]) == 64
    save_model(tmp_path / "again", {"x": np.zeros(1)}, {"origin": "unlearned", "original_weights": folder})
    assert original_weights(tmp_path / "again") == {"origin": "unlearned", "original_weights": folder}


@pytest.mark.parametrize(
    ("card", "message"),
    [
        ("[]", "model.json is damaged: it should hold a JSON object"),
        ("{}", "its model.json does not name the model's family"),
        ('{"family": "mage"}', "this is a mage model, but config.model.family is mae"),
        ('{"family": "mae", "model": {"widht": 8}}', "widht"),
    ],
)
def test_damaged_metadata_is_named(card, message, tmp_path):
    (tmp_path / "model.json").write_text(card)
    with pytest.raises(UserError, match=message) as raised:
        load_pretrained(tmp_path, "mae", MAE())
    assert str(tmp_path) in str(raised.value)


def test_error_without_huggingface_hub_names_the_package(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "huggingface_hub", None)
    with pytest.raises(UserError, match=r"pip install huggingface_hub.*hf download a/b --local-dir FOLDER"):
        load_model("hf://a/b@main")


@pytest.fixture
def cache(tmp_path, monkeypatch):
    constants = pytest.importorskip("huggingface_hub.constants")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    return tmp_path


def test_cached_model_is_found_offline(cache):
    repository = cache / "models--someone--vit-mae"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs/main").write_text("0" * 40)
    (repository / "snapshots").mkdir()
    write_folder(repository / "snapshots" / ("0" * 40), spelled("old"))
    assert load_model("hf://someone/vit-mae")[0].width == 48
    with pytest.raises(UserError, match=r"hf://someone/other cannot be downloaded.*Without a connection"):
        download("someone/other")
