"""Measure what a server does for clients that have gone, and how long a new client waits for it."""

from __future__ import annotations

import time
from collections.abc import Mapping

from sidebyside.process import Worker
from sidebyside.progress import say

from servers.running import Running
from servers.session import Session

SIZE = 4
PATIENCE = 0.05
REST_SECONDS = 1.0
LONGEST = 120.0
BUSY = 0.1
COUNTERS = ("csflow_images_total", "csflow_scored_images_total")
"""Metrics of images that were scored; where there is none, requests are counted."""


def departed(session: Session) -> None:
    """Let clients send and disconnect, and count what was computed for them nevertheless."""
    settings = session.settings
    waits: dict[str, float] = {}
    computed: dict[str, float] = {}
    counted: dict[str, float] = {}
    with session.together() as servers, session.load() as load:
        for name, running in servers.items():
            say(f"departed: {name}")
            one = _one(running, load)
            before, metrics = running.processor_seconds(), running.metrics()
            waits[name] = load.call("depart", port=running.port, clients=settings.departed, size=SIZE, seconds=PATIENCE)
            _wait_until_idle(running)
            computed[name] = max(0.0, running.processor_seconds() - before - one) / one / SIZE
            requests = _counted(metrics, running.metrics())
            if requests is not None:
                counted[name] = requests
    work = f"departed ({settings.departed} clients)"
    session.add(f"{work}: until a new client is answered", "s", waits)
    session.add(f"{work}: of them computed, by processor time", "requests", computed)
    if "ours" in counted:
        session.add(f"{work}: of them computed, by /metrics", "requests", counted)


def _one(running: Running, load: Worker) -> float:
    """Return the processor seconds of one image."""
    before = running.processor_seconds()
    result = load.call("closed", port=running.port, protocol="v1", clients=1, seconds=1.0, size=SIZE, least=5)
    return max(1e-3, running.processor_seconds() - before) / int(result["images"])


def _wait_until_idle(running: Running) -> None:
    last = time.monotonic() + LONGEST
    while time.monotonic() < last:
        before = running.processor_seconds()
        time.sleep(REST_SECONDS)
        if running.processor_seconds() - before < BUSY * REST_SECONDS:
            return


def _counted(before: Mapping[str, float], after: Mapping[str, float]) -> float | None:
    """Return how many requests of the departed were scored, as the server's metrics say; None if it has none."""

    def grown(name: str, label: str = "") -> float | None:
        found = [key for key in after if key.split("{")[0] == name and label in key]
        return sum(after[key] - before.get(key, 0.0) for key in found) if found else None

    for counter in COUNTERS:
        if (images := grown(counter)) is not None:
            return max(0.0, images - 1) / SIZE
    answered = grown("csflow_requests_total", 'outcome="answered"')
    return None if answered is None else max(0.0, answered - 1)
