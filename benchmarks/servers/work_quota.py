"""Measure one image at a time in a server that has one CPU, as in a small pod."""

from __future__ import annotations

from statistics import median

from sidebyside.progress import say

from servers.quota import one_cpu
from servers.session import WARM, Session, accuracy_of, percentile
from servers.settings import LINE


def quota(session: Session) -> None:
    """Measure the servers by turns, each time in a new process."""
    waits: dict[str, list[float]] = {each.name: [] for each in session.contenders}
    threads: dict[str, float] = {}
    worst: dict[str, float] = dict.fromkeys(waits, 0.0)
    turns = [each for _ in range(session.settings.repeats) for each in session.contenders]
    with session.load() as load, one_cpu() as (how, confine):
        for contender in turns:
            say(f"quota: {contender.name}")
            model = session.model(contender, session.settings.width)
            with contender.serve([(LINE, model)], session.log(contender), confine) as running:
                asked = {"port": running.port, "protocol": "v1", "clients": 1}
                load.call("closed", **asked, seconds=0, least=WARM)
                result = load.call("closed", **asked, seconds=session.settings.seconds)
                threads[contender.name] = running.usage().threads
            waits[contender.name].append(percentile(result["milliseconds"], 50))
            worst[contender.name] = max(worst[contender.name], result["worst"])
    medians = {name: median(found) for name, found in waits.items()}
    session.add(f"quota (one image, {how}): p50", "ms", medians, accuracy_of(worst))
    session.add("quota: threads", "threads", threads)
