"""Measure throughput and waiting with 1 to 64 clients, in every protocol."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

from sidebyside.process import Worker
from sidebyside.progress import say
from sidebyside.rows import Row

from servers.contenders import OURS
from servers.running import Running
from servers.session import Session, accuracy_of, errors_of, percentile


def clients(session: Session) -> None:
    """Measure every protocol with every number of clients, the servers by turns."""
    settings = session.settings
    scores: dict[str, list[tuple[int, float, float]]] = {each.name: [] for each in session.contenders}
    with session.together() as servers, session.load() as load:
        for number in settings.clients:
            _own_limit(session, load, servers[OURS], number)
        for protocol in settings.protocols:
            speaking = {each.name: servers[each.name] for each in session.contenders if protocol in each.protocols}
            for number in settings.clients:
                say(f"clients: {protocol}, {number}")
                results: dict[str, list[dict[str, Any]]] = {name: [] for name in speaking}
                for _ in range(settings.repeats):
                    for name, running in speaking.items():
                        results[name].append(_measured(load, running, protocol, number, settings.seconds))
                _add(session, f"clients ({protocol}, {number})", results)
                for name, found in results.items():
                    scores[name] += [score for each in found for score in each["scores"]]
    spread = {name: _spread(found) for name, found in scores.items()}
    accuracy = {name: {"spread" if name == OURS else "spread of the peer": found} for name, found in spread.items()}
    session.add("clients (one image, all answers): largest difference", "of a score", spread, accuracy)


def _measured(load: Worker, running: Running, protocol: str, number: int, seconds: float) -> dict[str, Any]:
    """Send from some clients for a while; return what they saw, and the server's processor seconds."""
    port = running.grpc_port if protocol == "grpc" else running.port
    before = running.processor_seconds()
    result: dict[str, Any] = load.call("closed", port=port, protocol=protocol, clients=number, seconds=seconds)
    return {**result, "processor": running.processor_seconds() - before}


def _add(session: Session, work: str, results: Mapping[str, Sequence[Mapping[str, Any]]]) -> None:
    rates = {name: median(each["images"] / each["seconds"] for each in found) for name, found in results.items()}
    waits = {name: [ms for each in found for ms in each["milliseconds"]] for name, found in results.items()}
    spent = {
        name: sum(each["processor"] for each in found) / max(1, sum(each["images"] for each in found))
        for name, found in results.items()
    }
    accuracy = accuracy_of({name: max(each["worst"] for each in found) for name, found in results.items()})
    notes = {name: text for name, found in results.items() if (text := "; ".join(filter(None, map(errors_of, found))))}
    session.add(f"{work}: rate", "images/s", rates, accuracy, notes)
    for share in (50, 95, 99):
        session.add(f"{work}: p{share}", "ms", {name: percentile(each, share) for name, each in waits.items()})
    session.add(f"{work}: processor time an image", "ms", {name: 1e3 * seconds for name, seconds in spent.items()})


def _spread(scores: Sequence[Sequence[float]]) -> float:
    """Return the largest relative difference of two scores of one image, over all protocols and numbers of clients.

    Args:
        scores: Index of an image, lowest and highest score of it, of each measurement.
    """
    lowest: dict[float, float] = {}
    highest: dict[float, float] = {}
    for image, low, high in scores:
        lowest[image] = min(low, lowest.get(image, low))
        highest[image] = max(high, highest.get(image, high))
    return max((highest[image] - low) / abs(low) for image, low in lowest.items())


def _own_limit(session: Session, load: Worker, running: Running, number: int) -> None:
    """Measure how fast the sending process can be: what a request that computes nothing costs it."""
    result = load.call("closed", port=running.port, protocol="live", clients=number, seconds=session.settings.seconds)
    asked = len(result["milliseconds"])
    session.rows.append(
        Row(
            f"sender ({number} clients, GET /v2/health/live)",
            asked / result["seconds"],
            "requests/s",
            note=f"p50 {percentile(result['milliseconds'], 50):.2f} ms, "
            f"processor time of the sender {1e3 * result['own'] / asked:.2f} ms each",
        )
    )
