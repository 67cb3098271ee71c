"""Turn measured rows into the result file and the table on the screen."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from csflow import __version__
from csflow.errors import CsflowError
from csflow.metrics import IMAGE_METRICS, ImageMetric, paired_bootstrap
from csflow.system.files import write_json
from published.protocol import Protocol

PACKAGES = ("torch", "onnxruntime", "numpy", "pillow", "scikit-learn")
METRICS = ("image_auroc", "average_precision", "f1_max", "fpr_at_95_tpr", "pixel_auroc", "pixel_ap", "aupro")


def row_of(method: str, paper: float | None, runs: Mapping[int, Mapping[str, Any]]) -> dict[str, Any]:
    """Make one row of the result file.

    Args:
        method: Its name.
        paper: The paper's figure, as a fraction.
        runs: Measurements by seed.

    Returns:
        ``method``, ``paper``, for every metric ``{mean, sd, seeds, low, high}`` as fractions (``sd`` is that of a
        sample, 0 for one seed; ``low`` and ``high`` are the means of the ends of each seed's 95 % interval, so they
        tell of the images and not of the seeds), ``interval`` of each seed's image AUROC, ``by_defect`` with
        ``{value, low, high}`` of the image AUROC of each type (means over the seeds), ``binning_error`` (largest bound
        of each pixel metric over the seeds; missing if the runs have none), ``images`` fitted.
    """
    first = next(iter(runs.values()))
    names = [name for name in METRICS if name in first["metrics"]]
    return {
        "method": method,
        "paper": paper,
        **{name: _spread([run["metrics"][name] for run in runs.values()]) for name in names},
        "interval": [[_rounded(end) for end in run["metrics"]["image_auroc"][1:]] for run in runs.values()],
        "by_defect": {
            kind: dict(
                zip(("value", "low", "high"), _means([run["by_defect"][kind] for run in runs.values()]), strict=True)
            )
            for kind in first["by_defect"]
        },
        **_binning_error(runs),
        "images": first["images"],
        "seeds": list(runs),
    }


def differences(
    runs: Mapping[str, Mapping[int, Mapping[str, Any]]], labels: Sequence[bool], *, of: str
) -> list[dict[str, Any]]:
    """Measure how much better one method separates than every other one, image by image, on the first seed of both.

    Args:
        runs: Measurements by method and seed.
        labels: ``(n,)``, True = defective.
        of: The method that is compared.

    Returns:
        For every other method ``{method, than, difference, low, high, p_value, metrics}``: those of the image AUROC,
        and in ``metrics`` those of every image metric by its name.

    Raises:
        DataError: If a class of images is missing.
    """
    ours = next(iter(runs[of].values()))["scores"]
    found = []
    for method, measured in runs.items():
        if method == of:
            continue
        theirs = next(iter(measured.values()))["scores"]
        paired = {name: _paired(theirs, ours, labels, name) for name in IMAGE_METRICS}
        found.append({"method": of, "than": method, **paired["image_auroc"], "metrics": paired})
    return found


def write_result(
    path: Path, protocol: Protocol, rows: Sequence[Mapping[str, Any]], *, command: str, **more: Any
) -> None:
    """Write the result file: its origin, then the rows."""
    about = {
        "table": protocol.table,
        "title": protocol.title,
        "paper_data": protocol.paper_data,
        "note": protocol.note,
        "command": command,
        "date": datetime.now(UTC).date().isoformat(),
        "machine": f"{_cpu()}, {os.cpu_count()} cores",
        "versions": {"csflow": __version__, "python": platform.python_version()}
        | {name: metadata.version(name) for name in PACKAGES},
    }
    quoted = [row.model_dump() for row in protocol.quoted]
    write_json(path, {**about, **more, "rows": list(rows), "quoted": quoted})


def what_failed(error: Exception) -> str:
    """Describe an error for a row; csflow's own errors need no class name."""
    return str(error) if isinstance(error, CsflowError) else f"{type(error).__name__}: {error}"


def show(protocol: Protocol, rows: Sequence[Mapping[str, Any]], *, measured_on: str) -> None:
    """Print the table."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    table = Table(title=escape(f"Table {protocol.table}: {protocol.title}"), title_justify="left")
    table.add_column("method")
    paper = escape(f"paper % ({protocol.paper_data})")
    for heading in ("image AUROC %", "each seed", "pixel AUROC %", "AUPRO %", paper):
        table.add_column(heading, justify="right")
    for row in protocol.quoted:
        table.add_row(escape(row.method), "quoted", "", "", "", f"{100 * row.paper:.1f}")
    for measured in rows:
        table.add_row(*map(escape, _cells(measured)))
    console = Console()
    console.print(table)
    console.print(f"Ours: {measured_on}. {protocol.note}", highlight=False, markup=False)


def markdown(protocol: Protocol, rows: Sequence[Mapping[str, Any]], *, measured_on: str) -> str:
    """Format the table for a README."""
    lines = [
        f"| method | image AUROC %, {measured_on} | each seed | paper %, {protocol.paper_data} |",
        "|---|--:|--:|--:|",
    ]
    lines += [f"| {row.method} | quoted | | {100 * row.paper:.1f} |" for row in protocol.quoted]
    for measured in rows:
        method, auroc, seeds, _, _, paper = _cells(measured)
        lines.append(f"| {method} | {auroc} | {seeds} | {paper} |")
    return "\n".join(lines)


def _cells(row: Mapping[str, Any]) -> list[str]:
    if "error" in row:
        return [row["method"], "failed", row["error"], "", "", _per_cent(row["paper"])]
    auroc = row["image_auroc"]
    spread = f" ± {100 * auroc['sd']:.2f}" if len(auroc["seeds"]) > 1 else ""
    pixels = (row.get(name, {}).get("mean") for name in ("pixel_auroc", "aupro"))
    each = ", ".join(f"{100 * value:.2f}" for value in auroc["seeds"])
    return [row["method"], f"{100 * auroc['mean']:.2f}{spread}", each, *map(_per_cent, pixels), _per_cent(row["paper"])]


def _paired(
    theirs: Sequence[float], ours: Sequence[float], labels: Sequence[bool], metric: ImageMetric
) -> dict[str, float]:
    paired = paired_bootstrap(theirs, ours, labels, metric=metric)
    return {name: _rounded(value) for name, value in paired._asdict().items()}


def _spread(measured: Sequence[Sequence[float]]) -> dict[str, Any]:
    """Summarise one metric from (value, low, high) of each seed."""
    values = [value for value, _, _ in measured]
    deviation = stdev(values) if len(values) > 1 else 0.0
    _, low, high = _means(measured)
    seeds = [_rounded(value) for value in values]
    return {"mean": _rounded(mean(values)), "sd": _rounded(deviation), "seeds": seeds, "low": low, "high": high}


def _means(measured: Sequence[Sequence[float]]) -> list[float]:
    return [_rounded(mean(column)) for column in zip(*measured, strict=True)]


def _binning_error(runs: Mapping[int, Mapping[str, Any]]) -> dict[str, dict[str, float]]:
    """Return the largest bound of each pixel metric over the seeds, unrounded, because a bound must not get smaller."""
    known = [run.get("binning_error") or {} for run in runs.values()]
    if not all(known):
        return {}
    return {"binning_error": {name: max(each[name] for each in known) for name in known[0]}}


def _rounded(value: float) -> float:
    return round(value, 5)


def _per_cent(value: float | None) -> str:
    return "" if value is None else f"{100 * value:.1f}"


def _cpu() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()
