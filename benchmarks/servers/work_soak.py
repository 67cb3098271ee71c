"""Send at half of the highest rate for minutes, and watch memory and waiting."""

from __future__ import annotations

from typing import Any

from sidebyside.progress import say

from servers.session import Session, accuracy_of, percentile

SOAK_CLIENTS = 16
PART_OF_MAXIMUM = 0.5


def soak(session: Session) -> None:
    """Send at half of the highest rate for minutes, each server by itself; watch its memory and its waiting."""
    settings = session.settings
    worst: dict[str, dict[str, float]] = {}
    with session.together() as servers, session.load() as load:
        for name, running in servers.items():
            fast = load.call("closed", port=running.port, protocol="v1", clients=SOAK_CLIENTS, seconds=settings.seconds)
            rate = PART_OF_MAXIMUM * fast["images"] / fast["seconds"]
            before = running.usage().rss
            minutes: list[dict[str, Any]] = []
            left = 60 * settings.minutes
            while left > 0:
                seconds = min(60.0, left)
                minutes.append(
                    load.call(
                        "paced", port=running.port, protocol="v1", rate=rate, clients=4 * SOAK_CLIENTS, seconds=seconds
                    )
                )
                left -= seconds
                say(f"soak: {name}, {left / 60:.1f} minutes left")
            waits = [percentile(minute["milliseconds"], 95) for minute in minutes]
            worst[name] = {
                "images/s": rate,
                "memory grown, MB": (running.usage().rss - before) / 1e6,
                "first": waits[0],
                "last": waits[-1],
                "largest": max(waits),
                "errors": sum(sum(minute["errors"].values()) for minute in minutes),
                "worst": max(minute["worst"] for minute in minutes),
            }
    accuracy = accuracy_of({name: figures["worst"] for name, figures in worst.items()})

    def add(what: str, unit: str, key: str) -> None:
        session.add(f"soak ({what})", unit, {name: figures[key] for name, figures in worst.items()}, accuracy)

    add("rate, half of the highest", "images/s", "images/s")
    add("memory grown", "MB", "memory grown, MB")
    for which in ("first", "last", "largest"):
        add(f"p95 of a minute, {which}", "ms", which)
    add("refused", "requests", "errors")
