"""Put a decision of the gate or of a person about a line's champion into effect; the alias moves last.

Every part may be repeated. The order makes a crash harmless at any point: until the alias moves, the old
champion is the valid one, and :func:`reconcile` makes the endpoint follow the alias again.

============  ==================================================================================
Outcome       Meaning
============  ==================================================================================
promoted      the version is champion and served
kept_…        the gate kept the champion: worse, or not enough evidence
held          a person rolled back; retrains may not replace the champion until the hold is gone
unchanged     nothing new to decide, the champion stands
============  ==================================================================================

On a cluster a promotion proceeds in canary steps and may be killed between two of them. If its challenger is still
wanted, :func:`reconcile` continues the promotion; otherwise it ends it.
"""

from __future__ import annotations

import getpass
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from csflow.adapters.deployment.endpoints import Approval
from csflow.adapters.mlflow.versions import CHAMPION_SINCE
from csflow.config import LineConfig
from csflow.errors import RegistryError, UsageError
from csflow.release.deployment import deploy
from csflow.release.settled import GATE, former_champions, gate_settings, is_settled
from csflow.runs.services import Services
from csflow.system.progress import say

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from csflow.adapters.deployment.endpoints import Endpoint, EndpointLock
    from csflow.adapters.mlflow.versions import Version
    from csflow.release.gate import GateDecision


@dataclass(frozen=True)
class Promotion:
    """The result of a promotion, rollback or reconciliation.

    Attributes:
        outcome: See the table of this module; ``reconciled`` and ``rolled_back`` for the other two.
        reason: The reason, in one sentence.
        champion: The version that is champion now; ``None`` if there is none.
        endpoint: The endpoint that serves it now; ``None`` if there is no champion.
    """

    outcome: str
    reason: str
    champion: int | None
    endpoint: Endpoint | None


def promote(
    services: Services,
    line: LineConfig,
    version: int,
    decide: Callable[[], GateDecision],
    samples: Sequence[bytes] = (),
) -> Promotion:
    """Let the gate decide about a new version, and serve it if it passes.

    A version is decided only once, so that a repeated step has the same result.

    Args:
        services: The outside systems.
        line: The line.
        version: The challenger.
        decide: Compares it with the champion; called at most once.
        samples: Encoded images to try the endpoint with.

    Raises:
        RegistryError: If there is no such version, or its files are not those registered.
        DeployError: If the new endpoint does not start or does not answer as the detector does; the champion
            is then still served.
    """
    with _one_at_a_time(services, line.line) as lock:
        challenger = services.registry.find_version(line.line, version)
        hold = services.registry.get_hold(line.line)
        outcome, reason = _decided_before(challenger, line, hold) or _decided(hold, decide)
        if outcome == "promoted":
            return _take_over(services, line, challenger, Approval("gate", reason), samples, lock)
        if outcome != "unchanged":
            _note(services, challenger, outcome, reason, {GATE: gate_settings(line)})
        return _follow_champion(services, line, outcome, reason, samples, lock)


def promote_by_hand(services: Services, line: LineConfig, version: int) -> Promotion:
    """Serve a version because a person decides so; this ends a hold.

    Raises:
        RegistryError: As :func:`promote`.
        DeployError: As :func:`promote`.
    """
    with _one_at_a_time(services, line.line) as lock:
        chosen = services.registry.find_version(line.line, version)
        approval = Approval("hand", f"promoted by hand ({_user()}, {_now()})")
        return _take_over(services, line, chosen, approval, (), lock)


def rollback(services: Services, line: LineConfig, to: int | None = None, *, reason: str = "") -> Promotion:
    """Serve a former champion again and set a hold, so that retrains do not replace it.

    Args:
        services: The outside systems.
        line: The line.
        to: A version that was champion before; ``None`` for the last one before the present champion.
        reason: A note for the people who find the hold later.

    Raises:
        RegistryError: If there is no champion, or no former one to go back to.
        DeployError: As :func:`promote`; the present champion is then still served and nothing is held.
    """
    with _one_at_a_time(services, line.line) as lock:
        champion = services.registry.find_version(line.line)
        former = _former_champion(services, champion, to)
        endpoint = deploy(services, line, former, (), lock).endpoint
        why = f"rolled back from version {champion.version} ({_user()}, {_now()})" + (f": {reason}" if reason else "")
        hold = {"reason": reason, "time": _now(), "user": _user(), "rolled_back": str(champion.version)}
        services.registry.set_hold(line.line, hold)
        services.registry.set_alias(line.line, former.version)
        _note(services, champion, "rolled_back", why)
        services.registry.set_version_tags(line.line, former.version, {CHAMPION_SINCE: _now("microseconds")})
        say(f"rollback: version {former.version} is champion again and held")
        return Promotion("rolled_back", why, former.version, endpoint)


def release_hold(services: Services, line: str) -> dict[str, str]:
    """Let retrains replace the champion again.

    Returns:
        The details of the hold.

    Raises:
        UsageError: If there is no hold.
    """
    with _one_at_a_time(services, line):
        hold = services.registry.get_hold(line)
        if hold is None:
            raise UsageError(f"Line {line!r} has no hold to release: retrains may promote already.")
        services.registry.set_hold(line, None)
        return hold


def reconcile(services: Services, line: LineConfig, samples: Sequence[bytes] = ()) -> Promotion:
    """Make the endpoint serve the version that has the champion alias, whatever happened before.

    First, if a promotion was killed on a cluster and its challenger is still wanted, it is completed with the rest of
    its canary step. The challenger is wanted if the registry still has the version with that digest, and either a
    person asked for it, or the gate passed it, no hold has been set since, and no other decision about it still counts.
    If it is not wanted, all requests go back to the champion.

    Raises:
        RegistryError: If the champion's files are not those registered.
        DeployError: If its endpoint does not start, or the continued promotion fails.
    """
    with _one_at_a_time(services, line.line) as lock:
        unfinished = _still_wanted(services, line, lock)
        if unfinished is None:
            return _follow_champion(services, line, "reconciled", "", samples, lock)
        version, approval = unfinished
        done = _take_over(services, line, version, approval, samples, lock)
        return replace(done, outcome="reconciled", reason=f"its interrupted promotion was completed: {done.reason}")


