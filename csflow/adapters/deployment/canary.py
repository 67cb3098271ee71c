"""Replace a line's detector on a cluster: try the new one without traffic, give it more and more requests, or go back.

The former detector keeps serving until the new one has passed every stage; a failure at any stage ends the promotion:

1. A dry run asks the cluster; what it would refuse or silently drop is reported before anything changes.
2. The challenger's pods start without traffic. They must become ready and give the same results as the detector itself.
3. Each step of ``serving.canary`` gives it a share of the requests for some minutes. During that time it must stay
   ready, not restart, and not fail more often than ``serving.max_error_rate``.
4. It gets all requests. Only then does the caller move the alias.

A step that fails brings back the former digest. Where the cluster cannot split requests (see the table in
:mod:`csflow.adapters.deployment.inference_service`), stages 2 and 3 are skipped: Kubernetes replaces the pods one
by one as new ones become ready, and the trial follows. A line that asks for steps on such a cluster is refused.

**Killed between two steps.** The Lease of the line stores the challenger, its share and when the step began. The next
process (``csflow reconcile``, the step's retry, or the next run) resumes the rest of the step if the challenger is
still wanted, and otherwise ends the canary: :func:`csflow.release.promotion.reconcile` decides.
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
"""This many failures are no accident, however few the requests."""


@dataclass(frozen=True)
class Pace:
    """Time limits of a rollout, in seconds.

    Attributes:
        ready: Time until pods must be ready, including time to pull the image and to start a node.
        again: Time until pods that were ready before must be ready again.
        poll: Pause between two checks.
    """

    ready: float = 900.0
    again: float = 120.0
    poll: float = 10.0


PACE = Pace()


@dataclass(frozen=True)
class Rollout:
    """A change of the detector that serves a line.

    Attributes:
        service: The line's InferenceService.
        lock: The right to change it.
        line: The line.
        release: The detector that is to serve.
        trial: Tries an endpoint; raises a :class:`csflow.errors.DeployError` if something is wrong with it.
        approval: Why it becomes champion; ``None``, which skips the canary steps, if it is or was champion already.
    """

    service: LineService
    lock: EndpointLock
    line: LineConfig
    release: Release
    trial: Trial
    approval: Approval | None

    def run(self) -> str:
        """Roll the release out until it gets all requests.

        Returns:
            What the canary steps showed, for the decision's reason; empty without steps.

        Raises:
            DeployError: If the cluster refuses or the release fails a stage; the former detector goes on serving.
        """
        seen = self.service.observe()
        before = seen.wanted if seen else None
        if before is None:
            return self._first(new=seen is None)
        if _same(before.champion, self.release):
            self._settle(before)
            return ""
        # A champion that does not answer needs no protection.
        steps = self.line.serving.canary if self.approval and self.service.answers(before.champion) else ()
        if steps:
            self.service.require_split()
        return self._gradually(before, steps) if self.service.splits() else self._at_once(before)

    def _first(self, *, new: bool) -> str:
        """Serve a line for the first time; without a champion there is nothing to go back to."""
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
        """Keep the present detector, end any canary, and apply the line's current YAML."""
        if before.challenger is None:
            self._reach(_wanted(self.release, before.former, name=before.name))
        else:
            say(f"deploy: the canary of version {before.challenger.version} of {self.line.line} is ended")
            self._go_back(before, self.release)

    def _at_once(self, before: DesiredService) -> str:
        """Let Kubernetes replace the pods, because this cluster cannot split requests between two detectors."""
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
        """Start the release without traffic, raise its share step by step, then give it all requests."""
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
        """Give the release all requests.

        In Standard mode it first gets all pods, because the next apply removes the former ones.
        """
        if self.line.serving.mode == "knative":
            self._reach(_wanted(self.release, before.champion))
            return
        self._reach(_tried(before, self.release, 100))
        self._reach(_wanted(self.release, before.champion, name=_other_name(before)))

    def _left_off(self, before: DesiredService) -> tuple[int, datetime]:
        """Return the share (0 for none) and the start of the step at which a promotion of this release was killed."""
        progress = self.lock.progress
        if progress is None or not _same(progress.release, self.release):
            return 0, datetime.now(UTC)
        going = before.challenger is not None and _same(before.challenger, self.release)
        return (progress.percent if going else 0), progress.started

    def _watch(self, before: DesiredService, step: CanaryStep, began: datetime) -> str:
        """Watch the release for the rest of a step and describe what was seen.

        Raises:
            DeployError: If the release fails too often, restarts, or is no longer ready.
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
        """Apply the wanted state and wait until the cluster has reached it."""
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
        """Go back to the former detector, then raise the reason together with the result of going back."""
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
            # The release has taken over and the champion's pods are gone: start them again before the release's stop.
            self._reach(_tried(now, champion, 100))
            self._reach(_wanted(champion, now.champion, name=_other_name(now)))
        else:
            self._reach(_wanted(champion, before.former, name=before.name))


def judge_canary(counts: RequestCounts, limit: float) -> tuple[bool, str]:
    """Decide if a challenger fails too often to go on.

    Args:
        counts: Requests that its pods have answered since they started.
        limit: Largest allowed share of failures, ``serving.max_error_rate``.

    Returns:
        True if it failed, and a description of what was seen. It does not fail because of too few requests; the
        description then says that they are too few.
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
    """Add a challenger with a share of the requests to the state that serves."""
    return DesiredService(before.champion, before.former, release, percent, before.name)
