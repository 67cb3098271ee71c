"""Measure the memory of a server while the worst requests are sent, and its answers to them."""

from __future__ import annotations

from collections import Counter
from contextlib import ExitStack
from typing import Any

from sidebyside.progress import say

from servers.contenders import Contender
from servers.hostile import Hostile, requests
from servers.session import WARM, Session
from servers.settings import LINE


def hostile(session: Session) -> None:
    """Send each request to each server, in a new process for each, or at least after one that was killed."""
    found = requests(session.folder / "hostile", session.settings)
    figures: dict[str, dict[str, dict[str, Any]]] = {request.name: {} for request in found}
    for contender in session.contenders:
        left = list(found)
        while left:
            left = _send(session, contender, left, figures)
    for name, by_server in figures.items():
        notes = {server: _in_words(each, session.settings.guard) for server, each in by_server.items()}
        peaks = {server: each["peak"] / 1e6 for server, each in by_server.items()}
        session.add(f"hostile ({name}): memory above rest", "MB", peaks, notes=notes)
        session.add(f"hostile ({name}): answered after", "s", {server: e["seconds"] for server, e in by_server.items()})
    for server in (each.name for each in session.contenders):
        deaths = sum(each[server]["killed"] for each in figures.values())
        say(f"hostile: {server} was killed for its memory by {deaths} of {len(figures)} requests")


def _send(
    session: Session, contender: Contender, found: list[Hostile], figures: dict[str, dict[str, dict[str, Any]]]
) -> list[Hostile]:
    """Send one request, or in a quick run as many as go well; return those that are left."""
    model = session.model(contender, session.settings.width)
    with ExitStack() as stack:
        running = stack.enter_context(contender.serve([(LINE, model)], session.log(contender)))
        load = stack.enter_context(session.load())
        load.call("closed", port=running.port, protocol="v1", clients=1, seconds=0, least=WARM)
        for number, request in enumerate(found, 1):
            say(f"hostile: {contender.name}, {request.name}")
            before = running.usage().rss
            with running.guarded(session.settings.guard) as peak:
                answer = load.call(
                    "send_file",
                    port=running.port,
                    path=request.path,
                    file=str(request.file),
                    headers=request.headers,
                    copies=request.copies,
                )
            killed = running.killed or not running.alive()
            figures[request.name][contender.name] = {**answer, "peak": peak() - before, "killed": killed}
            if killed or session.settings.fresh:
                return found[number:]
    return []


def _in_words(answer: dict[str, Any], guard: int) -> str:
    statuses = ", ".join(f"{number} × {status}" for status, number in sorted(Counter(answer["status"]).items()))
    if answer["killed"]:
        return f"{statuses}, killed above {guard} MB"
    probe = "no answer" if answer["live"] is None else f"{answer['live']:.2f} s"
    return f"{statuses}, slowest probe {probe}"
