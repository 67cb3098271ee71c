"""Report the state of every line from the server, the registry and the endpoint, as far as each can be reached."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TypeVar

from csflow.config import LineConfig, load_line
from csflow.errors import CsflowError, NotRegisteredError
from csflow.runs.line_state import read_line_state
from csflow.runs.services import Services
from pipelines.cron import clock_of, next_runs
from pipelines.schedules import Found
from pipelines.server import Server

Asked = TypeVar("Asked")


@dataclass
class LineStatus:
    """The state of one line; a field is ``None`` if there is no value or it cannot be known.

    Attributes:
        line: The product line.
        last_run: State of its newest run on the server.
        last_run_at: When that run was requested, ISO 8601 in UTC.
        outcome: Outcome of the newest run that MLflow knows: ``promoted``, ``failed in train``, …
        champion: Version that should be served.
        endpoint: Address of the endpoint.
        serves: Version that is served there.
        next_run: When the server starts the next run, ISO 8601 in UTC.
        notes: Problems, and what could not be found out.
    """

    line: str
    last_run: str | None = None
    last_run_at: str | None = None
    outcome: str | None = None
    champion: int | None = None
    endpoint: str | None = None
    serves: str | None = None
    next_run: str | None = None
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Report:
    """The state of all lines, and the problems that concern all of them."""

    lines: list[LineStatus]
    notes: list[str]


def report(names: Iterable[str], services: Services, connect: Callable[[], Server], now: datetime) -> Report:
    """Collect the state of every line; a system that cannot be reached leaves its columns empty and is noted once.

    Args:
        names: Names of the lines, or paths of their YAML files.
        services: The outside systems.
        connect: Returns the server, or raises.
        now: The present moment.
    """
    notes: list[str] = []
    server = _tried(connect, notes)
    found = None if server is None else _tried(server.recurring_runs, notes)
    if found is None:
        server = None
    lines = []
    for name in names:
        try:
            line = load_line(name)
        except CsflowError as error:
            lines.append(LineStatus(name, notes=[str(error)]))
            continue
        row = LineStatus(line.line)
        if server is not None and found is not None:
            _ask_server(row, line, server, [each for each in found if each.line == line.line], now)
        _ask_services(row, services)
        lines.append(row)
    return Report(lines, notes)


def _ask_server(row: LineStatus, line: LineConfig, server: Server, found: list[Found], now: datetime) -> None:
    run = _tried(lambda: server.last_run(line.line), row.notes)
    if run is not None:
        row.last_run, row.last_run_at = run.state.lower(), _stamp(run.created)
    active = [each for each in found if each.enabled]
    moments = [moment for each in active for moment in next_runs(each.cron, now)]
    row.next_run = _stamp(min(moments, default=None))
    try:
        asked = line.schedule is not None and line.schedule.enabled
        wanted = {clock_of(line.schedule, now).cron} if line.schedule is not None and asked else set()
    except CsflowError as error:
        row.notes.append(str(error))
        return
    if wanted != {each.cron for each in active}:
        row.notes.append(f"its schedule is not in force as its YAML says: csflow schedule {line.line}")


def _ask_services(row: LineStatus, services: Services) -> None:
    state = read_line_state(services, row.line, last_run=True, tolerate=CsflowError)
    row.notes += [trouble for trouble in state.troubles if trouble not in row.notes]
    row.champion = state.champion.version if state.champion else None
    row.outcome = state.last_run.outcome if state.last_run else None
    if state.endpoint is not None:
        row.endpoint, row.serves = state.endpoint.url, state.endpoint.version
    if state.serves_another:
        row.notes.append(f"its endpoint serves version {row.serves}: csflow reconcile {row.line}")


def _tried(ask: Callable[[], Asked], notes: list[str]) -> Asked | None:
    """Return an answer, or add a note and return ``None`` if it fails; a line that never ran gets no note."""
    try:
        return ask()
    except NotRegisteredError:
        return None
    except CsflowError as error:
        if str(error) not in notes:
            notes.append(str(error))
        return None


def _stamp(moment: datetime | None) -> str | None:
    return None if moment is None else moment.astimezone(UTC).isoformat(timespec="minutes")
