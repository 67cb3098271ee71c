"""``csflow estimate``: estimate time, disk space and memory before a run."""

from __future__ import annotations

import shutil
from dataclasses import asdict
from typing import TYPE_CHECKING

from csflow.cli.options import JsonOption, LineArgument, print_json
from csflow.errors import CsflowError
from csflow.runs.services import Services
from csflow.system.workspace import Workspace

if TYPE_CHECKING:
    from csflow.adapters.mlflow.runs import Run
    from csflow.runs.estimate import Estimate


def estimate_run(line: LineArgument, as_json: JsonOption = False) -> None:
    """Estimate what a run of a line will take on this machine, from short trials on its own images.

    The line's data is checked out, the features of a few images are extracted and a few training steps are run, which
    takes about a minute. The table also shows what the line's last complete training really took.
    """
    from csflow.config import load_line
    from csflow.runs.checkout import materialise
    from csflow.runs.estimate import estimate
    from csflow.runs.stored_features import feature_tier
    from csflow.system.progress import say

    config, services = load_line(line), Services.from_environment()
    manifest, _ = materialise(config, services.workspace)
    say(f"estimate: trying {config.line} on this machine")
    expected = estimate(config, manifest, services.workspace.features, feature_tier(services))
    if as_json:
        print_json({"line": config.line, **asdict(expected)})
    else:
        _print(config.line, expected, _last_training(services, config.line))
    _warn_if_too_large(expected, services.workspace)


def _print(line: str, expected: Estimate, last: Run | None) -> None:
    from csflow.system.tables import print_table

    rows: list[tuple[str, str, str]] = []
    seconds, memory = (
        {step: None if last is None else last.metrics.get(f"{what}_{step}") for step in ("cache_features", "train")}
        for what in ("seconds", "peak_memory_mb")
    )
    rows.append(("images", f"{expected.images}, of these {expected.fitted} to fit", ""))
    stored = f"{_megabytes(expected.features_bytes)}, still to write {_megabytes(expected.new_features_bytes)}"
    rows.append(("features on disk", stored, ""))
    rows.append(
        (
            "extraction",
            f"{_duration(expected.extraction_seconds)} for {expected.to_extract} images",
            _duration(seconds["cache_features"]),
        )
    )
    on = f"{_duration(expected.training_seconds)} on {expected.device} in {expected.precision}"
    once = "not estimated: this kind looks at every image once"
    rows.append(("training", once if expected.training_seconds is None else on, _duration(seconds["train"])))
    rows.append(("memory, extraction", _megabytes(expected.extraction_memory), _logged(memory["cache_features"])))
    rows.append(("memory, training", _megabytes(expected.training_memory), _logged(memory["train"])))
    rows.append(("checkpoint on disk", _megabytes(expected.checkpoint_bytes), ""))
    print_table(("what", "expected", "last run"), rows, title=f"A run of {line}")


def _last_training(services: Services, line: str) -> Run | None:
    """Find the last run that completed its training; None if there is none."""
    try:
        runs = services.tracker.list_runs(line, limit=20)
    except CsflowError:
        return None
    return next((run for run in runs if "seconds_train" in run.metrics), None)


def _warn_if_too_large(expected: Estimate, workspace: Workspace) -> None:
    """Refuse a run that does not fit on the disk, before hours are spent on it.

    Raises:
        CsflowError: If the disk is too small.
    """
    needed = expected.new_features_bytes + 2 * expected.checkpoint_bytes  # an old and a new one exist for a while
    place = next(folder for folder in (workspace.root, *workspace.root.parents) if folder.exists())
    free = shutil.disk_usage(place).free
    if needed > free:
        raise CsflowError(
            f"The run needs {_megabytes(needed)} on disk, {place} has {_megabytes(free)} free. "
            "Free some, or set CSFLOW_HOME to a folder on a larger disk."
        )


def _duration(seconds: float | None) -> str:
    if seconds is None:
        return ""
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def _megabytes(size: float) -> str:
    return f"{size / 1e6:,.0f} MB"


def _logged(megabytes: float | None) -> str:
    return "" if megabytes is None else f"{megabytes:,.0f} MB"
