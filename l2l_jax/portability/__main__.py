"""Record fixed steps of each family on one machine and compare them on another one.

    python -m l2l_jax.portability record cpu.json
    python -m l2l_jax.portability compare cpu.json                      # on another machine
    python -m l2l_jax.portability compare cpu.json --dtype=bfloat16

`compare` exits with 1 if any quantity exceeds its tolerance. See docs/guides/portability.md.
"""

import json
import pathlib
import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from tabulate import tabulate

from l2l_jax.cli.common import Parser, run_program, show
from l2l_jax.errors import UserError
from l2l_jax.utils.runtime import check_backend

if TYPE_CHECKING:
    from l2l_jax.portability.cases import Dtype, Precision
    from l2l_jax.train.parallel import ParallelKind


TOLERANCES: dict[str, tuple[float, float | None]] = {
    # quantity: (float32 at full precision on both sides, otherwise)
    "loss": (0.05, None),
    "retain": (0.05, None),
    "forget": (1e-3, 0.1),
    "grad_norm": (0.05, None),
    "moments": (0.1, None),
    "parameters": (1e-3, 2e-3),
    "features": (1e-4, 0.2),
    "tokens": (0.002, 0.1),
}
"""Maximum difference of any value of a quantity, relative to its largest value; for tokens, the maximum
fraction that differs. The second column is for comparisons with reduced precision on either side: bfloat16,
or products at default precision on an accelerator. `retain` is the difference of nearly equal features, and
dominates the loss and its gradient; with reduced precision, these are not meaningful (None)."""


def _parser() -> Parser:
    parser = Parser(prog="python -m l2l_jax.portability", description=__doc__)
    parser.add_argument("command", choices=("record", "compare"))
    parser.add_argument("file", type=pathlib.Path, metavar="FILE", help="the record, as JSON")
    parser.add_argument("--devices", type=int, help="number of devices to use; default: all")
    parser.add_argument("--parallel", default="jit", choices=("jit", "pmap"))
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    help_text = "precision of float32 products; accelerators round at the default"
    parser.add_argument("--precision", default="highest", choices=("highest", "default"), help=help_text)
    return parser


def main(argv: Sequence[str]) -> None:
    """Record, or compare and print a table; raise a UserError if a quantity exceeds its tolerance."""
    options = _parser().parse_args(argv[1:])
    recorded = _read(options.file) if options.command == "compare" else None
    record = compute(options.devices, options.parallel, options.dtype, options.precision)
    if recorded is None:
        from l2l_jax.utils.multihost import on_primary

        def write() -> None:
            options.file.parent.mkdir(parents=True, exist_ok=True)
            options.file.write_text(json.dumps(record) + "\n", encoding="utf-8")
            print(f"Recorded in {options.file}.")

        on_primary(write)
        return
    rows = compare(recorded, record)
    for where, data in (("recorded", recorded), ("here", record)):
        show(f"{where}: {', '.join(f'{name} {value}' for name, value in data['facts'].items())}")
    show(f"\n{table(rows)}\n")
    wrong = [f"{row.quantity} of {row.case}" for row in rows if not row.holds]
    if wrong:
        raise UserError(
            f"{len(wrong)} of {len(rows)} quantities differ by more than allowed: {', '.join(wrong)}.",
            known_to_all=True,
        )


def compute(
    devices: int | None, parallel: "ParallelKind", dtype: "Dtype", precision: "Precision"
) -> dict[str, Any]:
    """Return a record: information about this machine and the quantities of all cases.

    Raises:
      UserError: There are too few devices, or the batch cannot be split over them.
    """
    check_backend()
    import jax

    from l2l_jax.portability import cases
    from l2l_jax.train.sharding import make_mesh

    count = jax.device_count() if devices is None else devices
    if not 0 < count <= jax.device_count() or cases.ROWS % count:
        raise UserError(
            f"--devices={count}: there are {jax.device_count()}, and their number must divide {cases.ROWS} "
            "images."
        )
    mesh = make_mesh(jax.devices()[:count])
    with jax.default_matmul_precision(precision):
        quantities = {name: cases.compute(name, mesh, parallel, dtype) for name in cases.MODELS}
    device = jax.devices()[0]
    facts = {
        "platform": device.platform,
        "kind": device.device_kind,
        "devices": count,
        "parallel": parallel,
        "dtype": dtype,
        "precision": precision,
        "jax": jax.__version__,
    }
    return {"facts": facts, "cases": quantities}


class Row(NamedTuple):
    """A quantity of a case with its difference and tolerance."""

    case: str
    quantity: str
    difference: float
    tolerance: float

    @property
    def holds(self) -> bool:
        """Return whether the difference is within the tolerance; False for NaN."""
        return self.difference <= self.tolerance


def compare(recorded: Mapping[str, Any], here: Mapping[str, Any]) -> list[Row]:
    """Compare two records of `compute`, with one row per quantity."""
    rounded = any(
        facts["dtype"] != "float32" or (facts["precision"] != "highest" and facts["platform"] != "cpu")
        for facts in (recorded["facts"], here["facts"])
    )
    rows = []
    for case, quantities in recorded["cases"].items():
        for quantity, limits in TOLERANCES.items():
            allowed = limits[rounded]
            if quantity in quantities and allowed is not None:
                values = here["cases"][case].get(quantity, [])
                rows.append(Row(case, quantity, _difference(quantity, quantities[quantity], values), allowed))
    return rows


def _difference(quantity: str, recorded: list[float], here: list[float]) -> float:
    """Return the difference of a quantity; infinity if the numbers of values differ."""
    a, b = np.asarray(recorded, np.float64), np.asarray(here, np.float64)
    if a.shape != b.shape:
        return float("inf")
    if quantity == "tokens":
        return float(np.mean(a != b))
    return float(np.abs(a - b).max() / np.abs(a).max())


def table(rows: list[Row]) -> str:
    """Format a table of all rows; rows outside their tolerance are marked."""
    lines = [[*row, "" if row.holds else "DIFFERS"] for row in rows]
    header = ["case", "quantity", "difference", "allowed", ""]
    return tabulate(lines, header, tablefmt="github", floatfmt=".1e")


def _read(path: pathlib.Path) -> dict[str, Any]:
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        return {"facts": record["facts"], "cases": record["cases"]}
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}).") from error
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is not a record of `python -m l2l_jax.portability record`.") from error


if __name__ == "__main__":
    sys.exit(run_program(main, sys.argv))
