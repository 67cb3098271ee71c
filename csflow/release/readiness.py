"""Find everything that would stop a run of a line, or leave its detector unpromoted, before anything is computed."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from csflow.config import LineConfig
from csflow.errors import CsflowError
from csflow.release.forecast import Forecast, forecast, is_labelled
from csflow.release.gate import MIN_IMAGES
from csflow.runs.services import Services
from csflow.system.cores import BUSY, cores_in_reach
from csflow.system.wording import shorten
from csflow.system.workspace import Workspace

if TYPE_CHECKING:
    from csflow.adapters.data_quality import QualityReport
    from csflow.adapters.versioning import CheckedOut
    from csflow.data.manifest import Manifest


@dataclass(frozen=True)
class Finding:
    """What a check found.

    Attributes:
        check: Name of the check.
        found: What was found; for a problem also what was expected and what to do.
        problem: True if a run would fail, or could not promote its detector.
    """

    check: str
    found: str
    problem: bool = False


def check_line(services: Services, line: LineConfig, *, trials: bool) -> list[Finding]:
    """Check a line's settings and images; every check is made, whatever the others find.

    Args:
        services: The outside systems.
        line: The line.
        trials: Try a few images to forecast what a run takes, unless it would fail anyway.
    """
    findings = list(_settings(line))
    began = time.perf_counter()
    try:
        manifest, checked_out = _checked_out(services, line)
    except CsflowError as error:
        return [*findings, Finding("data", str(error), problem=True)]
    findings.append(Finding("data", f"{len(manifest)} images at {checked_out.git_rev[:12]}"))
    report = _gated(manifest, line)
    seconds = time.perf_counter() - began
    findings += _quality(report)
    findings += _counts(line, manifest)
    if trials and not any(each.problem for each in findings):
        try:
            expected = forecast(services, line, manifest, checking_seconds=seconds)
        except CsflowError as error:
            return [*findings, Finding("trial", str(error), problem=True)]
        findings += cost(line, expected, services.workspace)
    return findings


def cost(line: LineConfig, expected: Forecast, workspace: Workspace) -> Iterator[Finding]:
    """Judge what a run takes: disk, time, and the milliseconds of an image against the line's takt."""
    computing = expected.computing
    needed = computing.new_features_bytes + 2 * computing.checkpoint_bytes  # an old and a new one exist for a while
    place = next(folder for folder in (workspace.root, *workspace.root.parents) if folder.exists())
    free = shutil.disk_usage(place).free
    if needed > free:
        yield Finding(
            "disk",
            f"The run needs {megabytes(needed)} on disk, {place} has {megabytes(free)} free. Free some, or set "
            "CSFLOW_HOME to a folder on a larger disk.",
            problem=True,
        )
    else:
        yield Finding("disk", f"{megabytes(needed)} needed, {megabytes(free)} free")
    yield Finding("run", f"about {duration(expected.seconds)} on {computing.device} in {computing.precision}")
    takt, took = line.serving.takt_ms, f"an image takes about {expected.served_ms:.0f} ms in the served form"
    busy = busy_note(expected)
    if takt is not None and expected.served_ms > takt:
        yield Finding(
            "takt",
            f"{took}, more than serving.takt_ms {takt:g}. Lower features.image_size or flow.hidden, let csflow choose "
            "find a faster variant, or use a faster machine.",
            problem=busy is None,  # on a busy machine it may be the others' fault
        )
    else:
        yield Finding("takt", took if takt is None else f"{took}, serving.takt_ms is {takt:g}")
    if busy is not None:
        yield Finding("machine", busy)


def busy_note(expected: Forecast) -> str | None:
    """Say that other processes were busy during the trials; None if they were not, or the system does not tell."""
    if expected.busy is None or expected.busy <= BUSY:
        return None
    return (
        f"other processes kept {expected.busy:.1f} of {cores_in_reach()} cores busy: on an idle machine it takes less "
        "time. Estimate again when nothing else runs."
    )


def duration(seconds: float) -> str:
    """Return a duration for people, in seconds, minutes or hours."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def megabytes(size: float) -> str:
    """Return a number of bytes for people."""
    return f"{size / 1e6:,.0f} MB"


def _settings(line: LineConfig) -> Iterator[Finding]:
    from csflow.runs.image_counts import check_size

    try:
        sides = check_size(line)
    except CsflowError as error:
        yield Finding("features", str(error), problem=True)
    else:
        yield Finding("features", f"{line.features.backbone} at {', '.join(map(str, sides))} px")


def _checked_out(services: Services, line: LineConfig) -> tuple[Manifest, CheckedOut]:
    from csflow.runs.checkout import materialise

    return materialise(line, services.workspace)


def _gated(manifest: Manifest, line: LineConfig) -> QualityReport:
    from csflow.adapters.data_quality import run_data_gate

    return run_data_gate(manifest, line.quality, line.features.bit_depth)


def _quality(report: QualityReport) -> Iterator[Finding]:
    for broken in (*report.failures, *report.warnings):
        files = f" Files: {shorten(broken.files)}." if broken.files else ""
        yield Finding("data gate", f"{broken.explanation}{files}", problem=broken in report.failures)
    if report.success:
        yield Finding("data gate", "passes")


def _counts(line: LineConfig, manifest: Manifest) -> Iterator[Finding]:
    from csflow.runs.image_counts import shortages

    missing = shortages(line, manifest)
    yield from (Finding("images", text, problem=True) for text in missing)
    if not missing:
        roles = (f"{len(manifest.rows(role=role))} {role}" for role in ("fit", "calibrate", "gate", "test"))
        yield Finding("images", ", ".join(roles))
    yield _evidence(line, manifest)


def _evidence(line: LineConfig, manifest: Manifest) -> Finding:
    """Tell if there are images by which the gate can judge."""
    test, gate = manifest.rows(role="test"), manifest.rows(role="gate")
    if is_labelled(manifest):
        counts = [len(test.rows(label=label)) for label in ("good", "defective")]
        judged = f"judges by {counts[0]} good and {counts[1]} defective test images; {_floor(line)}"
        few = f". A champion is replaced only with at least {MIN_IMAGES} of each: add test images."
        return Finding("gate", judged if min(counts) >= MIN_IMAGES else judged + few)
    if not len(gate):
        text = (
            "The line has neither defective test images nor gate images to judge by, so nothing would be promoted. Add "
            "either, or raise roles.gate."
        )
        return Finding("gate", text, problem=True)
    judged = f"judges by {len(gate)} gate images with pasted defects; {_floor(line)}"
    few = f". A champion is replaced only with at least {MIN_IMAGES}: add good images, or raise roles.gate."
    return Finding("gate", judged if len(gate) >= MIN_IMAGES else judged + few)


def _floor(line: LineConfig) -> str:
    return (
        f"a detector has to find {100 * line.gate.min_recall:g} % of the defects at its threshold (gate.min_recall), "
        f"with an AUROC of at least {line.gate.min_auroc:g} (gate.min_auroc)"
    )
