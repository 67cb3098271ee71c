"""Format the table of an ablation: one row per variant in Markdown and HTML, one per variant and seed in CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence

from csflow.ablation.rows import AblationRow
from csflow.ablation.summaries import VariantSummary, by_group
from csflow.metrics import Measured

METRICS = {
    "image_auroc": "image AUROC",
    "average_precision": "AP",
    "f1_max": "F1-max",
    "fpr_at_95_tpr": "FPR at 95 % TPR",
    "pixel_auroc": "pixel AUROC",
    "pixel_ap": "pixel AP",
    "aupro": "AUPRO",
    "synthetic_auroc": "AUROC, synthetic",
    "held_out_nll": "held-out NLL",
}
"""Metrics by name, with their column headings."""

NOTES = (
    "NLL is in nats, ms in milliseconds, training in seconds; other metrics are in %. Values are means over the seeds, "
    "± their standard deviation; brackets show the 95 % interval over the test images, for several seeds the mean of "
    "both ends.",
    "AUROC, synthetic: held-out good images (roles calibrate and gate, at most 256, none of them fitted) against the "
    "same images with a drawn defect pasted on. It ranks detectors without a real defect, and says "
    "nothing about which real ones are found.",
    "It cannot rank scores and maps of one model: on Magnetic Tile Defects the maximum of the map has 89.0 and the "
    "mean 85.6 against synthetic defects (benchmarks/results/recipe-mtd), but 94.2 and 97.0 on the real test images "
    "there, and 98.0 and 99.0 in benchmarks/results/table2-mtd.json. csflow choose leaves such variants out.",
    "Held-out NLL: of those good images, in nats per dimension, lower is better; it compares only flows on the same "
    "features.",
    "ms: median for one decoded image through the served form (ONNX Runtime) including resizing, on all cores; the "
    "fastest of three rounds.",
    "Paper: Rudolph et al., WACV 2022, with EfficientNet-B5 on the data set named in the column, not on these images.",
    "Every figure comes from the files named in the last column: rows/KEY.json.",
)
"""Notes printed below the tables."""

_CSV_COLUMNS = ("group", "variant", "line", "seed",
                *(f"{name}{end}" for name in METRICS for end in ("", "_low", "_high")), "ms_median", "ms_p95",
                "machine", "cores_missing", "parameters", "training_seconds", "images_fitted", "paper_auroc",
                "paper_data", "error", "row")  # fmt: skip


def to_csv(summaries: Sequence[VariantSummary]) -> str:
    """Format one row per variant and seed, with metrics as fractions; missing figures are empty."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(_CSV_COLUMNS)
    for summary in summaries:
        writer.writerows(_csv_row(summary, row) for row in summary.rows)
    return buffer.getvalue()


def to_markdown(title: str, summaries: Sequence[VariantSummary]) -> str:
    """Format one table per group, followed by notes on how the figures were measured."""
    parts = [f"# {title}"]
    for group, same in by_group(summaries).items():
        head, *body = table(same)
        rule = ["---"] + ["---:" if name not in _TEXTS else "---" for name in head[1:]]
        lines = ["| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |" for cells in (head, rule, *body)]
        parts += [f"## {group}", "\n".join(lines), *(f"Broken: {text}" for text in failures(same))]
    return "\n\n".join([*parts, *_notes(summaries)]) + "\n"


def to_html(title: str, summaries: Sequence[VariantSummary], plot: bytes | None, curves: Mapping[str, bytes]) -> str:
    """Format a self-contained page with the pictures and all tables.

    Args:
        title: Title of the page.
        summaries: Variants in the order of the table.
        plot: Quality against time as a PNG file, or None.
        curves: ROC curves as PNG files by the group they belong to.
    """
    from csflow.reporting.page import data_uri, render_page

    tables = [
        {
            "group": group,
            "head": table(same)[0],
            "body": table(same)[1:],
            "broken": failures(same),
            "curves": data_uri(curves[group], "png") if group in curves else None,
        }
        for group, same in by_group(summaries).items()
    ]
    return render_page(
        "ablation.html.j2",
        title=title,
        tables=tables,
        texts=_TEXTS,
        notes=_notes(summaries),
        plot=None if plot is None else data_uri(plot, "png"),
    )


