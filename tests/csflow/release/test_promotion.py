"""Promotion, rollback, hold and reconciliation, interrupted at every point.

Registry and endpoint are small models in memory here; ``test_lifecycle.py`` does it all for real.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest

from csflow.adapters.deployment import local
from csflow.adapters.deployment.endpoints import Approval, EndpointLock
from csflow.adapters.deployment.local import Candidate, LocalEndpoints
from csflow.adapters.deployment.local_process import LocalEndpoint
from csflow.adapters.mlflow.registry import Registry
from csflow.adapters.mlflow.tracking import Tracker
from csflow.adapters.mlflow.versions import Version
from csflow.config import DataConfig, GateConfig, LineConfig
from csflow.errors import DeployError, RegistryError, UsageError
from csflow.release import deployment, promotion
from csflow.release.gate import GateDecision
from csflow.runs.services import Services
from csflow.system.workspace import Workspace

LINE = LineConfig(line="tiles", data=DataConfig(path="data/tiles"))
WORSE = GateDecision("kept_worse", "it is worse")
BETTER = GateDecision("promoted", "it is better")


class World:
    """A registry and an endpoint in memory, and a switch to fail at a named call."""

    def __init__(self) -> None:
        self.known: dict[int, Version] = {}
        self.hold: dict[str, str] | None = None
        self.endpoint: LocalEndpoint | None = None
        self.candidates: list[Candidate] = []
        self.broken = ""
        self.calls: list[str] = []

    def call(self, name: str) -> None:
        self.calls.append(name)
        if name == self.broken:
            raise KeyboardInterrupt(name)

    def add(self, number: int, **tags: str) -> None:
        self.known[number] = Version(
            line="tiles",
            version=number,
            run_id="run",
            created=datetime.now(UTC),
            tags={"detector_digest": f"d{number}"} | tags,
        )

    @property
    def champion(self) -> int | None:
        return next((v.version for v in self.known.values() if v.is_champion), None)

    @property
    def served(self) -> int | None:
        return int(self.endpoint.version) if self.endpoint else None

    # what promotion uses of the registry
    def versions(self, line: str) -> list[Version]:
        return sorted(self.known.values(), key=lambda v: v.version, reverse=True)

    def find_version(self, line: str, which: str | int = "champion") -> Version:
        for version in self.known.values():
            if which in (version.version, *version.aliases):
                return version
        raise RegistryError(f"no version {which}")

    def find_champion(self, line: str) -> Version | None:
        return None if self.champion is None else self.known[self.champion]

    def set_alias(self, line: str, number: int) -> None:
        self.call("set_alias")
        self.known = {n: replace(v, aliases=("champion",) if n == number else ()) for n, v in self.known.items()}

    def set_version_tags(self, line: str, number: int, tags: Mapping[str, object]) -> None:
        self.call("set_version_tags")
        version = self.known[number]
        self.known[number] = replace(version, tags={**version.tags, **{k: str(v) for k, v in tags.items()}})

    def get_hold(self, line: str) -> dict[str, str] | None:
        return self.hold

    def set_hold(self, line: str, hold: dict[str, str] | None) -> None:
        self.call("set_hold")
        self.hold = hold

    def download_detector(self, line: str, which: int, parent: Path) -> Path:
        return parent / f"d{which}"


@dataclass(frozen=True)
class WorldEndpoints(LocalEndpoints):
    """Local endpoints without processes."""

    world: World

    def status(self, line: str) -> LocalEndpoint | None:
        return self.world.endpoint

    def start_candidate(
        self, line: str, directory: Path, version: str, *, port: int = 0, deadline: float = 1.0
    ) -> Candidate:
        self.world.call("start_candidate")
        endpoint = LocalEndpoint(line, f"http://h:{version}", "h:1", int(version), "s", directory.name, version, "log")
        self.world.candidates.append(Candidate(endpoint, directory, port))
        return self.world.candidates[-1]

    def switch(self, candidate: Candidate) -> LocalEndpoint:
        self.world.call("switch")
        self.world.candidates.remove(candidate)
        self.world.endpoint = candidate.endpoint
        return candidate.endpoint

    def discard(self, candidate: Candidate) -> None:
        self.world.candidates.remove(candidate)

    def stop(self, line: str) -> bool:
        found, self.world.endpoint = self.world.endpoint is not None, None
        return found

    def sweep(self, line: str) -> None:
        pass


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return Workspace(tmp_path)


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> World:
    made = World()
    monkeypatch.setattr(deployment, "smoke_test", lambda *_: made.call("smoke_test"))
    monkeypatch.setattr(local, "healthy", lambda _: True)
    made.add(1)
    return made


@pytest.fixture
def services(world: World, workspace: Workspace) -> Services:
    registry = cast(Registry, world)
    return Services(workspace, Tracker(workspace), registry, WorldEndpoints(workspace, world))


def never() -> GateDecision:
    raise AssertionError("the gate must not be asked again")


def promoted(world: World, services: Services, number: int) -> None:
    if number not in world.known:
        world.add(number)
    assert promotion.promote(services, LINE, number, lambda: BETTER).outcome == "promoted"


def test_the_first_version_is_served_before_the_alias_moves(world: World, services: Services) -> None:
    done = promotion.promote(services, LINE, 1, lambda: BETTER)
    assert (done.outcome, done.champion, done.reason) == ("promoted", 1, "it is better")
    assert done.endpoint == world.endpoint
    assert (world.champion, world.served) == (1, 1)
    assert world.known[1].tags["decision"] == "promoted"
    order = [name for name in world.calls if name != "set_version_tags"]
    assert order == ["start_candidate", "smoke_test", "switch", "set_alias"]


def test_a_repeated_promotion_changes_nothing(world: World, services: Services) -> None:
    promoted(world, services, 1)
    world.calls.clear()
    done = promotion.promote(services, LINE, 1, never)
    assert (done.outcome, done.reason) == ("promoted", "it is better")
    assert "start_candidate" not in world.calls


def test_a_worse_version_leaves_the_champion_serving(world: World, services: Services) -> None:
    promoted(world, services, 1)
    world.add(2)
    done = promotion.promote(services, LINE, 2, lambda: WORSE)
    assert (done.outcome, done.champion, world.served) == ("kept_worse", 1, 1)
    assert world.known[2].tags["decision_reason"] == "it is worse"
    again = promotion.promote(services, LINE, 2, never)
    assert again.outcome == "kept_worse"


def test_a_line_whose_first_version_is_kept_serves_nothing(world: World, services: Services) -> None:
    done = promotion.promote(services, LINE, 1, lambda: WORSE)
    assert (done.champion, done.endpoint, world.champion) == (None, None, None)


def test_a_version_that_was_champion_before_is_not_promoted_by_a_repeated_step(
    world: World, services: Services
) -> None:
    promoted(world, services, 1)
    promoted(world, services, 2)
    done = promotion.promote(services, LINE, 1, never)
    assert (done.outcome, done.champion, world.served) == ("unchanged", 2, 2)
    assert world.known[1].tags["decision"] == "promoted"


def test_a_failed_smoke_test_leaves_everything_as_it_was(world: World, services: Services) -> None:
    promoted(world, services, 1)
    world.add(2)
    world.broken = "smoke_test"
    with pytest.raises(KeyboardInterrupt):
        promotion.promote(services, LINE, 2, lambda: BETTER)
    assert (world.champion, world.served, world.candidates) == (1, 1, [])
    assert not world.known[2].decision


@pytest.mark.parametrize("broken", ["start_candidate", "smoke_test", "switch", "set_version_tags", "set_alias"])
def test_an_interrupted_promotion_is_undone_by_reconcile_and_finished_by_the_next_run(
    world: World, services: Services, broken: str
) -> None:
    promoted(world, services, 1)
    world.add(2)
    world.broken = broken
    with pytest.raises(KeyboardInterrupt):
        promotion.promote(services, LINE, 2, lambda: BETTER)
    assert world.champion == 1
    assert not world.known[2].decision  # or the next run would find nothing to decide
    world.broken = ""
    done = promotion.reconcile(services, LINE)
    assert (done.champion, world.served) == (1, 1)
    promoted(world, services, 2)
    assert (world.champion, world.served) == (2, 2)


def test_reconcile_serves_the_champion_when_nothing_does(world: World, services: Services) -> None:
    promoted(world, services, 1)
    world.endpoint = None
    done = promotion.reconcile(services, LINE)
    assert world.served == 1
    assert "was not served and is now" in done.reason
    assert "was served already" in promotion.reconcile(services, LINE).reason


def test_reconcile_stops_what_serves_without_a_champion(world: World, services: Services) -> None:
    world.broken = "set_alias"
    with pytest.raises(KeyboardInterrupt):
        promotion.promote(services, LINE, 1, lambda: BETTER)
    assert world.served == 1
    done = promotion.reconcile(services, LINE)
    assert (done.champion, done.endpoint, world.served) == (None, None, None)
    assert "stopped" in done.reason


def test_a_rollback_serves_the_last_former_champion_and_holds_it(world: World, services: Services) -> None:
    promoted(world, services, 1)
    promoted(world, services, 2)
    world.add(3)
    promotion.promote(services, LINE, 3, lambda: WORSE)
    promoted(world, services, 4)
    done = promotion.rollback(services, LINE, reason="false alarms on Monday")
    assert (done.outcome, done.champion, world.champion, world.served) == ("rolled_back", 2, 2, 2)
    assert world.hold is not None
    assert world.hold["reason"] == "false alarms on Monday"
    assert world.hold["rolled_back"] == "4"
    assert world.hold["user"]
    assert world.hold["time"]
    assert world.known[4].decision == "rolled_back"
    assert promotion.rollback(services, LINE).champion == 1


def test_a_held_line_keeps_its_champion_whatever_the_gate_says(world: World, services: Services) -> None:
    promoted(world, services, 1)
    promoted(world, services, 2)
    promotion.rollback(services, LINE, reason="scratches missed")
    world.add(3)
    done = promotion.promote(services, LINE, 3, lambda: BETTER)
    assert (done.outcome, done.champion, world.served) == ("held", 1, 1)
    assert "scratches missed" in done.reason
    assert "would have said promoted: it is better" in done.reason
    released = promotion.release_hold(services, "tiles")
    assert released["reason"] == "scratches missed"
    with pytest.raises(UsageError, match="no hold"):
        promotion.release_hold(services, "tiles")
    assert promotion.promote(services, LINE, 3, lambda: BETTER).outcome == "promoted", "it is judged again"
    promoted(world, services, 4)


def test_other_settings_of_the_gate_judge_a_kept_version_again(world: World, services: Services) -> None:
    promoted(world, services, 1)
    world.add(2)
    assert promotion.promote(services, LINE, 2, lambda: WORSE).outcome == "kept_worse"
    assert promotion.promote(services, LINE, 2, never).outcome == "kept_worse"
    generous = LINE.model_copy(update={"gate": GateConfig(margin=0.05)})
    assert promotion.promote(services, generous, 2, lambda: BETTER).outcome == "promoted"


@pytest.mark.parametrize(("margin", "wanted"), [(0.05, True), (0.01, False)])
def test_a_killed_canary_goes_on_if_other_settings_let_it_be_judged_again(
    world: World, services: Services, margin: float, wanted: bool
) -> None:
    promoted(world, services, 1)
    world.add(2)
    promotion.promote(services, LINE, 2, lambda: WORSE)
    progress = SimpleNamespace(
        release=SimpleNamespace(version="2", digest="d2"), approval=Approval("gate", "it is better")
    )
    lock = cast(EndpointLock, SimpleNamespace(progress=progress))
    line = LINE.model_copy(update={"gate": GateConfig(margin=margin)})
    assert (promotion._still_wanted(services, line, lock) is not None) is wanted


def test_a_person_promotes_past_gate_and_hold(world: World, services: Services) -> None:
    promoted(world, services, 1)
    promoted(world, services, 2)
    promotion.rollback(services, LINE)
    done = promotion.promote_by_hand(services, LINE, 2)
    assert (done.champion, world.champion, world.served, world.hold) == (2, 2, 2, None)
    assert world.known[2].decision == "promoted"
    assert "by hand" in world.known[2].tags["decision_reason"]


def test_a_rollback_goes_back_in_time_not_in_numbers(world: World, services: Services) -> None:
    for number in (1, 2, 3, 4, 5):
        promoted(world, services, number)
    promotion.promote_by_hand(services, LINE, 2)
    assert [promotion.rollback(services, LINE).champion for _ in range(4)] == [5, 4, 3, 1]


def test_a_version_that_was_rolled_back_to_is_the_last_one_before_its_successor(
    world: World, services: Services
) -> None:
    for number in (1, 2, 3, 4):
        promoted(world, services, number)
    promotion.rollback(services, LINE, 2)
    promotion.release_hold(services, "tiles")
    promoted(world, services, 5)
    assert [promotion.rollback(services, LINE).champion for _ in range(2)] == [2, 3]


def test_versions_of_older_releases_go_back_by_number(world: World, services: Services) -> None:
    for number in (1, 2, 3):
        world.add(number, decision="promoted")
    world.set_alias("tiles", 3)
    promoted(world, services, 4)
    assert [promotion.rollback(services, LINE).champion for _ in range(2)] == [3, 2]


def test_a_rollback_goes_to_the_version_asked_for(world: World, services: Services) -> None:
    for number in (1, 2, 3):
        promoted(world, services, number)
    assert promotion.rollback(services, LINE, 1).champion == 1


def test_a_rollback_without_target_says_what_there_is(world: World, services: Services) -> None:
    with pytest.raises(RegistryError, match="champion"):
        promotion.rollback(services, LINE)
    promoted(world, services, 1)
    with pytest.raises(RegistryError, match=r"no former champion to go back to\. Former champions: none"):
        promotion.rollback(services, LINE)
    world.add(2)
    promotion.promote(services, LINE, 2, lambda: WORSE)
    promoted(world, services, 3)
    with pytest.raises(RegistryError, match=r"no former champion of version 2 .*Former champions: 1"):
        promotion.rollback(services, LINE, 2)
    with pytest.raises(RegistryError, match="no version 9"):
        promotion.rollback(services, LINE, 9)


@pytest.mark.parametrize("broken", ["smoke_test", "switch"])
def test_a_failed_rollback_holds_nothing(world: World, services: Services, broken: str) -> None:
    promoted(world, services, 1)
    promoted(world, services, 2)
    world.broken = broken
    with pytest.raises(KeyboardInterrupt):
        promotion.rollback(services, LINE)
    assert (world.champion, world.served, world.hold) == (2, 2, None)


def test_a_rollback_interrupted_before_the_alias_is_undone_by_reconcile(world: World, services: Services) -> None:
    promoted(world, services, 1)
    promoted(world, services, 2)
    world.broken = "set_alias"
    with pytest.raises(KeyboardInterrupt):
        promotion.rollback(services, LINE)
    assert (world.champion, world.served) == (2, 1)
    promotion.reconcile(services, LINE)
    assert (world.champion, world.served) == (2, 2)
    assert world.known[2].decision == "promoted"


def test_files_that_are_not_those_registered_are_not_served(world: World, services: Services) -> None:
    world.add(1, detector_digest="something else")
    with pytest.raises(RegistryError, match="Do not serve it"):
        promotion.promote(services, LINE, 1, lambda: BETTER)
    assert world.served is None


def test_an_unknown_version_is_refused(world: World, services: Services) -> None:
    with pytest.raises(RegistryError, match="no version 7"):
        promotion.promote(services, LINE, 7, never)


def test_an_error_of_the_deployment_reaches_the_caller(
    world: World, services: Services, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> Candidate:
        raise DeployError("Port 80 is in use")

    monkeypatch.setattr(WorldEndpoints, "start_candidate", refuse)
    with pytest.raises(DeployError, match="Port 80"):
        promotion.promote(services, LINE, 1, lambda: BETTER)
    assert world.champion is None
