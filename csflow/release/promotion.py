"""Which version is champion: the gate's or a person's decision, put into effect with the alias last.

Every part may be repeated. The order makes a crash harmless at any point: until the alias moves, the old
champion is the truth, and :func:`reconcile` makes the endpoint follow the alias again.

============  ==================================================================================
Outcome       Meaning
============  ==================================================================================
promoted      the version is champion and served
kept_…        the gate kept the champion: worse, or not enough evidence
held          a person rolled back; retrains may not replace the champion until the hold is gone
unchanged     nothing new to decide, the champion stands
============  ==================================================================================

On a cluster a promotion goes in canary steps and may be killed between two of them. :func:`reconcile` then goes
on with it while its challenger is still wanted, and otherwise ends it; see there.
"""

from __future__ import annotations

import getpass
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from csflow.config import LineConfig
from csflow.errors import RegistryError, UsageError
from csflow.release.canary import Decision
from csflow.release.rollout import deploy
from csflow.system.progress import say
from csflow.system.workspace import Workspace

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from csflow.adapters.deployment import Endpoint, Turn
    from csflow.adapters.mlflow.registry import Version
    from csflow.release.gate import GateDecision


@dataclass(frozen=True)
class Promotion:
    """How a promotion, rollback or reconciliation ended.

    Attributes:
        outcome: See the table of this module; ``reconciled`` and ``rolled_back`` for the other two.
        reason: Why, in one sentence.
        champion: Version that is champion now; ``None`` if there is none.
        endpoint: What serves it now; ``None`` if there is no champion.
    """

    outcome: str
    reason: str
    champion: int | None
    endpoint: Endpoint | None


def promote(
    workspace: Workspace,
    line: LineConfig,
    version: int,
    decide: Callable[[], GateDecision],
    samples: Sequence[bytes] = (),
) -> Promotion:
    """Let the gate decide about a new version, and serve it if it passes.

    A version that was decided before is not decided again, so that a repeated step ends the same.

    Args:
        workspace: Where things are.
        line: The line.
        version: The challenger.
        decide: Compares it with the champion; called at most once.
        samples: Encoded images to try the endpoint with.

    Raises:
        RegistryError: If there is no such version, or its files are not those registered.
        DeployError: If the new endpoint does not start or does not answer as the detector does; the champion
            is then still served.
    """
    from csflow.adapters.mlflow import registry

    with _one_at_a_time(workspace, line.line) as turn:
        challenger = registry.find_version(workspace, line.line, version)
        outcome, reason = _decided_before(challenger) or _decided(workspace, line.line, decide)
        if outcome == "promoted":
            return _take_over(workspace, line, challenger, Decision("gate", reason), samples, turn)
        if outcome != "unchanged":
            _note(workspace, challenger, outcome, reason)
        return _follow_champion(workspace, line, outcome, reason, samples, turn)


def promote_by_hand(workspace: Workspace, line: LineConfig, version: int) -> Promotion:
    """Serve a version because a person says so; a hold ends with it.

    Raises:
        RegistryError: As :func:`promote`.
        DeployError: As :func:`promote`.
    """
    from csflow.adapters.mlflow import registry

    with _one_at_a_time(workspace, line.line) as turn:
        chosen = registry.find_version(workspace, line.line, version)
        decision = Decision("hand", f"promoted by hand ({_user()}, {_now()})")
        return _take_over(workspace, line, chosen, decision, (), turn)


