"""The figures of programs as text."""

from collections.abc import Mapping
from typing import Any

from tabulate import tabulate

from l2l_jax.plan.chips import Topology


def heading(topology: Topology, stage: str, recipe: str, batch_size: int, devices: int) -> str:
    """Return what is planned, and for what."""
    chip = topology.chip
    facts = (
        f"{devices} × {chip.name}: {chip.flops / 1e12:.0f} TFLOP/s bfloat16, {chip.memory / 1e9:.0f} GB at "
        f"{chip.bandwidth / 1e9:.0f} GB/s, network {chip.network / 1e9:.0f} GB/s a device"
    )
    return f"{recipe}, {stage}, batch {batch_size}\n{facts}\n"


def program_text(row: Mapping[str, Any], topology: Topology) -> str:
    """Format all metrics of a program."""
    memory, capacity = row["memory"], topology.chip.memory
    fits = "fits" if row["fits"] else "DOES NOT FIT"
    parts = [[name, size / 1e6] for name, size in memory.items()]
    parts.append([f"together: {fits} {capacity / 1e9:.0f} GB", row["total_bytes"] / 1e6])
    lines = [
        f"## {row['program']}\n",
        tabulate(parts, ["a device holds", "MB"], tablefmt="github", floatfmt=",.1f"),
        "",
        tabulate(_times(row), ["", "amount", "ms at full rate"], tablefmt="github", floatfmt=".2f"),
        f"\n{row['binds']} binds; {row['times_ideal']:.2f} times what products alone need. " + _how(row),
    ]
    if row["largest_collectives"]:
        table = [[c["kind"], c["bytes"] / 1e6, c["times"], c["origin"]] for c in row["largest_collectives"]]
        lines += [
            "",
            tabulate(
                table, ["largest collectives", "MB", "times", "from"], tablefmt="github", floatfmt=".2f"
            ),
        ]
    if row.get("largest_temporaries"):
        table = [
            [", ".join(t["arrays"][:3]), t["bytes"] / 1e6, t["origin"]] for t in row["largest_temporaries"]
        ]
        lines += [
            "",
            tabulate(table, ["largest temporaries", "MB", "from"], tablefmt="github", floatfmt=".2f"),
        ]
    return "\n".join(lines) + "\n"


def _times(row: Mapping[str, Any]) -> list[list[Any]]:
    seconds = row["seconds"]
    memory = row["least_traffic"] if row["traffic"] is None else row["traffic"]
    least = "" if row["traffic"] is None else f", at least {row['least_traffic'] / 1e9:.2f}"
    return [
        ["compute", f"{row['flops'] / 1e12:.3f} TFLOP", 1000 * seconds["compute"]],
        ["memory", f"{memory / 1e9:.2f} GB{least}", 1000 * seconds["memory"]],
        ["network", f"{row['sent'] / 1e6:.1f} MB sent", 1000 * seconds["network"]],
    ]


def _how(row: Mapping[str, Any]) -> str:
    if row["source"] == "compiled":
        return f"Compiled in {row['compile_seconds']:.0f} s."
    return (
        "From the lowered program: memory is without temporaries and traffic the least possible; the "
        "collectives are those of XLA's partitioner for as many CPU devices."
    )
