"""From one detector to the next on a cluster: try it dark, give it more and more requests, or go back.

What serves goes on until the new one has proved itself; each stage may be the last:

1. The cluster is asked in a dry run; what it refuses or would silently drop is told before anything changes.
2. The challenger's pods start and get no requests. They must become ready and say what the detector itself says.
3. Each step of ``serving.canary`` gives it a share of the requests for some minutes. Meanwhile it must stay ready,
   not restart, and not fail more often than ``serving.max_error_rate``.
4. It gets all requests. Only then does the caller move the alias.

A step that fails brings back the former digest. Where the cluster cannot share requests (the table in
:mod:`csflow.adapters.deployment.inference_service`), stages 2 and 3 fall away: Kubernetes replaces the pods one
by one as new ones become ready, and the trial comes after that. A line that wants steps there is refused.

**Killed between two steps.** The Lease of the line holds the challenger, its share and when the step began. Who
comes next (``csflow reconcile``, the step's retry, the next run) goes on with what is left of the step if the
challenger is still wanted, and otherwise ends the canary: :func:`csflow.release.promotion.reconcile` decides.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from csflow.adapters.deployment.endpoints import Approval, CanaryProgress, EndpointLock, Release, Trial
from csflow.adapters.deployment.inference_service import DesiredService, other_name
from csflow.adapters.deployment.pods import RequestCounts
from csflow.adapters.deployment.service import LineService
from csflow.config import CanaryStep, LineConfig
from csflow.errors import CsflowError, DeployError
from csflow.system.progress import say

ENOUGH_REQUESTS = 20
"""With fewer requests a share of failures says little."""

ENOUGH_FAILURES = 3
"""So many failures are no accident, however few the requests."""


@dataclass(frozen=True)
class Pace:
    """Seconds.

    Attributes:
        ready: Until pods must be ready; covers pulling the image and a node that starts.
        again: Until pods that were ready once must be so again.
        poll: Between two looks.
    """

    ready: float = 900.0
    again: float = 120.0
    poll: float = 10.0


PACE = Pace()


@dataclass(frozen=True)
class Rollout:
    """One change of what serves a line.

    Attributes:
        service: The line's InferenceService.
        lock: The right to change it.
        line: The line.
        release: What shall serve.
        trial: Tries an endpoint; raises a :class:`csflow.errors.DeployError` if it is not as it should be.
        approval: Why it becomes champion; ``None`` if it is so already or was before: then without canary steps.
    """

    service: LineService
    lock: EndpointLock
    line: LineConfig
    release: Release
    trial: Trial
    approval: Approval | None

    def run(self) -> str:
        """Bring the release to all requests.

        Returns:
            What the canary steps showed, for the decision's reason; empty without steps.

        Raises:
            DeployError: If the cluster refuses, or the release does not prove itself; what served before goes on.
        """
        seen = self.service.observe()
        before = seen.wanted if seen else None
        if before is None:
            return self._first(new=seen is None)
        if _same(before.champion, self.release):
            self._settle(before)
            return ""
        # Beside a champion that answers nobody there is nothing to be careful about.
        steps = self.line.serving.canary if self.approval and self.service.answers(before.champion) else ()
        if steps:
            self.service.require_split()
        return self._gradually(before, steps) if self.service.splits() else self._at_once(before)

    def _first(self, *, new: bool) -> str:
        """Serve a line that nothing served; without a champion there is nothing to go back to."""
        wanted = _wanted(self.release)
        self.service.apply(wanted, dry_run=True)
        self._record(0)
        try:
            self._reach(wanted)
            self.trial(self.service.endpoint(self.release))
        except BaseException:
            if new:
                self.service.delete()
            self.lock.record(None)
            raise
        return ""

    def _settle(self, before: DesiredService) -> None:
        """Serve what serves already, without a challenger and as the line's YAML says by now."""
        if before.challenger is None:
            self._reach(_wanted(self.release, before.former, name=before.name))
        else:
            say(f"deploy: the canary of version {before.challenger.version} of {self.line.line} is ended")
            self._go_back(before, self.release)

    def _at_once(self, before: DesiredService) -> str:
        """Let Kubernetes replace the pods: on this cluster two detectors cannot be told apart from outside."""
        wanted = _wanted(self.release, before.champion, name=before.name)
        self.service.apply(wanted, dry_run=True)
        self._record(0)
        try:
            self._reach(wanted)
            self.trial(self.service.endpoint(self.release))
        except BaseException as error:
            self._give_up(before, error)
            raise
        return ""

    def _gradually(self, before: DesiredService, steps: Sequence[CanaryStep]) -> str:
        """Dark, step by step, all."""
        percent, started = self._left_off(before)
        notes = [f"continued at {percent} % after an interruption"] if percent else []
        self.service.apply(_tried(before, self.release, percent), dry_run=True)
        try:
            if not percent:
                self._record(0)
                self._reach(_tried(before, self.release, 0))
                self.trial(self.service.endpoint(self.release))
            for step in (step for step in steps if step.percent >= percent):
                self._reach(_tried(before, self.release, step.percent))
                began = started if step.percent == percent else datetime.now(UTC)
                self._record(step.percent, began)
                notes.append(self._watch(before, step, began))
                say(f"deploy: {self.line.line} version {self.release.version}, {notes[-1]}")
            self._take_all(before)
        except BaseException as error:
            self._give_up(before, error)
            raise
        return "; ".join(notes)

    def _take_all(self, before: DesiredService) -> None:
        """All requests; in Standard mode with all pods first, because the former ones go at the next word."""
        if self.line.serving.mode == "knative":
            self._reach(_wanted(self.release, before.champion))
            return
        self._reach(_tried(before, self.release, 100))
        self._reach(_wanted(self.release, before.champion, name=_other_name(before)))

    def _left_off(self, before: DesiredService) -> tuple[int, datetime]:
        """The step a killed promotion of the same release was at; 0 for none."""
        progress = self.lock.progress
        if progress is None or not _same(progress.release, self.release):
            return 0, datetime.now(UTC)
        going = before.challenger is not None and _same(before.challenger, self.release)
        return (progress.percent if going else 0), progress.started

    def _watch(self, before: DesiredService, step: CanaryStep, began: datetime) -> str:
        """Look on for the rest of a step; what was seen.

        Raises:
            DeployError: If the release fails too often, restarts, or is not ready any more.
        """
        end, restarts = began + timedelta(minutes=step.minutes), self.service.restarts(self.release)
        while True:
            self.lock.check()
            failed, seen = judge_canary(self.service.counts(self.release), self.line.serving.max_error_rate)
            again = self.service.restarts(self.release) - restarts
            if failed or again > 0:
                why = seen if failed else f"its pods restarted {again} times"
                raise DeployError(f"{why}\n{self.service.explain(self.release)}" if again > 0 else why)
            left = (end - datetime.now(UTC)).total_seconds()
            if left <= 0:
                return f"{step.percent} % for {step.minutes:g} min: {seen}"
            time.sleep(min(PACE.poll, left))
            self._await(_tried(before, self.release, step.percent), self.release, PACE.again)

    def _reach(self, wanted: DesiredService) -> None:
        """Apply, and wait until it is so."""
        self.service.apply(wanted)
        self._await(wanted, wanted.challenger or wanted.champion, PACE.ready)

    def _await(self, wanted: DesiredService, release: Release, seconds: float) -> None:
        end = time.monotonic() + seconds
        while why := self.service.unready(wanted, release):
            if time.monotonic() > end:
                raise DeployError(f"not ready after {seconds:g} seconds: {why}\n{self.service.explain(release)}")
            self.lock.check()
            time.sleep(min(PACE.poll, max(0.0, end - time.monotonic())))

    def _record(self, percent: int, began: datetime | None = None) -> None:
        if self.approval is None:
            self.lock.record(None)
            return
        began = began or datetime.now(UTC)
        self.lock.record(CanaryProgress(self.release, percent, began, self.approval))

    def _give_up(self, before: DesiredService, error: BaseException) -> None:
        """Go back to what served; raise the reason with what became of it."""
        what = f"Version {self.release.version} of line {self.line.line} was not promoted"
        try:
            self._go_back(before, before.champion)
            self.lock.record(None)
        except CsflowError as second:
            raise DeployError(
                f"{what}: {error}\nGoing back to version {before.champion.version} failed as well: {second}\n"
                f"When the cluster answers again: csflow reconcile {self.line.line}"
            ) from error
        if isinstance(error, CsflowError):
            raise DeployError(f"{what}: {error}\nVersion {before.champion.version} goes on.") from error

    def _go_back(self, before: DesiredService, champion: Release) -> None:
        """Give all requests to the champion."""
        if self.line.serving.mode == "knative":
            # Without the pin at 0 % Knative would send everything to its newest ready revision, the one that
            # failed, until the champion's new revision is ready. The pods must not change when the pin goes.
            self._reach(_wanted(champion, challenger=champion))
            self._reach(_wanted(champion, champion))
            return
        seen = self.service.observe()
        now = seen.wanted if seen else None
        if now is not None and not _same(now.champion, champion) and self.service.splits():
            # The release has taken over and the champion's pods are gone: they come back beside it first.
            self._reach(_tried(now, champion, 100))
            self._reach(_wanted(champion, now.champion, name=_other_name(now)))
        else:
            self._reach(_wanted(champion, before.former, name=before.name))


