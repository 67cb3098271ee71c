"""Send at half of the highest rate for minutes, and watch memory and waiting."""

from __future__ import annotations

from typing import Any

from sidebyside.process import Worker
from sidebyside.progress import say

from servers.running import Running
from servers.session import Session, accuracy_of, percentile

CLIENTS = 16
PART_OF_MAXIMUM = 0.5
UNITS = {
    "rate": "images/s",
    "memory at the start": "MB",
    "memory at the end": "MB",
    "refused": "requests",
}


def soak(session: Session) -> None:
    """Send at half of the highest rate for minutes, each server by itself; watch its memory and its waiting."""
    settings = session.settings
    figures: dict[str, dict[str, float]] = {}
    notes: dict[str, str] = {}
    with session.together() as servers, session.load() as load:
        for name, running in servers.items():
            fast = load.call("closed", port=running.port, protocol="v1", clients=CLIENTS, seconds=settings.seconds)
            rate = PART_OF_MAXIMUM * fast["images"] / fast["seconds"]
            begin = running.usage().rss / 1e6
            minutes = _minutes(load, running, rate, settings.minutes)
            waits = [percentile(minute["milliseconds"], 95) for minute in minutes]
            figures[name] = {
                "rate": rate,
                "memory at the start": begin,
                "memory at the end": running.usage().rss / 1e6,
                "largest p95 of a minute": max(waits),
                "refused": sum(sum(minute["errors"].values()) for minute in minutes),
                "worst": max(minute["worst"] for minute in minutes),
            }
            notes[name] = f"p95 by minute {', '.join(f'{wait:.0f}' for wait in waits)} ms"
    accuracy = accuracy_of({name: each["worst"] for name, each in figures.items()})
    for what, unit in UNITS.items():
        session.add(f"soak ({what})", unit, {name: each[what] for name, each in figures.items()})
    worst = {name: each["largest p95 of a minute"] for name, each in figures.items()}
    session.add("soak (largest p95 of a minute)", "ms", worst, accuracy, notes)


def _minutes(load: Worker, running: Running, rate: float, minutes: float) -> list[dict[str, Any]]:
    """Send for some minutes; return what was seen in each."""
    found, left = [], 60 * minutes
    while left > 0:
        seconds = min(60.0, left)
        asked = {"port": running.port, "protocol": "v1", "clients": 4 * CLIENTS}
        found.append(load.call("paced", **asked, rate=rate, seconds=seconds))
        left -= seconds
        say(f"soak: {running.name}, {left / 60:.1f} minutes left")
    return found
