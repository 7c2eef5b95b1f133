"""Sequences of unlearning requests."""

import json
import pathlib
import runpy

import jax
import numpy as np
import pytest

from l2l_jax.compare.sequence import AT_ONCE, run_sequence, table
from l2l_jax.config import parse_config
from l2l_jax.errors import UserError
from l2l_jax.experiment import unlearn as unlearning

CONFIGS = pathlib.Path(__file__).parents[2] / "configs"
CONFIG = runpy.run_path(str(CONFIGS / "digits_mae_sequence.py"))["get_config"]


def test_config_keeps_forgotten_classes_in_forget():
    configs = [parse_config(CONFIG(request)) for request in "123"]
    assert [config.data.forget for config in configs] == [("5",), ("5", "7"), ("5", "7", "9")]
    assert all(config.data.retain == ("rest",) for config in configs)
    assert [config.pretrained for config in configs] == [
        "digits_mae",
        "runs/sequence/1/unlearned",
        "runs/sequence/2/unlearned",
    ]
    assert all(config.unlearn.retain_budget == 1.25 for config in configs)
    with pytest.raises(UserError, match="has the variants 1, 2, 3, but none called '4'"):
        CONFIG("4")


def test_each_request_starts_from_the_previous_model(one_device, monkeypatch, tmp_path):
    """Unlearning is replaced by noise on the weights, which increases from model to model."""
    raw_config = CONFIG()
    raw_config.evaluate.update(features="none", batch_size=32)
    raw_config.data.test_per_class = 8
    calls = []

    def unlearned(config, folders, params, sets):
        calls.append((config.data.forget, config.pretrained, len(sets.retain), len(sets.forget)))
        scale = 0.01 if config.pretrained == "digits_mae" else 0.02 * len(config.data.forget)
        rng = np.random.default_rng(len(calls))
        return jax.tree.map(lambda x: x + np.float32(scale) * rng.standard_normal(x.shape), params)

    monkeypatch.setattr(unlearning, "unlearned_params", unlearned)
    rows = run_sequence(parse_config(raw_config), tmp_path, ["5", "7", "9"])
    assert [call[0] for call in calls] == [("5",), ("5", "7"), ("5", "7", "9"), ("5", "7", "9")]
    assert [call[1] for call in calls] == [
        "digits_mae",
        str(tmp_path / "1/unlearned"),
        str(tmp_path / "2/unlearned"),
        "digits_mae",
    ]
    assert len({call[2] + call[3] for call in calls}) == 1  # every training image is in one of both sets
    assert list(rows) == ["original", "5", "then 7", "then 9", AT_ONCE]
    assert set(rows["5"]) == {"error on 5", "error on 7", "error on 9", "error on the rest"}
    for name in rows["5"]:
        assert rows["original"][name] == pytest.approx([1, 1, 1])
        one, two, three = (rows[row][name][0] for row in ("5", "then 7", "then 9"))
        assert 1 < one < two < three  # each request receives the model of the previous one,
        assert 1 < rows[AT_ONCE][name][0] < two  # and the last receives the original
    assert json.loads((tmp_path / "sequence.json").read_text())["rows"]["5"] == rows["5"]
    assert table(rows, "github") in (tmp_path / "sequence.md").read_text()


@pytest.mark.slow
def test_forgotten_classes_are_replayed_from_prototypes(one_device, monkeypatch, tmp_path):
    """Unlearning is skipped: every request is replayed by the original model."""
    raw_config = CONFIG()
    raw_config.evaluate.update(features="none", batch_size=32)
    raw_config.data.update(
        test_per_class=2, train_per_class=4, retain_images="generated", prototypes=str(tmp_path / "p.npz")
    )
    given = []

    def unlearned(config, folders, params, sets):
        given.append([[x[i]["name"] for i in range(len(x))] for x in (sets.forget, sets.retain)])
        return params

    monkeypatch.setattr(unlearning, "unlearned_params", unlearned)
    run_sequence(parse_config(raw_config), tmp_path, ["5", "7"])
    real = [[name for name in forget if not name.startswith("generated")] for forget, _ in given]
    assert [len(forget) for forget, _ in given] == [4, 8, 8]
    assert [len(names) for names in real] == [4, 4, 8]  # the last request forgets everything at once
    assert not set(real[0]) & set(real[1]) and set(real[2]) == {*real[0], *real[1]}
    assert all(name.startswith("prototypes/") for _, retain in given for name in retain)
    images = np.load(tmp_path / "1" / "replayed" / "images.npy")
    assert images.shape[0] == 4 and images.std() > 20
