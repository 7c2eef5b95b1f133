"""Saved models whose card is damaged; what they hold: tests/weights/test_transfer.py."""

import pytest

from l2l_jax.errors import UserError
from l2l_jax.models.mae.model import MAE
from l2l_jax.weights.transfer import load_pretrained


@pytest.mark.parametrize(
    ("card", "message"),
    [
        (None, "is not a saved model: it has no model.json"),
        ("nonsense", "model.json is damaged and cannot be read"),
        ("[]", "model.json is damaged: it should hold a JSON object"),
        ("{}", "its model.json does not name the model's family"),
        ('{"family": "mage"}', "this is a mage model, but config.model.family is mae"),
        ('{"family": "mae", "model": {"widht": 8}}', "widht"),
    ],
)
def test_damaged_cards_are_named(card, message, tmp_path):
    if card is not None:
        (tmp_path / "model.json").write_text(card)
    with pytest.raises(UserError, match=message) as raised:
        load_pretrained(tmp_path, "mae", MAE())
    assert str(tmp_path) in str(raised.value)