def table(summaries: Sequence[VariantSummary]) -> list[list[str]]:
    """Format the cells of a table.

    Returns:
        The header and one row of texts per variant; metrics that no variant has get no column.
    """
    metrics = [name for name in METRICS if any(summary.metric(name) for summary in summaries)]
    several = len({summary.variant.line.line for summary in summaries}) > 1
    head = ["variant", *(["line"] if several else []), *(METRICS[name] for name in metrics), "ms", "parameters",
            "training s", "paper", "seeds", "rows"]  # fmt: skip
    return [head, *(_cells(summary, metrics, several=several) for summary in summaries)]


def brief_table(summaries: Sequence[VariantSummary]) -> list[list[str]]:
    """Format the columns of :func:`table` that fit a terminal.

    Returns:
        Variant, both AUROCs, milliseconds, the paper's figure and the row files.
    """
    head, *lines = table(summaries)
    kept = [column for column, name in enumerate(head) if name in _BRIEF]
    return [[cells[column] for column in kept] for cells in (head, *lines)]


def _metric(summary: VariantSummary, name: str) -> str:
    if name != "held_out_nll":
        return percent(summary.metric(name), summary.deviation(name))
    found = summary.metric(name)
    return number(None if found is None else found.value, ".4f")


def _cells(summary: VariantSummary, metrics: Sequence[str], *, several: bool) -> list[str]:
    return [
        summary.variant.name,
        *([summary.variant.line.line] if several else []),
        *(_metric(summary, name) for name in metrics),
        number(summary.milliseconds, ".1f"),
        number(summary.parameters, ",.0f"),
        number(summary.training_seconds, ",.0f"),
        "" if summary.quoted is None else f"{100 * summary.quoted.auroc:.1f} on {summary.quoted.data}",
        _seeds(summary),
        " ".join(row.key[:8] for row in summary.rows),
    ]


def percent(measured: Measured | None, deviation: float | None = None) -> str:
    """Format a metric in percent with its interval: ``98.12 ± 0.10 [97.00, 99.00]``; empty for None."""
    if measured is None:
        return ""
    value, low, high = (100 * part for part in measured)
    spread = "" if deviation is None else f" ± {100 * deviation:.2f}"
    return f"{value:.2f}{spread} [{low:.2f}, {high:.2f}]"


def number(value: float | None, form: str) -> str:
    """Format a number; empty for None."""
    return "" if value is None else format(value, form)


def _seeds(summary: VariantSummary) -> str:
    done, failed = len(summary.sound), len(summary.rows) - len(summary.sound)
    broken = f", {failed} broken" if failed else ""
    return f"{done} of {summary.seeds}{broken}" if done < summary.seeds else str(done)


def failures(summaries: Sequence[VariantSummary]) -> list[str]:
    """Format one line per error: the variant's name and the message."""
    return [f"{summary.variant.name}: {' '.join(error.split())}" for summary in summaries for error in summary.errors]


def _notes(summaries: Sequence[VariantSummary]) -> list[str]:
    rows = [row for summary in summaries for row in summary.sound]
    timings = [row.timing for row in rows if row.timing is not None]
    machines = sorted({timing.machine for timing in timings})
    load = max((timing.load for timing in timings if timing.load is not None), default=None)
    data = sorted({f"{row.line} at {row.git_rev[:12]}" for row in rows})
    others = "an unknown number of cores" if load is None else f"at most {load:.2f} cores"
    where = f"Milliseconds measured on: {'; '.join(machines)}; other processes kept {others} busy meanwhile."
    facts = [where] if machines else []
    return [*NOTES, *facts, *([f"Our figures: {', '.join(data)}."] if data else [])]


def _csv_row(summary: VariantSummary, row: AblationRow) -> list[object]:
    metrics = [part for name in METRICS for part in row.metrics.get(name, ("", "", ""))]
    time = row.timing
    timing = ["", "", "", ""] if time is None else [time.median_ms, time.p95_ms, time.machine, _known(time.load)]
    quoted = ["", ""] if summary.quoted is None else [summary.quoted.auroc, summary.quoted.data]
    variant = summary.variant
    return [variant.group, variant.name, row.line, row.seed, *metrics, *timing, _known(row.parameters),
            _known(row.training_seconds), _known(row.images.get("fitted")), *quoted, row.error, row.key]  # fmt: skip


def _known(value: float | None) -> float | str:
    return "" if value is None else value


_TEXTS = ("variant", "line", "paper", "seeds", "rows")
"""Columns that hold texts, not numbers."""

_BRIEF = ("variant", "line", METRICS["image_auroc"], METRICS["synthetic_auroc"], "ms", "paper", "rows")
