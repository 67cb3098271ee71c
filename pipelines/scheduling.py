"""Bring the recurring runs of a server in line with the YAML files, as :mod:`pipelines.schedules` plans it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from datetime import datetime

from csflow.config import LineConfig
from csflow.errors import ConfigError, CsflowError
from pipelines.cron import clock_of
from pipelines.package import Package
from pipelines.schedules import Change, Wanted
from pipelines.server import Server
from pipelines.submission import package_of, parameters_of, require_reachable

_SIGNS = {"create": "+", "replace": "~", "enable": "+", "disable": "-", "delete": "-", "keep": " "}


def wanted_of(
    lines: Sequence[LineConfig], now: datetime, account: str | None
) -> tuple[list[Wanted], dict[str, Package]]:
    """Build the recurring runs that lines ask for, and compile the pipelines that these need, by version.

    Raises:
        ConfigError: If two files describe one line, or a schedule is impossible.
        UsageError: If pods cannot reach the data of a line that is to run.
    """
    names = [line.line for line in lines]
    if double := sorted({name for name in names if names.count(name) > 1}):
        raise ConfigError(f"Several YAML files describe the same line: {', '.join(double)}. Keep one of each.")
    wanted, packages, compiled = list[Wanted](), dict[str, Package](), dict[str, Package]()
    for line in lines:
        if line.schedule is None:
            continue
        if line.schedule.enabled:
            require_reachable(line)
        clock, resources = clock_of(line.schedule, now), line.resources.model_dump_json()
        package = compiled.get(resources) or package_of(line)
        compiled[resources] = packages[package.version] = package
        enabled, parameters = line.schedule.enabled, parameters_of(line)
        wanted.append(Wanted(line.line, clock, package.version, parameters, enabled, account))
    return wanted, packages


def apply_changes(
    server: Server, changes: Sequence[Change], packages: Mapping[str, Package], say: Callable[[str], None]
) -> None:
    """Apply the planned changes, line by line.

    Raises:
        ServerError: If the server fails for good. Recurring runs that were disabled for a failed replacement are then
            enabled again if possible; the next plan completes the change.
    """
    for change in changes:
        if change.steps:
            _apply(server, change, packages)
            say(f"{change.line}: {change.kind} done")


def _apply(server: Server, change: Change, packages: Mapping[str, Package]) -> None:
    made, disabled = "", list[str]()
    try:
        for step in change.steps:
            target = step.target or made
            if step.verb == "create":
                assert change.wanted is not None
                version = server.version_of(packages[change.wanted.version])
                made = server.create_recurring(change.wanted, version, enabled=step.enabled)
            elif step.verb == "disable":
                disabled.append(target)
                server.disable(target)
            elif step.verb == "enable":
                server.enable(target)
                disabled.clear()
            else:
                server.delete(target)
    except CsflowError:
        new = next((step.target or made for step in change.steps if step.verb == "enable"), "")
        if new and disabled:
            _restore(server, new, disabled)
        raise


def _restore(server: Server, new: str, former: Sequence[str]) -> None:
    """Enable the former recurring runs again after disabling the new one, which may be enabled despite the error."""
    with suppress(CsflowError):  # the error that led here says more
        server.disable(new)
        for each in former:
            server.enable(each)


def describe(change: Change, now: datetime) -> list[str]:
    """Describe a change in lines of text: what happens, when the line runs, and when its time zone shifts that."""
    reason = f" ({change.reason})" if change.reason else ""
    wanted = change.wanted
    if wanted is None:
        what = "; ".join(f"{each.local}, {each.cron} in UTC" for each in change.found)
        return [f"{_SIGNS[change.kind]} {change.line}: {change.kind} {what}{reason}"]
    clock = wanted.clock
    text = [f"{_SIGNS[change.kind]} {change.line}: {change.kind} {clock.local} {clock.zone}{reason}"]
    if not wanted.enabled:
        return text
    upcoming = ", ".join(f"{moment:%Y-%m-%d %H:%M}" for moment in clock.next_runs(now, 2))
    text.append(f"    in UTC {clock.cron}, next {upcoming}")
    if clock.shift is not None:
        when = f"{clock.shift.when:%Y-%m-%d}"
        then = f"then it must become {clock.shift.cron}" if clock.shift.cron else "then it cannot be written in UTC"
        text.append(f"    daylight saving changes on {when}: {then}; run this command again on that day")
    return text
