"""Write what a comparison of two detectors found, as JSON, pictures and one self-contained page."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image

from csflow.detector.heatmap import overlay
from csflow.metrics import roc_curve
from csflow.reporting.comparison import Comparison
from csflow.reporting.page import LARGE, data_uri, encoded, render_page, thumbnail
from csflow.system.files import write_atomic, write_json


class Views(NamedTuple):
    """An image, and the image overlaid with each detector's map."""

    image: Image.Image
    champion: Image.Image
    challenger: Image.Image


def paint_views(
    image: Image.Image, comparison: Comparison, champion_map: npt.NDArray[np.floating],
    challenger_map: npt.NDArray[np.floating],
) -> Views:  # fmt: skip
    """Overlay an image with the map of each detector, in the colours of the detector's own calibration."""
    painted = [
        overlay(image, map2d, side.calibration.scale, side.calibration.region_threshold)
        for side, map2d in ((comparison.champion, champion_map), (comparison.challenger, challenger_map))
    ]
    return Views(image, *painted)


def write_comparison(directory: Path, comparison: Comparison, pictures: Mapping[int, Views] | None = None) -> Path:
    """Write ``comparison.json``, the pictures and, last, ``comparison.html``.

    Args:
        directory: Created if needed; files of an earlier comparison are replaced.
        comparison: The comparison to show.
        pictures: By index of the image, for instance of `Comparison.shown`; other images are listed by name.

    Returns:
        Path of ``comparison.html``, which needs no other file and no network.

    Raises:
        CsflowError: If a file cannot be written.
    """
    figures = _figures(comparison)
    for name, content in figures.items():
        write_atomic(directory / f"{name}.png", content)
    for index, seen in (pictures or {}).items():
        for name, picture in zip(seen._fields, seen, strict=True):
            write_atomic(directory / f"images/{index:05d}-{name}.png", encoded(picture, "PNG"))
    write_json(directory / "comparison.json", _facts(comparison))
    page = directory / "comparison.html"
    write_atomic(page, _render(comparison, figures, pictures or {}))
    return page


def _render(comparison: Comparison, figures: Mapping[str, bytes], pictures: Mapping[int, Views]) -> str:
    changed = {change.index for change in comparison.changes}
    ranks = comparison.champion.ranks, comparison.challenger.ranks
    return render_page(
        "comparison.html.j2",
        comparison=comparison,
        figures={name: data_uri(content, "png") for name, content in figures.items()},
        pictures={index: [thumbnail(view, LARGE) for view in seen] for index, seen in pictures.items()},
        moved=[index for index in pictures if index not in changed],
        shifts=(ranks[1] - ranks[0]).tolist(),
        found=[side.detections for side in (comparison.champion, comparison.challenger)],
        created=f"{datetime.now(UTC):%Y-%m-%d %H:%M:%S} UTC",
    )


def _figures(comparison: Comparison) -> dict[str, bytes]:
    from csflow.reporting import figures

    sides, labels = (comparison.champion, comparison.challenger), comparison.labels
    scatter = figures.rank_scatter(
        sides[0].ranks, sides[1].ranks, labels,
        names=(sides[0].name, sides[1].name), thresholds=(sides[0].threshold_rank, sides[1].threshold_rank),
    )  # fmt: skip
    drawn = {"ranks": figures.png(scatter)}
    if comparison.differences:
        curves = {side.name: roc_curve(side.scores, labels) for side in sides}
        drawn["roc"] = figures.png(figures.roc_comparison(curves))
    return drawn


def _facts(comparison: Comparison) -> dict[str, object]:
    sides = {"champion": comparison.champion, "challenger": comparison.challenger}
    return {
        "line": comparison.line,
        "names": {role: side.name for role, side in sides.items()},
        "verdict": comparison.verdict,
        "metrics": {
            name: {"champion": before, "challenger": after, **comparison.differences[name]._asdict()}
            for name, (before, after) in comparison.values.items()
        },
        "pixel_metrics": {
            name: {"champion": before, "challenger": after, **comparison.pixel_differences[name]._asdict(),
                   "binning_error": comparison.binning_error[name]}
            for name, (before, after) in comparison.pixel_values.items()
        },
        "by_defect": {
            kind: {"images": found.images, "champion": found.champion, "challenger": found.challenger,
                   **found.paired._asdict()}
            for kind, found in comparison.by_defect.items()
        },
        "decisions": {
            "mended": comparison.mended, "spoilt": comparison.spoilt, "p_value": comparison.decision_p_value,
        },
        "changed": [comparison.champion.images[change.index].path for change in comparison.changes],
        "images": {role: [asdict(result) for result in side.images] for role, side in sides.items()},
    }  # fmt: skip
