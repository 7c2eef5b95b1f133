"""Forget the digit 5, then 7, then 9 with the digits MAE, in three sequential requests.

    python -m l2l_jax.main --config=configs/digits_mae_sequence.py:1 --workdir=runs/sequence/1
    python -m l2l_jax.main --config=configs/digits_mae_sequence.py:2 --workdir=runs/sequence/2
    python -m l2l_jax.main --config=configs/digits_mae_sequence.py:3 --workdir=runs/sequence/3

Each request starts from the model of the previous one. Digits forgotten earlier stay in the forget set and
are no longer retained, so they do not come back. The retain budget is relative to the first original
model, so costs do not accumulate. This command runs all three and compares them with one request for all:

    python -m l2l_jax.compare --config=configs/digits_mae_sequence.py:1 --sequence=5,7,9

Hardware: two CPU cores, about the time of configs/digits_mae.py for each request.
Expected metrics on test images: research/digits/comparison.md, "Sequential requests".
"""

import pathlib
import runpy

from ml_collections import ConfigDict

from l2l_jax.config_bases import combine

REQUESTS = ("5", "7", "9")


def get_config(request: str = "1") -> ConfigDict:
    """Return the config of a request by its number; all else is configs/digits_mae.py:encoder."""
    requests = {}
    for number in range(1, len(REQUESTS) + 1):
        changes = dict(data=dict(forget=REQUESTS[:number], retain=("rest",)))
        start = dict(model=dict(pretrained=f"runs/sequence/{number - 1}/unlearned")) if number > 1 else {}
        requests[str(number)] = [changes, start]
    digits_mae = runpy.run_path(str(pathlib.Path(__file__).with_name("digits_mae.py")))["get_config"]
    disabled = dict(audit=dict(enabled=False))  # no shipped model was retrained without just these digits
    return combine(request, digits_mae("encoder").to_dict(), disabled, **requests)
