"""``csflow estimate``: estimate time, disk space and memory before a run."""

from __future__ import annotations

import time
from dataclasses import asdict
from typing import TYPE_CHECKING

from csflow.cli.options import JsonOption, LineArgument, print_json
from csflow.errors import CsflowError
from csflow.runs.services import Services

if TYPE_CHECKING:
    from csflow.adapters.mlflow.runs import Run
    from csflow.config import LineConfig
    from csflow.release.forecast import Forecast


def estimate_run(line: LineArgument, as_json: JsonOption = False) -> None:
    """Estimate what a run of a line will take on this machine, from short trials on its own images.

    The line's data is checked out and passes the data gate, the features of a few images are extracted, a few training
    steps are run, and a few test images are judged, which takes a minute or two. The table has every step, and also
    shows what the line's last complete training really took. It says if other processes kept the machine busy.
    """
    from csflow.adapters.data_quality import run_data_gate
    from csflow.config import load_line
    from csflow.release.forecast import forecast
    from csflow.release.readiness import cost
    from csflow.runs.checkout import materialise
    from csflow.system.progress import say

    config, services = load_line(line), Services.from_environment()
    began = time.perf_counter()
    manifest, _ = materialise(config, services.workspace)
    refused = not run_data_gate(manifest, config.quality, config.features.bit_depth).success
    checking = time.perf_counter() - began
    say(f"estimate: trying {config.line} on this machine")
    expected = forecast(services, config, manifest, checking_seconds=checking)
    if as_json:
        judging = {key: value for key, value in asdict(expected).items() if key != "computing"}
        print_json({"line": config.line, **asdict(expected.computing), **judging, "run_seconds": expected.seconds})
    else:
        _print(config, expected, _last_training(services, config.line))
    if refused:
        say(f"estimate: the data gate refuses these images: csflow check {line} --quick says why")
    if problems := [
        each.found for each in cost(config, expected, services.workspace) if each.check == "disk" and each.problem
    ]:
        raise CsflowError(problems[0])


def _print(line: LineConfig, expected: Forecast, last: Run | None) -> None:
    from csflow.release.readiness import busy_note, duration, megabytes
    from csflow.system.tables import print_table

    def took(*steps: str) -> str:
        seconds = [None if last is None else last.metrics.get(f"seconds_{step}") for step in steps]
        known = [each for each in seconds if each is not None]
        return duration(sum(known)) if known else ""

    def peak(step: str) -> str:
        memory = None if last is None else last.metrics.get(f"peak_memory_mb_{step}")
        return "" if memory is None else f"{memory:,.0f} MB"

    work = expected.computing
    stored = f"{megabytes(work.features_bytes)}, still to write {megabytes(work.new_features_bytes)}"
    extraction = f"{duration(work.extraction_seconds)} for {work.to_extract} images"
    rows = [
        ("images", f"{work.images}, of these {work.fitted} to fit", ""),
        ("features on disk", stored, ""),
        ("checkout and data gate", duration(expected.checking_seconds), took("ingest", "validate")),
        ("extraction", extraction, took("extract", "cache_features")),
        ("training", f"{duration(work.training_seconds)} on {work.device} in {work.precision}", took("train")),
        ("evaluation and report", duration(expected.evaluation_seconds), took("evaluate")),
        ("gate and promotion", duration(expected.promotion_seconds), took("register", "promote")),
        ("starts of the steps", duration(expected.starting_seconds), ""),
        ("whole run", duration(expected.seconds), "" if last is None else f"{duration(last.seconds)} without starts"),
        ("one image, served", f"{expected.served_ms:.0f} ms", ""),
        ("memory, extraction", megabytes(work.extraction_memory), peak("cache_features")),
        ("memory, training", megabytes(work.training_memory), peak("train")),
        ("checkpoint on disk", megabytes(work.checkpoint_bytes), ""),
    ]
    busy = busy_note(expected)
    caption = f"Note: {busy}" if busy else ""
    print_table(("what", "expected", "last run"), rows, title=f"A run of {line.line}", caption=caption)


def _last_training(services: Services, line: str) -> Run | None:
    """Find the last run that completed its training; None if there is none."""
    try:
        runs = services.tracker.list_runs(line, limit=20)
    except CsflowError:
        return None
    return next((run for run in runs if "seconds_train" in run.metrics), None)
