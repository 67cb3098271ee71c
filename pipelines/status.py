"""How every line is doing: what the server, the registry and the endpoint say, each as far as it can be asked."""

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

Answer = TypeVar("Answer")


@dataclass
class LineStatus:
    """One line; ``None`` where there is nothing or it cannot be known.

    Attributes:
        line: The product line.
        last_run: State of its newest run on the server.
        last_run_at: When that was asked for, ISO 8601 in UTC.
        outcome: What the newest run that MLflow knows came to: ``promoted``, ``failed in train``, …
        champion: Version that should be served.
        endpoint: Address it is served at.
        serves: Version that is served there.
        next_run: When the server starts the next one, ISO 8601 in UTC.
        notes: What is wrong or could not be asked.
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
    """All lines, and what could be asked for none of them."""

    lines: list[LineStatus]
    notes: list[str]


def report(names: Iterable[str], services: Services, connect: Callable[[], Server], now: datetime) -> Report:
    """Ask everybody about every line; what cannot be asked leaves its columns empty and says so once.

    Args:
        names: Of the lines, or paths of their YAML files.
        services: The outside systems.
        connect: Makes the server, or raises.
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


def _tried(ask: Callable[[], Answer], notes: list[str]) -> Answer | None:
    """An answer, or ``None`` and a note why there is none; a line that never ran is no problem."""
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
