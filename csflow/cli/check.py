"""``csflow check``: name everything that would stop a run of a line, before it starts."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from csflow.cli.options import JsonOption, print_json, require_line_names
from csflow.errors import ConfigError, CsflowError, UsageError
from csflow.runs.services import Services

if TYPE_CHECKING:
    from csflow.config import LineConfig
    from csflow.release.readiness import Finding


def check(
    lines: Annotated[list[str] | None, typer.Argument(metavar="LINE", help="Names of lines, or YAML files.")] = None,
    every: Annotated[bool, typer.Option("--all", help="Check all lines.")] = False,
    quick: Annotated[
        bool,
        typer.Option("--quick", help="Leave out the trials that say what a run takes and how long an image takes."),
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Check a line's YAML and images without training: everything that would stop a run is named at once.

    The YAML, the schedule, the images at the line's revision, the data gate and the numbers of images are checked. If
    they are in order, a few images are tried, which takes a minute or two: what will a run take, does it fit on the
    disk, and does an image meet the line's takt (serving.takt_ms)?

    Exit code 1 if there is a problem; each says what to do.
    """
    if bool(lines) == every:
        raise UsageError("Give the names of lines, or --all.")
    names = require_line_names() if every else list(dict.fromkeys(lines or []))
    services = Services.from_environment()
    found = {name: _check(services, name, trials=not quick) for name in names}
    if as_json:
        print_json({name: [asdict(each) for each in findings] for name, findings in found.items()})
    else:
        for name, findings in found.items():
            _print(name, findings)
    bad = {name: sum(each.problem for each in findings) for name, findings in found.items()}
    if any(bad.values()):
        named = ", ".join(f"{name} has {count}" for name, count in bad.items() if count)
        raise CsflowError(f"{sum(bad.values())} problems: {named}.")


def _check(services: Services, name: str, *, trials: bool) -> list[Finding]:
    """Check one line; a YAML that cannot be read leaves nothing else to check."""
    from csflow.config import load_line
    from csflow.release.readiness import Finding, check_line

    try:
        line = load_line(name)
    except ConfigError as error:
        return [Finding("YAML", text, problem=True) for text in str(error).splitlines()]
    schedule = _schedule(line)
    return [Finding("YAML", "valid"), *schedule, *check_line(services, line, trials=trials)]


def _schedule(line: LineConfig) -> list[Finding]:
    """Let the scheduler read the line's times; its YAML is valid, but UTC has no way to write some of them."""
    from datetime import UTC, datetime

    from csflow.release.readiness import Finding
    from csflow.system.project import project_module

    if line.schedule is None:
        return []
    try:
        clock = project_module("pipelines.cron").clock_of(line.schedule, datetime.now(UTC))
    except UsageError as error:
        wrong = isinstance(error, ConfigError)
        return [Finding("schedule", str(error) if wrong else f"not checked: {error}", problem=wrong)]
    moment = clock.next_runs(datetime.now(UTC))[0]
    return [Finding("schedule", f"{line.schedule.cron} in {line.schedule.timezone}, next {moment:%Y-%m-%d %H:%M} UTC")]


def _print(name: str, findings: list[Finding]) -> None:
    from csflow.system.tables import print_table

    rows = [("problem" if each.problem else "ok", each.check, each.found) for each in findings]
    print_table(("", "check", "found"), rows, title=name, styles=["red" if each.problem else "" for each in findings])