def _decided_before(challenger: Version, line: LineConfig, hold: Mapping[str, str] | None) -> tuple[str, str] | None:
    """Return an earlier decision about a version, even if it was not recorded completely; ``None`` if none counts."""
    reason = challenger.tags.get("decision_reason", "")
    if challenger.is_champion:
        return "promoted", reason
    if challenger.decision in {"promoted", "rolled_back"}:
        return "unchanged", f"version {challenger.version} was champion before and is not now"
    return (challenger.decision, reason) if is_settled(challenger, line, hold) else None


def _decided(hold: Mapping[str, str] | None, decide: Callable[[], GateDecision]) -> tuple[str, str]:
    """Return the gate's outcome, or ``held`` if a hold overrules it; without a champion there is nothing to hold."""
    decision = decide()
    if hold is None:
        return decision.outcome, decision.reason
    by = f"{hold.get('user', 'somebody')} on {hold.get('time', 'an unknown day')}"
    because = f" ({hold['reason']})" if hold.get("reason") else ""
    return "held", f"held by {by}{because}; the gate alone would have said {decision.outcome}: {decision.reason}"


def _still_wanted(services: Services, line: LineConfig, lock: EndpointLock) -> tuple[Version, Approval] | None:
    """Return the challenger of a killed promotion and why it was approved; ``None`` if it is not wanted any more."""
    progress = lock.progress
    if progress is None:
        return None
    try:
        version = services.registry.find_version(line.line, int(progress.release.version))
    except RegistryError:
        return None
    undecided = services.registry.get_hold(line.line) is None and not is_settled(version, line, None)
    same = version.tags.get("detector_digest") == progress.release.digest
    wanted = same and (progress.approval.by == "hand" or undecided)
    return (version, progress.approval) if wanted else None


def _take_over(
    services: Services,
    line: LineConfig,
    version: Version,
    approval: Approval,
    samples: Sequence[bytes],
    lock: EndpointLock,
) -> Promotion:
    """Deploy a version, then move the alias; a person's decision also ends a hold.

    The version counts as decided only after that: if this is interrupted, the next run decides again
    instead of finding nothing to do.
    """
    deployed = deploy(services, line, version, samples, lock, approval)
    reason = f"{approval.reason}; canary: {deployed.note}" if deployed.note else approval.reason
    services.registry.set_version_tags(version.line, version.version, {"decision_reason": reason})
    services.registry.set_alias(line.line, version.version)
    _note(services, version, "promoted", reason, {GATE: gate_settings(line), CHAMPION_SINCE: _now("microseconds")})
    if approval.by == "hand":
        services.registry.set_hold(line.line, None)
    lock.record(None)
    say(f"promote: version {version.version} is champion, served at {deployed.endpoint.url}")
    return Promotion("promoted", reason, version.version, deployed.endpoint)


def _follow_champion(
    services: Services, line: LineConfig, outcome: str, reason: str, samples: Sequence[bytes], lock: EndpointLock
) -> Promotion:
    """Serve the champion; without a champion, serve nothing."""
    champion = services.registry.find_champion(line.line)
    given_up = lock.progress
    if champion is None:
        stopped = services.endpoints.stop(line.line)
        lock.record(None)
        note = "no champion: the endpoint was stopped" if stopped else "no champion, nothing served"
        return Promotion(outcome, reason or note, None, None)
    before = services.endpoints.status(line.line)
    endpoint = deploy(services, line, champion, samples, lock).endpoint
    lock.record(None)
    if before is None:
        note = f"champion version {champion.version} was not served and is now"
    elif before == endpoint:
        note = f"champion version {champion.version} was served already"
    else:
        note = f"version {before.version} was served instead of champion version {champion.version}"
    if given_up is not None and given_up.release.version != str(champion.version):
        note += f"; the interrupted promotion of version {given_up.release.version} was given up"
    return Promotion(outcome, reason or note, champion.version, endpoint)


def _former_champion(services: Services, champion: Version, to: int | None) -> Version:
    versions = services.registry.versions(champion.line)
    if to is None:
        former = former_champions(versions)
    else:
        services.registry.find_version(champion.line, to)
        former = [version for version in versions if version.decision == "promoted" and not version.is_champion]
    chosen = [version for version in former if to in (None, version.version)]
    if chosen:
        return chosen[0]
    known = ", ".join(str(version.version) for version in former) or "none"
    wanted = "no former champion" if to is None else f"no former champion of version {to}"
    raise RegistryError(
        f"Line {champion.line!r} is at version {champion.version} and has {wanted} to go back to. "
        f"Former champions: {known}. To serve any version by hand: csflow promote {champion.line}@VERSION"
    )


def _note(services: Services, version: Version, decision: str, reason: str, more: Mapping[str, str] = {}) -> None:
    tags = {"decision": decision, "decision_reason": reason, **more}
    services.registry.set_version_tags(version.line, version.version, tags)


def _one_at_a_time(services: Services, line: str) -> AbstractContextManager[EndpointLock]:
    """Lock a line's endpoint, so that a nightly retrain and a person do not switch the line at the same time."""
    return services.endpoints.lock(line)


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container may run under a number without a name
        return "unknown"


def _now(timespec: str = "seconds") -> str:
    return datetime.now(UTC).isoformat(timespec=timespec)
