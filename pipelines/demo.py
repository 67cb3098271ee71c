"""The demo: the whole pipeline of a demo line, then good and defective parts judged over HTTP."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

from csflow.config import LineConfig
from csflow.errors import DataError, DeployError
from csflow.runs.services import Services
from csflow.runs.summary import RunSummary
from pipelines.local import run_locally

GOOD = "good"
_GOOD_SHOWN, _SHOWN_PER_DEFECT = 4, 2


def run_demo(line: LineConfig, *, force: bool, services: Services) -> RunSummary:
    """Run the pipeline, score test images through the endpoint, and stop it.

    Returns:
        What the run came to, with the scores of the images.

    Raises:
        StepError: If a step of the pipeline fails.
        DeployError: If the endpoint does not answer.
    """
    from csflow.runs.summary import summarise_run, write_summary

    start = time.monotonic()
    print(f"csflow demo: product line {line.line}", file=sys.stderr, flush=True)
    finished = run_locally(line, force=force, services=services)
    summary = summarise_run(finished.context, finished.outcome, services)
    try:
        images = _pick(line, Path(finished.context.data_root))
        summary.scores = _score_over_http(line.line, images, services)
        summary.overlay = str(_overlays(line.line, images, services))
    finally:
        services.endpoints.stop(line.line)
    summary.seconds["total"] = round(time.monotonic() - start, 1)
    write_summary(summary, services.workspace)
    return summary


def _pick(line: LineConfig, root: Path) -> list[Path]:
    """Some good test images, and some of every type of defect, good ones first.

    Raises:
        DataError: If the line has no test images to show.
    """
    from csflow.data.manifest import build_manifest

    test = build_manifest(root, line=line.line, roles=line.roles).rows(role="test")
    kinds: dict[str, list[Path]] = {}
    for file in sorted(test.files, key=lambda f: (f.parent.name != GOOD, f.parent.name, f.name)):
        shown = kinds.setdefault(file.parent.name, [])
        if len(shown) < (_GOOD_SHOWN if file.parent.name == GOOD else _SHOWN_PER_DEFECT):
            shown.append(file)
    if not kinds:
        raise DataError(f"Line {line.line} has no test images to show. Add some: csflow data add {line.line} FOLDER")
    return [file for shown in kinds.values() for file in shown]


def _first_of_each(images: list[Path]) -> list[Path]:
    kinds: dict[str, Path] = {}
    for file in images:
        kinds.setdefault(file.parent.name, file)
    return list(kinds.values())


def _score_over_http(line: str, images: list[Path], services: Services) -> list[dict[str, Any]]:
    endpoint = services.endpoints.status(line)
    if endpoint is None:
        raise DeployError(f"The endpoint of {line} is not running. See {services.workspace.endpoints}.")
    answers = services.endpoints.score(endpoint, [file.read_bytes() for file in images])
    return [
        {
            "image": f"{file.parent.name}/{file.name}",
            "label": GOOD if file.parent.name == GOOD else "defective",
            "score": answer["score"],
            "decision": answer["decision"],
        }
        for file, answer in zip(images, answers, strict=True)
    ]


def _overlays(line: str, images: list[Path], services: Services) -> Path:
    """One picture: a good part and one of each defect, as seen and as judged; made once a detector."""
    endpoint = services.endpoints.status(line)
    assert endpoint is not None
    target = services.workspace.root / "demo" / f"{line}-{endpoint.digest[:12]}.png"
    if not target.exists():
        _draw(
            target,
            services.workspace.detectors / line / endpoint.digest,
            _first_of_each(images),
        )
    return target


def _draw(target: Path, detector_directory: Path, images: list[Path]) -> None:
    from csflow.detector.engine import Engine
    from csflow.reporting.sheet import judged_sheet

    sheet = judged_sheet(Engine.load(detector_directory), images)
    target.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(target)
