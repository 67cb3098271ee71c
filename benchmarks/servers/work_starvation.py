"""Measure how long single images wait on one line while other clients send large requests on another."""

from __future__ import annotations

import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from sidebyside.process import Worker
from sidebyside.progress import say

from servers.running import Running
from servers.session import Session, accuracy_of, errors_of, percentile
from servers.settings import OTHER

HEAVY_CLIENTS = (0, 1, 4)
LEAST = 5
HEAD_START = 0.5
LONGEST = 3600.0


def starvation(session: Session) -> None:
    """Measure the single images alone, and while one and four clients send large requests."""
    with session.together() as servers, session.load() as singles, session.load() as heavy:
        for clients in HEAVY_CLIENTS:
            found: dict[str, dict[str, Any]] = {}
            for name, running in servers.items():
                say(f"starvation: {name}, {clients} clients with {session.settings.heavy} images")
                found[name] = _measured(session, running, singles, heavy, clients)
            work = "starvation (single images alone)"
            if clients:
                work = f"starvation (single images while {clients} × {session.settings.heavy} on another line)"
            accuracy = accuracy_of({name: result["worst"] for name, result in found.items()})
            notes = {name: note for name, result in found.items() if (note := _in_words(result))}
            for share in (50, 95):
                waits = {name: percentile(result["milliseconds"], share) for name, result in found.items()}
                session.add(f"{work}: p{share}", "ms", waits, accuracy if share == 50 else None, notes)


def _measured(session: Session, running: Running, singles: Worker, heavy: Worker, clients: int) -> dict[str, Any]:
    asked = {"port": running.port, "protocol": "v1"}
    alone = {**asked, "clients": 1, "seconds": session.settings.seconds, "least": LEAST}
    if not clients:
        result: dict[str, Any] = singles.call("closed", **alone)
        return result
    stop = session.folder / "stop"
    stop.unlink(missing_ok=True)
    large = {**asked, "line": OTHER, "size": session.settings.heavy}
    heavy.call("closed", **large, clients=1, seconds=0)  # the process is there, and its requests are made
    with ThreadPoolExecutor(1) as aside:
        sending = aside.submit(heavy.call, "closed", **large, clients=clients, seconds=LONGEST, stop=str(stop))
        try:
            time.sleep(HEAD_START)
            result = singles.call("closed", **alone)
        finally:
            stop.touch()
        other = sending.result()
        return {**result, "worst": max(result["worst"], other["worst"]), "large": other}


def _in_words(result: Mapping[str, Any]) -> str:
    """Say what was refused, and how many images of the large requests were scored meanwhile."""
    refused = errors_of(result)
    if "large" not in result:
        return refused
    large = result["large"]
    scored = f"large requests: {large['images'] / large['seconds']:.1f} images/s"
    return "; ".join(filter(None, (refused, scored, errors_of(large))))
