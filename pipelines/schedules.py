"""What has to change on the server so that every line runs when its YAML says.

Recurring runs cannot be edited. Each has a name that says all it stands for, ``csflow-LINE-DIGEST``: when it runs (in
the YAML and in UTC), which compiled pipeline and with which parameters. A line with another digest than the one found
is replaced: the new one is created but disabled, the old one disabled, the new one enabled, the old one deleted. Cut
off anywhere in that, no two of them ever start runs, the new one is on record, and planning again does what is left.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from csflow.system.files import sha256_json
from pipelines.cron import Clock

MARK = "csflow schedule: "
"""What the description of a recurring run made by csflow begins with; others are never touched."""

_NAME = re.compile(r"csflow-(?P<line>[a-z0-9](?:[-a-z0-9]{0,48}[a-z0-9])?)-(?P<digest>[0-9a-f]{12})")

Kind = Literal["create", "replace", "enable", "disable", "delete", "keep"]


@dataclass(frozen=True)
class Wanted:
    """The recurring run that a line's YAML asks for.

    Attributes:
        line: The product line.
        clock: When it runs.
        version: Name of the compiled pipeline's version.
        parameters: Of the pipeline.
        enabled: Whether it is to start runs.
        account: Service account of its pods; ``None`` for the server's default.
    """

    line: str
    clock: Clock
    version: str
    parameters: Mapping[str, Any]
    enabled: bool = True
    account: str | None = None

    @property
    def digest(self) -> str:
        """Of all that cannot be edited."""
        about = [self.clock.local, self.clock.zone, self.clock.cron, self.version, dict(self.parameters), self.account]
        return sha256_json(about)[:12]

    @property
    def name(self) -> str:
        """Of the recurring run."""
        return f"csflow-{self.line}-{self.digest}"

    @property
    def note(self) -> str:
        """For people who look at the server, and for telling ours from others."""
        return (
            f"{MARK}{self.clock.local} {self.clock.zone}\n"
            f"Made from the line's YAML; to change it, change that and run: csflow schedule {self.line}"
        )


@dataclass(frozen=True)
class Found:
    """A recurring run that csflow made.

    Attributes:
        id: On the server.
        line: The product line.
        digest: See :attr:`Wanted.digest`.
        local: Cron line and zone it was made from.
        cron: Six fields in UTC.
    """

    id: str
    line: str
    digest: str
    enabled: bool
    local: str
    cron: str

    @property
    def name(self) -> str:
        """Of the recurring run."""
        return f"csflow-{self.line}-{self.digest}"

    @classmethod
    def parse(cls, id_: str, name: str, note: str, enabled: bool, cron: str) -> Found | None:
        """What a recurring run on the server is; ``None`` if csflow did not make it."""
        match = _NAME.fullmatch(name)
        if match is None or not note.startswith(MARK):
            return None
        local = note.removeprefix(MARK).splitlines()[0] if note != MARK else ""
        return cls(id_, match["line"], match["digest"], enabled, local, cron)


@dataclass(frozen=True)
class Step:
    """One request to the server: ``create`` makes what is wanted, the others name a recurring run by its id.

    Attributes:
        verb: What to do.
        target: Id of the recurring run; ``None`` for the one that ``create`` made.
        enabled: Whether ``create`` lets it start runs at once.
    """

    verb: Literal["create", "enable", "disable", "delete"]
    target: str | None = None
    enabled: bool = False


@dataclass(frozen=True)
class Change:
    """What happens to one line.

    Attributes:
        kind: In one word.
        line: The product line.
        reason: Why.
        steps: Requests, in the order that leaves no two enabled.
        wanted: What its YAML asks for; ``None`` if there is nothing to be.
        found: What is there now.
    """

    kind: Kind
    line: str
    reason: str = ""
    steps: tuple[Step, ...] = ()
    wanted: Wanted | None = None
    found: tuple[Found, ...] = ()


def plan_changes(
    wanted: Sequence[Wanted], found: Sequence[Found], *, lines: frozenset[str], everything: bool
) -> list[Change]:
    """Compare what is wanted with what is there.

    Args:
        wanted: Of every line that is planned and has a schedule.
        found: All recurring runs that csflow made, of whatever line.
        lines: Names of the lines that are planned, with a schedule or without.
        everything: Whether these are all lines there are, so that what belongs to no line is deleted.

    Returns:
        One change a line, by name; those that keep what is there included.
    """
    asked = {each.line: each for each in wanted}
    there: dict[str, list[Found]] = {}
    for each in found:
        if everything or each.line in lines:
            there.setdefault(each.line, []).append(each)
    changes = []
    for line in sorted(lines | set(there)):
        present = tuple(there.get(line, ()))
        want = asked.get(line)
        if want is not None and want.enabled:
            changes.append(_in_force(want, present))
        elif want is not None:
            changes.append(_out_of_force(want, present))
        elif present:
            reason = "its YAML has no schedule" if line in lines else "there is no such line any more"
            steps = tuple(Step("delete", each.id) for each in present)
            changes.append(Change("delete", line, reason, steps, found=present))
    return changes


def _in_force(wanted: Wanted, found: tuple[Found, ...]) -> Change:
    same = next((each for each in sorted(found, key=lambda f: not f.enabled) if each.digest == wanted.digest), None)
    others = tuple(each for each in found if each is not same)
    deleted = tuple(Step("delete", each.id) for each in others)
    disabled = tuple(Step("disable", each.id) for each in others if each.enabled)
    if same is None and not others:
        return Change("create", wanted.line, "", (Step("create", enabled=True),), wanted)
    if same is None:
        steps = (Step("create"), *disabled, Step("enable"), *deleted)
        return Change("replace", wanted.line, _difference(wanted, others), steps, wanted, found)
    enabled = () if same.enabled else (Step("enable", same.id),)
    steps = (*disabled, *enabled, *deleted)
    if others:
        return Change("replace", wanted.line, "finishes what was cut off", steps, wanted, found)
    return Change("enable" if enabled else "keep", wanted.line, "", steps, wanted, found)


def _out_of_force(wanted: Wanted, found: tuple[Found, ...]) -> Change:
    """A disabled schedule creates nothing: what is there waits, and is replaced if it no longer fits when enabled."""
    steps = tuple(Step("disable", each.id) for each in found if each.enabled)
    return Change("disable" if steps else "keep", wanted.line, "schedule.enabled is false", steps, wanted, found)


def _difference(wanted: Wanted, found: tuple[Found, ...]) -> str:
    former = next((each for each in found if each.enabled), found[0])
    local = f"{wanted.clock.local} {wanted.clock.zone}"
    if former.local != local:
        return f"was {former.local}"
    if former.cron != wanted.clock.cron:
        return f"the zone's clock changed; was {former.cron} in UTC"
    return "configuration, image or code changed"
