"""Write the model card of a version: what it is, what it promises, what it finds, and where to look further."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from csflow.config import KINDS, LineConfig
from csflow.metrics import Interval
from csflow.reporting.findings import LOW_RECALL, Rate


class Decision(NamedTuple):
    """The gate's decision about a version; both are empty before the gate."""

    outcome: str = ""
    reason: str = ""


def defects_found(facts: Mapping[str, Any]) -> Rate | None:
    """Return the rate of defective test images found at the threshold from ``report.json``; None if unknown."""
    return _rate(facts.get("defects_found"))


def model_card(
    line: LineConfig, facts: Mapping[str, Any], decision: Decision, links: Mapping[str, str] | None = None
) -> str:
    """Return the model card as Markdown.

    Args:
        line: The line as it was trained.
        facts: Content of the version's ``report.json``; what is missing is left out.
        decision: The gate's decision.
        links: Addresses of further pages, by what the reader finds there.
    """
    found, alarms = defects_found(facts), _rate(facts.get("false_alarms"))
    parts = [_lead(found)]
    if decision.outcome:
        parts.append(f"**The gate: {decision.outcome.replace('_', ' ')}.** {_escaped(decision.reason)}")
    rows = {
        "What it is": _what(line),
        "Line": _escaped(f"{line.line}: {line.description}" if line.description else line.line),
        "Data": _data(line, facts.get("lineage", {})),
        "Threshold": _threshold(facts.get("calibration", {})),
        "Defects found": found.text if found else "",
        "False alarms": alarms.text if alarms else "",
        "Image AUROC": _measured(facts, "image_auroc"),
        "Pixel AUROC": _measured(facts, "pixel_auroc"),
    }
    table = [f"| {name} | {text} |" for name, text in rows.items() if text]
    parts.append("\n".join(["| | |", "|---|---|", *table]))
    if links:
        parts.append("Look at: " + ", ".join(f"[{name}]({address})" for name, address in links.items()))
    return "\n\n".join(parts)


def _lead(found: Rate | None) -> str:
    if found is None or not found.trials:
        return "How many defects it finds was **not measured**: there are no defective test images, or no threshold."
    few = found.events < LOW_RECALL * found.trials
    warning = f" That is fewer than {100 * LOW_RECALL:.0f} %: see the report." if few else ""
    return f"Defects found at the threshold: **{found.text}**.{warning}"


def _what(line: LineConfig) -> str:
    trained = f", {line.training.epochs} epochs" if KINDS[line.detector].epochs else ""
    return (
        f"{KINDS[line.detector].title} on {line.features.backbone}, {line.features.image_size} px{trained}, "
        f"seed {line.training.seed}"
    )


def _data(line: LineConfig, lineage: Mapping[str, Any]) -> str:
    images = lineage.get("images", {})
    counts = f": {', '.join(f'{count} {role}' for role, count in images.items())} images" if images else ""
    revision = f" at {str(lineage['git_rev'])[:12]}" if "git_rev" in lineage else ""
    return f"{_escaped(line.data.path)} of {_escaped(str(line.data.repo))}{revision}{counts}"


def _threshold(calibration: Mapping[str, Any]) -> str:
    if calibration.get("threshold") is None:
        return str(calibration.get("statement", ""))
    return f"{calibration['threshold']:.4g}. {calibration['statement']}"


def _measured(facts: Mapping[str, Any], metric: str) -> str:
    found = facts.get("metrics", {}).get(metric)
    return f"{found['value']:.4f} [{found['low']:.4f}, {found['high']:.4f}]" if found else ""


def _rate(value: Mapping[str, Any] | None) -> Rate | None:
    if value is None:
        return None
    interval = None if value["interval"] is None else Interval(*value["interval"])
    return Rate(value["events"], value["trials"], interval)


def _escaped(text: str) -> str:
    """Keep text of the user from being read as Markdown or HTML."""
    plain = text.replace("\n", " ").replace("<", "&lt;")
    return "".join(f"\\{letter}" if letter in "\\`*_[]|#" else letter for letter in plain)
