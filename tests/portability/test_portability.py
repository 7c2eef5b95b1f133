"""Agreement within tolerances across device counts and dtypes, and detection of differences."""

import copy
import json
import pathlib

import numpy as np
import pytest

from l2l_jax.errors import UserError
from l2l_jax.portability import cases
from l2l_jax.portability.__main__ import TOLERANCES, compare, compute, main, table
from tests.matrix import soak


@pytest.fixture(scope="module", params=[("mae",), soak([*cases.MODELS])], ids=["mae", "all"])
def record(request):
    """A record of one family in every run, with all other cases removed."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cases, "MODELS", {name: cases.MODELS[name] for name in request.param})
        yield compute(1, "jit", "float32", "highest")


def test_record_has_all_quantities(record):
    assert list(record["cases"]) == list(cases.MODELS)
    for name, figures in record["cases"].items():
        assert set(figures) == set(TOLERANCES) - ({"tokens"} if name != "mage" else set())
        assert all(np.isfinite(values).all() and np.any(values) for values in figures.values())
        assert len(figures["loss"]) == 3
    if "mage" in record["cases"]:
        assert len(set(record["cases"]["mage"]["tokens"])) > 8  # of 64 codes
    assert record["facts"]["devices"] == 1 and record["facts"]["dtype"] == "float32"


@pytest.mark.soak
def test_eight_devices(record):
    """Under pmap; in every run, train/test_parallel.py compares device layouts."""
    rows = compare(record, compute(8, "pmap", "float32", "highest"))
    assert all(row.holds for row in rows), table(rows)
    assert all(row.tolerance == TOLERANCES[row.quantity][0] for row in rows)


@pytest.mark.soak
def test_bfloat16(record):
    """In every run, models/test_precision.py covers bfloat16 for all families."""
    rows = compare(record, compute(1, "jit", "bfloat16", "highest"))
    assert all(row.holds for row in rows), table(rows)
    strict = {quantity: float32 for quantity, (float32, _) in TOLERANCES.items()}
    features = [row for row in rows if row.quantity == "features"]
    assert all(row.difference > strict["features"] for row in features)  # bfloat16 was used


def with_tokens(record):
    record = copy.deepcopy(record)
    record["cases"]["mae"]["tokens"] = list(range(200))
    return record


def test_reduced_precision_has_larger_tolerances(record):
    record = with_tokens(record)
    other = {**record, "facts": {**record["facts"], "dtype": "bfloat16"}}
    result = {row.quantity: row.tolerance for row in compare(record, other)}
    assert result == {quantity: most for quantity, (_, most) in TOLERANCES.items() if most is not None}


@pytest.mark.parametrize(
    ("quantity", "change"),
    [
        ("loss", lambda values: [1.1 * value for value in values]),
        ("moments", lambda values: [-value for value in values]),
        ("features", lambda values: [float("nan"), *values[1:]]),
        ("parameters", lambda values: values[1:]),
        ("tokens", lambda values: [value + (i % 100 == 0) for i, value in enumerate(values)]),
    ],
)
def test_differences_are_detected(record, quantity, change):
    record = with_tokens(record)
    other = copy.deepcopy(record)
    other["cases"]["mae"][quantity] = change(other["cases"]["mae"][quantity])
    wrong = [(row.case, row.quantity) for row in compare(record, other) if not row.holds]
    assert wrong == [("mae", quantity)]


def test_command_line(record, tmp_path, capsys, monkeypatch):
    computed = []

    def once(*arguments):
        computed.append(arguments)
        return record

    monkeypatch.setattr("l2l_jax.portability.__main__.compute", once)
    path = tmp_path / "record.json"
    main(["portability", "record", str(path), "--devices=2", "--dtype=bfloat16"])
    assert computed == [(2, "jit", "bfloat16", "highest")]
    main(["portability", "compare", str(path)])
    assert "| mae | grad_norm" in " ".join(capsys.readouterr().out.split())
    changed = json.loads(path.read_text())
    changed["cases"]["mae"]["loss"][0] *= 2
    path.write_text(json.dumps(changed))
    count = sum(map(len, record["cases"].values()))
    with pytest.raises(UserError, match=f"1 of {count} quantities differ by more than allowed: loss of mae"):
        main(["portability", "compare", str(path)])


def test_user_errors(tmp_path):
    with pytest.raises(UserError, match="--devices=3: there are 8, and their number must divide 16 images"):
        compute(3, "jit", "float32", "highest")
    with pytest.raises(UserError, match="missing.json cannot be read"):
        main(["portability", "compare", str(tmp_path / "missing.json")])
    (tmp_path / "other.json").write_text("[]")
    with pytest.raises(UserError, match="other.json is not a record"):
        main(["portability", "compare", str(tmp_path / "other.json")])
    with pytest.raises(UserError, match="Argument --dtype: invalid choice: 'float64'"):
        main(["portability", "record", "x.json", "--dtype=float64"])


def test_documented_tolerances():
    text = (pathlib.Path(__file__).parents[2] / "docs" / "guides" / "portability.md").read_text()
    for quantity, (exact, otherwise) in TOLERANCES.items():
        rounded = "not compared" if otherwise is None else f"{otherwise:g}"
        assert f"| `{quantity}` | {exact:g} | {rounded} |" in text
