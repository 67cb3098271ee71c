"""Plan the changes on the server after which every line runs at the times in its YAML.

Recurring runs cannot be edited. The name of each, ``csflow-LINE-DIGEST``, contains a digest of all its properties: when
it runs (in the YAML and in UTC), which compiled pipeline it runs and with which parameters. If a line's digest changes,
its recurring run is replaced: the new one is created disabled, the old one is disabled, the new one enabled, and the
old one deleted. Wherever this is interrupted, never do two of them start runs, the new one is on record, and the next
plan completes the change.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from csflow.system.files import sha256_json
from pipelines.cron import Clock

NOTE_MARK = "csflow schedule: "
"""Text with which the description of csflow's recurring runs begins; others are never touched."""

_NAME = re.compile(r"csflow-(?P<line>[a-z0-9](?:[-a-z0-9]{0,48}[a-z0-9])?)-(?P<digest>[0-9a-f]{12})")

ChangeKind = Literal["create", "replace", "enable", "disable", "delete", "keep"]


@dataclass(frozen=True)
class Wanted:
    """The recurring run that a line's YAML asks for.

    Attributes:
        line: The product line.
        clock: When it runs.
        version: Name of the compiled pipeline's version.
        parameters: Parameters of the pipeline.
        enabled: True if it is to start runs.
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
        """Return the digest of everything that cannot be edited."""
        about = [self.clock.local, self.clock.zone, self.clock.cron, self.version, dict(self.parameters), self.account]
        return sha256_json(about)[:12]

    @property
    def name(self) -> str:
        """Return the name of the recurring run."""
        return f"csflow-{self.line}-{self.digest}"

    @property
    def note(self) -> str:
        """Return the description that people read on the server and by which csflow recognises its recurring runs."""
        return (
            f"{NOTE_MARK}{self.clock.local} {self.clock.zone}\n"
            f"Made from the line's YAML; to change it, change that and run: csflow schedule {self.line}"
        )


@dataclass(frozen=True)
class Found:
    """A recurring run that csflow made.

    Attributes:
        id: Its id on the server.
        line: The product line.
        digest: See :attr:`Wanted.digest`.
        local: Cron line and time zone from which it was made.
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
        """Return the name of the recurring run."""
        return f"csflow-{self.line}-{self.digest}"

    @classmethod
    def parse(cls, id_: str, name: str, note: str, enabled: bool, cron: str) -> Found | None:
        """Read the properties of a recurring run on the server; return ``None`` if csflow did not make it."""
        match = _NAME.fullmatch(name)
        if match is None or not note.startswith(NOTE_MARK):
            return None
        local = note.removeprefix(NOTE_MARK).splitlines()[0] if note != NOTE_MARK else ""
        return cls(id_, match["line"], match["digest"], enabled, local, cron)


@dataclass(frozen=True)
class Step:
    """A request to the server: ``create`` makes the wanted recurring run, the others name one by its id.

    Attributes:
        verb: What to do.
        target: Id of the recurring run; ``None`` for the one that ``create`` made.
        enabled: True if ``create`` lets it start runs at once.
    """

    verb: Literal["create", "enable", "disable", "delete"]
    target: str | None = None
    enabled: bool = False


@dataclass(frozen=True)
class Change:
    """The change of one line's recurring runs.

    Attributes:
        kind: The change in one word.
        line: The product line.
        reason: Why it is necessary.
        steps: Requests, in an order in which two recurring runs are never enabled at once.
        wanted: The recurring run that its YAML asks for; ``None`` if there should be none.
        found: The present recurring runs.
    """

    kind: ChangeKind
    line: str
    reason: str = ""
    steps: tuple[Step, ...] = ()
    wanted: Wanted | None = None
    found: tuple[Found, ...] = ()


def plan_changes(
    wanted: Sequence[Wanted], found: Sequence[Found], *, lines: frozenset[str], everything: bool
) -> list[Change]:
    """Compare the wanted recurring runs with the present ones.

    Args:
        wanted: Recurring runs of all planned lines that have a schedule.
        found: All recurring runs that csflow made, of any line.
        lines: Names of the planned lines, with or without a schedule.
        everything: True if these are all existing lines; recurring runs of other lines are then deleted.

    Returns:
        One change per line, sorted by name, including those that change nothing.
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
    """Plan the change for a disabled schedule, which creates nothing and disables the present recurring runs."""
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