def rollback(workspace: Workspace, line: LineConfig, to: int | None = None, *, reason: str = "") -> Promotion:
    """Serve a former champion again and hold it against retrains.

    Args:
        workspace: Where things are.
        line: The line.
        to: A version that was champion before; ``None`` for the last one before the present champion.
        reason: For the people who find the hold later.

    Raises:
        RegistryError: If there is no champion, or no former one to go back to.
        DeployError: As :func:`promote`; the present champion is then still served and nothing is held.
    """
    from csflow.adapters.mlflow import registry

    with _one_at_a_time(workspace, line.line) as turn:
        champion = registry.find_version(workspace, line.line)
        former = _former_champion(workspace, champion, to)
        endpoint = deploy(workspace, line, former, (), turn).endpoint
        why = f"rolled back from version {champion.version} ({_user()}, {_now()})" + (f": {reason}" if reason else "")
        hold = {"reason": reason, "time": _now(), "user": _user(), "rolled_back": str(champion.version)}
        registry.set_hold(workspace, line.line, hold)
        registry.set_alias(workspace, line.line, former.version)
        _note(workspace, champion, "rolled_back", why)
        say(f"rollback: version {former.version} is champion again and held")
        return Promotion("rolled_back", why, former.version, endpoint)


def release_hold(workspace: Workspace, line: str) -> dict[str, str]:
    """Let retrains replace the champion again.

    Returns:
        What the hold said.

    Raises:
        UsageError: If nothing is held.
    """
    from csflow.adapters.mlflow import registry

    with _one_at_a_time(workspace, line):
        hold = registry.get_hold(workspace, line)
        if hold is None:
            raise UsageError(f"Line {line!r} has no hold to release: retrains may promote already.")
        registry.set_hold(workspace, line, None)
        return hold


def reconcile(workspace: Workspace, line: LineConfig, samples: Sequence[bytes] = ()) -> Promotion:
    """Make the endpoint serve the champion, whatever happened before; the alias is right.

    One thing comes before that: a promotion that was killed on a cluster and whose challenger is still wanted is
    brought to its end, with what is left of its canary step. It is wanted if the registry still has the version with
    that digest, and either a person asked for it, or the gate passed it, nobody holds the champion since, and
    nothing was decided about it otherwise. If it is not wanted, all requests go back to the champion.

    Raises:
        RegistryError: If the champion's files are not those registered.
        DeployError: If its endpoint does not start, or a promotion that went on fails.
    """
    with _one_at_a_time(workspace, line.line) as turn:
        unfinished = _still_wanted(workspace, line.line, turn)
        if unfinished is None:
            return _follow_champion(workspace, line, "reconciled", "", samples, turn)
        version, decision = unfinished
        done = _take_over(workspace, line, version, decision, samples, turn)
        return replace(done, outcome="reconciled", reason=f"its promotion was interrupted and went on: {done.reason}")


def _decided_before(challenger: Version) -> tuple[str, str] | None:
    """What is known of a version whose decision was made, perhaps not written down; ``None`` if none was."""
    reason = challenger.tags.get("decision_reason", "")
    if challenger.is_champion:
        return "promoted", reason
    if challenger.decision in {"promoted", "rolled_back"}:
        return "unchanged", f"version {challenger.version} was champion before and is not now"
    return (challenger.decision, reason) if challenger.decision else None


def _decided(workspace: Workspace, line: str, decide: Callable[[], GateDecision]) -> tuple[str, str]:
    """The gate's outcome, unless a hold overrules it; a line without champion has nothing to hold."""
    from csflow.adapters.mlflow import registry

    hold = registry.get_hold(workspace, line)
    decision = decide()
    if hold is None:
        return decision.outcome, decision.reason
    by = f"{hold.get('user', 'somebody')} on {hold.get('time', 'an unknown day')}"
    because = f" ({hold['reason']})" if hold.get("reason") else ""
    return "held", f"held by {by}{because}; the gate alone would have said {decision.outcome}: {decision.reason}"


def _still_wanted(workspace: Workspace, line: str, turn: Turn) -> tuple[Version, Decision] | None:
    """The challenger of a promotion that was killed, and why it was to be champion; ``None`` if it is not any more."""
    from csflow.adapters.mlflow import registry

    progress = turn.progress
    if progress is None:
        return None
    try:
        version = registry.find_version(workspace, line, int(progress.release.version))
    except RegistryError:
        return None
    undecided = version.decision == "" and registry.get_hold(workspace, line) is None
    same = version.tags.get("detector_digest") == progress.release.digest
    wanted = same and (progress.by == "hand" or undecided)
    return (version, Decision(progress.by, progress.reason)) if wanted else None


