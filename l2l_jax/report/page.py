"""The report as one HTML file that needs no other."""

import base64
import importlib.resources
import json
import pathlib
from collections.abc import Mapping
from typing import Any

import jinja2

from l2l_jax.evals.tables import reasons
from l2l_jax.report import tables
from l2l_jax.report.text import details, headline

STYLES = {"forgotten": "good", "hidden": "bad", "not forgotten": "bad"}


def page(report: Mapping[str, Any], drawn: Mapping[str, pathlib.Path], title: str) -> str:
    """Return the report as HTML.

    Args:
      report: Content of metrics.json.
      drawn: PNG files by name, see `write.draw`.
      title: Name of the run.
    """
    template = importlib.resources.files(__package__).joinpath("report.html.j2").read_text("utf-8")
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    audit = report["audit"]
    found = {
        "metrics": tables.metrics_table(report),
        "classes": tables.class_table(report),
        "attacks": audit and tables.attack_table(audit),
        "depths": audit and tables.depth_table(audit),
        "evidence": audit and tables.evidence_table(audit),
    }
    text = environment.from_string(template).render(
        report=report,
        title=title,
        headline=headline(report),
        details=details(report),
        style=STYLES.get(audit["verdict"]["finding"], "") if audit else "",
        shown_attack=_shown_attack(audit),
        tables=found,
        pictures={name: _embedded(path) for name, path in drawn.items()},
        unavailable=reasons(report),
        config=json.dumps(report["config"], indent=2),
    )
    return text.encode("utf-8", "backslashreplace").decode()  # file names may not be UTF-8


def _shown_attack(audit: Mapping[str, Any] | None) -> str | None:
    """Return the title of the attack after which images are shown."""
    if audit is None:
        return None
    titles = {entry["name"]: entry["title"] for entry in audit["comparisons"]}
    return titles.get(audit["shown_attack"])


def _embedded(path: pathlib.Path) -> str:
    return f"data:image/png;base64,{base64.b64encode(path.read_bytes()).decode()}"
