"""Measure one image at a time in a server that has one CPU, as in a small pod."""

from __future__ import annotations

from statistics import median

from sidebyside.progress import say

from servers.quota import one_cpu
from servers.session import WARM, Session, accuracy_of, percentile
from servers.settings import LINE


def quota(session: Session) -> None:
    """Measure the servers one after the other, each ``repeats`` times, in a process of its own every time."""
    waits: dict[str, list[float]] = {each.name: [] for each in session.contenders}
    threads: dict[str, float] = {}
    worst: dict[str, float] = dict.fromkeys(waits, 0.0)
    how = ""
    for _ in range(session.settings.repeats):
        for contender in session.contenders:
            say(f"quota: {contender.name}")
            model = session.model(contender, session.settings.width)
            with session.load() as load, one_cpu() as (how, confine):
                with contender.serve([(LINE, model)], session.log(contender), confine) as running:
                    asked = {"port": running.port, "protocol": "v1", "clients": 1}
                    load.call("closed", **asked, seconds=0, least=WARM)
                    result = load.call("closed", **asked, seconds=session.settings.seconds)
                    threads[contender.name] = running.usage().threads
            waits[contender.name].append(percentile(result["milliseconds"], 50))
            worst[contender.name] = max(worst[contender.name], result["worst"])
    session.add(
        f"quota (one image, {how}): p50",
        "ms",
        {name: median(found) for name, found in waits.items()},
        accuracy_of(worst),
    )
    session.add("quota: threads", "threads", threads)
