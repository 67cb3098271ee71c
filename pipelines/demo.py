"""Run the demo: the whole pipeline of a demo line, then good and defective parts judged over HTTP."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

from csflow.config import LineConfig
from csflow.errors import DeployError
from csflow.reporting.demonstration import choose_parts, write_overview
from csflow.reporting.sheet import GOOD_KIND
from csflow.runs.services import Services
from csflow.runs.summary import RunSummary
from pipelines.local import run_locally


def run_demo(line: LineConfig, *, force: bool, services: Services) -> RunSummary:
    """Run the pipeline, score test images through the endpoint, and stop it.

    Returns:
        The result of the run, with the scores of the images.

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
        images = choose_parts(line, Path(finished.context.data_root))
        summary.scores = _score_over_http(line.line, images, services)
        summary.overlay = str(_overlays(line.line, images, services))
    finally:
        services.endpoints.stop(line.line)
    summary.seconds["total"] = round(time.monotonic() - start, 1)
    write_summary(summary, services.workspace)
    return summary


def _score_over_http(line: str, images: list[Path], services: Services) -> list[dict[str, Any]]:
    endpoint = services.endpoints.status(line)
    if endpoint is None:
        raise DeployError(f"The endpoint of {line} is not running. See {services.workspace.endpoints}.")
    answers = services.endpoints.score(endpoint, [file.read_bytes() for file in images])
    return [
        {
            "image": f"{file.parent.name}/{file.name}",
            "label": GOOD_KIND if file.parent.name == GOOD_KIND else "defective",
            "score": answer["score"],
            "decision": answer["decision"],
        }
        for file, answer in zip(images, answers, strict=True)
    ]


def _overlays(line: str, images: list[Path], services: Services) -> Path:
    """Draw a good part and one of each defect, with their judgements, in one picture; made once per detector."""
    endpoint = services.endpoints.status(line)
    assert endpoint is not None
    target = services.workspace.root / "demo" / f"{line}-{endpoint.digest[:12]}.png"
    if not target.exists():
        write_overview(services.workspace.detectors / line / endpoint.digest, images, target)
    return target