def _take_over(
    workspace: Workspace, line: LineConfig, version: Version, decision: Decision, samples: Sequence[bytes], turn: Turn
) -> Promotion:
    """Deploy, then move the alias; a person's decision ends a hold.

    The version counts as decided only after that: if this is interrupted, the next run decides again
    instead of finding nothing to do.
    """
    from csflow.adapters.mlflow import registry

    deployed = deploy(workspace, line, version, samples, turn, decision)
    reason = f"{decision.reason}; canary: {deployed.note}" if deployed.note else decision.reason
    registry.set_version_tags(workspace, version.line, version.version, {"decision_reason": reason})
    registry.set_alias(workspace, line.line, version.version)
    _note(workspace, version, "promoted", reason)
    if decision.by == "hand":
        registry.set_hold(workspace, line.line, None)
    turn.record(None)
    say(f"promote: version {version.version} is champion, served at {deployed.endpoint.url}")
    return Promotion("promoted", reason, version.version, deployed.endpoint)


def _follow_champion(
    workspace: Workspace, line: LineConfig, outcome: str, reason: str, samples: Sequence[bytes], turn: Turn
) -> Promotion:
    """Serve the champion; without one nothing may be served."""
    from csflow.adapters import deployment
    from csflow.adapters.mlflow import registry

    champion = registry.find_champion(workspace, line.line)
    given_up = turn.progress
    if champion is None:
        stopped = deployment.stop(workspace, line.line)
        turn.record(None)
        note = "no champion: the endpoint was stopped" if stopped else "no champion, nothing served"
        return Promotion(outcome, reason or note, None, None)
    before = deployment.status(workspace, line.line)
    endpoint = deploy(workspace, line, champion, samples, turn).endpoint
    turn.record(None)
    if before is None:
        note = f"champion version {champion.version} was not served and is now"
    elif before == endpoint:
        note = f"champion version {champion.version} was served already"
    else:
        note = f"version {before.version} was served instead of champion version {champion.version}"
    if given_up is not None and given_up.release.version != str(champion.version):
        note += f"; the interrupted promotion of version {given_up.release.version} was given up"
    return Promotion(outcome, reason or note, champion.version, endpoint)


def _former_champion(workspace: Workspace, champion: Version, to: int | None) -> Version:
    from csflow.adapters.mlflow import registry

    others = [v for v in registry.versions(workspace, champion.line) if v.version != champion.version]
    former = [v for v in others if v.decision == "promoted" and (to is not None or v.version < champion.version)]
    if to is not None:
        registry.find_version(workspace, champion.line, to)
    chosen = [v for v in former if to in (None, v.version)]
    if chosen:
        return max(chosen, key=lambda v: v.version)
    known = ", ".join(str(v.version) for v in former) or "none"
    wanted = "no former champion" if to is None else f"no former champion of version {to}"
    raise RegistryError(
        f"Line {champion.line!r} is at version {champion.version} and has {wanted} to go back to. "
        f"Former champions: {known}. To serve any version by hand: csflow promote {champion.line}@VERSION"
    )


def _note(workspace: Workspace, version: Version, decision: str, reason: str) -> None:
    from csflow.adapters.mlflow import registry

    tags = {"decision": decision, "decision_reason": reason}
    registry.set_version_tags(workspace, version.line, version.version, tags)


def _one_at_a_time(workspace: Workspace, line: str) -> AbstractContextManager[Turn]:
    """A nightly retrain and a person must not switch the same line at once."""
    from csflow.adapters import deployment

    return deployment.turn(workspace, line)


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container may run under a number without a name
        return "unknown"


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