def judge_canary(counts: RequestCounts, limit: float) -> tuple[bool, str]:
    """Whether a challenger fails too often to go on.

    Args:
        counts: What its pods have answered since they started.
        limit: Largest share of failures, ``serving.max_error_rate``.

    Returns:
        Whether it failed, and what was seen. Too few requests for a judgement do not fail it, but it is said.
    """
    share = counts.failures / counts.requests if counts.requests else 0.0
    seen = f"{counts.failures} of {counts.requests} requests failed"
    if share > limit and (counts.requests >= ENOUGH_REQUESTS or counts.failures >= ENOUGH_FAILURES):
        return True, f"{seen}, {share:.1%} instead of at most {limit:.1%}"
    if counts.requests < ENOUGH_REQUESTS:
        return False, f"{seen}, too few to judge (fewer than {ENOUGH_REQUESTS})"
    return False, f"{seen} (at most {limit:.1%})"


def _same(one: Release, other: Release) -> bool:
    return (one.version, one.digest) == (other.version, other.digest)


def _wanted(
    champion: Release, former: Release | None = None, *, challenger: Release | None = None, name: str = ""
) -> DesiredService:
    return DesiredService(champion, former, challenger, 0, name)


def _other_name(before: DesiredService) -> str:
    return other_name(before.name)


def _tried(before: DesiredService, release: Release, percent: int) -> DesiredService:
    """What serves, with a challenger beside it."""
    return DesiredService(before.champion, before.former, release, percent, before.name)
