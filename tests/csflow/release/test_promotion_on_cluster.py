"""Promotion, rollback and reconciliation on a cluster: the registry is in memory, the cluster is one over HTTP."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import pytest
import yaml

from csflow.adapters import deployment
from csflow.adapters.deployment import Progress, Release, local
from csflow.adapters.mlflow import registry
from csflow.adapters.mlflow.registry import Version
from csflow.config import CanaryStep, DataConfig, LineConfig, ServingConfig
from csflow.errors import DeployError
from csflow.release import promotion, rollout
from csflow.release.canary import Decision, Rollout
from csflow.release.gate import GateDecision
from csflow.release.publication import Published
from csflow.system.files import sha256_tree
from csflow.system.workspace import Workspace
from tests.csflow.kubernetes_server import Cluster
from tests.csflow.release.test_promotion import World

BETTER = GateDecision("promoted", "it is better")
WORSE = GateDecision("kept_worse", "it is worse")
LINE = LineConfig(
    line="tiles",
    data=DataConfig(path="data/tiles"),
    serving=ServingConfig(canary=(CanaryStep(percent=10, minutes=0.002),)),
)


def digest(number: int) -> str:
    return f"{number:064d}"[::-1]


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return Workspace(tmp_path / "home")


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch, cluster: Cluster) -> World:
    made = World()
    for name in ("versions", "find_version", "find_champion", "set_alias", "set_version_tags", "get_hold", "set_hold"):
        monkeypatch.setattr(registry, name, getattr(made, name))

    def publish(_: Workspace, version: Version) -> Published:
        return Published(Path(digest(version.version)), f"s3://store/detectors/tiles/{digest(version.version)}/")

    monkeypatch.setattr(rollout, "publish", publish)
    monkeypatch.setattr(rollout, "smoke_test", made.smoke_test)
    for number in (1, 2, 3):
        made.add(number, detector_digest=digest(number))
    return made


def served(workspace: Workspace) -> str | None:
    found = deployment.status(workspace, "tiles")
    return found.version if found else None


def promote(workspace: Workspace, number: int, decision: GateDecision = BETTER) -> promotion.Promotion:
    return promotion.promote(workspace, LINE, number, lambda: decision)


def left_behind(workspace: Workspace, number: int, *, by: str = "gate", percent: int = 10) -> None:
    """What a promotion that was killed leaves at the Lease (``test_canary.py`` really kills one)."""
    release = Release(str(number), digest(number), f"s3://store/detectors/tiles/{digest(number)}/")
    with deployment.turn(workspace, "tiles") as turn:
        turn.record(Progress(release, percent, datetime.now(UTC), by, "it was better"))


def interrupted(world: World, workspace: Workspace, number: int) -> None:
    """Promote, and be interrupted before the alias moves."""
    world.broken = "set_alias"
    with pytest.raises(KeyboardInterrupt):
        promote(workspace, number)
    world.broken = ""


def test_the_winner_is_served_before_it_is_champion_and_the_reason_says_what_was_seen(
    world: World, workspace: Workspace, cluster: Cluster
) -> None:
    promote(workspace, 1)
    cluster.counts[digest(2)[:16]] = (300, 0)
    done = promote(workspace, 2)
    assert (done.outcome, done.champion, served(workspace), world.champion) == ("promoted", 2, "2", 2)
    assert done.reason == "it is better; canary: 10 % for 0.002 min: 0 of 300 requests failed (at most 1.0%)"
    assert world.known[2].tags["decision_reason"] == done.reason
    assert cluster.service()["spec"]["predictor"]["model"]["storageUri"].endswith(f"/tiles/{digest(2)}/")


def test_a_failed_canary_moves_no_alias_and_decides_nothing(
    world: World, workspace: Workspace, cluster: Cluster
) -> None:
    promote(workspace, 1)
    cluster.counts[digest(2)[:16]] = (50, 50)
    with pytest.raises(DeployError, match="Version 1 goes on"):
        promote(workspace, 2)
    assert (world.champion, served(workspace), world.known[2].decision) == (1, "1", "")
    assert promotion.reconcile(workspace, LINE).champion == 1


def test_the_loser_is_noted_and_the_champion_goes_on(world: World, workspace: Workspace) -> None:
    promote(workspace, 1)
    assert promote(workspace, 2, WORSE).outcome == "kept_worse"
    assert served(workspace) == "1"


def test_a_rollback_needs_no_canary_steps(world: World, workspace: Workspace, cluster: Cluster) -> None:
    promote(workspace, 1)
    promote(workspace, 2)
    cluster.history.clear()
    done = promotion.rollback(workspace, LINE, reason="it cried wolf")
    assert (done.champion, served(workspace), world.champion) == (1, "1", 1)
    assert world.hold is not None
    assert all(10 not in each.values() for each in cluster.history)


def test_an_interruption_before_the_alias_is_finished_by_reconcile(world: World, workspace: Workspace) -> None:
    promote(workspace, 1)
    interrupted(world, workspace, 2)
    assert (world.champion, served(workspace)) == (1, "2")
    done = promotion.reconcile(workspace, LINE)
    assert (done.outcome, done.champion, served(workspace), world.champion) == ("reconciled", 2, "2", 2)
    assert done.reason.startswith("its promotion was interrupted and went on: it is better")
    assert promotion.reconcile(workspace, LINE).reason == "champion version 2 was served already"


def test_a_hold_since_then_ends_the_interrupted_promotion(world: World, workspace: Workspace) -> None:
    promote(workspace, 1)
    interrupted(world, workspace, 2)
    world.hold = {"reason": "stop", "user": "ada", "time": "now"}
    done = promotion.reconcile(workspace, LINE)
    assert (done.champion, served(workspace), world.champion) == (1, "1", 1)
    assert done.reason.endswith("the interrupted promotion of version 2 was given up")


@pytest.mark.parametrize("change", [{"decision": "kept_worse"}, {"detector_digest": "another"}])
def test_what_was_decided_otherwise_or_changed_is_not_promoted(
    world: World, workspace: Workspace, change: dict[str, str]
) -> None:
    promote(workspace, 1)
    left_behind(workspace, 2)
    world.set_version_tags(workspace, "tiles", 2, change)
    assert promotion.reconcile(workspace, LINE).champion == 1
    assert served(workspace) == "1"


def test_a_version_that_is_gone_is_given_up(world: World, workspace: Workspace) -> None:
    promote(workspace, 1)
    left_behind(workspace, 2)
    del world.known[2]
    assert promotion.reconcile(workspace, LINE).champion == 1


def test_what_a_person_asked_for_is_finished_in_spite_of_a_hold(world: World, workspace: Workspace) -> None:
    promote(workspace, 1)
    world.hold = {"reason": "stop", "user": "ada", "time": "now"}
    left_behind(workspace, 2, by="hand")
    done = promotion.reconcile(workspace, LINE)
    assert (done.champion, world.champion, world.hold) == (2, 2, None)


def test_without_champion_nothing_is_served(world: World, workspace: Workspace, cluster: Cluster) -> None:
    promote(workspace, 1)
    world.known[1] = Version("tiles", 1, "run", datetime.now(UTC), (), {"decision": "promoted"})
    assert promotion.reconcile(workspace, LINE).reason == "no champion: the endpoint was stopped"
    assert ("inferenceservices", "tiles") not in cluster.objects


def test_a_store_that_a_cluster_cannot_read_is_told(
    world: World, workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    def publish(_: Workspace, version: Version) -> Published:
        return Published(Path(digest(1)), f"file:///home/detectors/tiles/{digest(1)}/")

    monkeypatch.setattr(rollout, "publish", publish)
    with pytest.raises(DeployError, match="CSFLOW_STORE=s3://BUCKET/PREFIX"):
        promote(workspace, 1)


def test_the_champions_document_is_what_runs(world: World, workspace: Workspace, cluster: Cluster) -> None:
    promote(workspace, 1)
    promote(workspace, 2)
    live = cluster.service()
    printed = rollout.champion_document(workspace, LINE)
    assert printed["spec"] == live["spec"]
    assert yaml.safe_load(yaml.safe_dump(printed)) == printed


@pytest.mark.slow
def test_real_servers_behind_the_pods(
    world: World,
    workspace: Workspace,
    cluster: Cluster,
    make_detector: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    """The pods are csflow's own model servers: the smoke test and the counters are real."""
    monkeypatch.undo()  # the smoke test and the publishing of this module's other tests
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "kubeconfig"))
    monkeypatch.setenv("CSFLOW_ENDPOINTS", "kubernetes")
    folders = {number: make_detector("tiles", seed=number) for number in (1, 2)}
    digests = {number: sha256_tree(folder) for number, folder in folders.items()}
    releases = {n: Release(str(n), digests[n], f"s3://store/detectors/tiles/{digests[n]}/") for n in folders}
    places = [Workspace(tmp_path / str(number)) for number in folders]
    try:
        for place, (number, folder) in zip(places, folders.items(), strict=True):
            # Version 2 claims to be 3 at first: the smoke test has to notice.
            said = "3" if number == 2 else "1"
            cluster.servers[digests[number][:16]] = local.ensure(place, "tiles", folder, said).url

        def deploy(number: int) -> str:
            def trial(endpoint: deployment.Endpoint) -> None:
                rollout.smoke_test(endpoint, folders[number], ())

            with deployment.turn(workspace, "tiles") as turn:
                service = deployment.service(LINE, turn)
                decision = Decision("gate", "better")
                return Rollout(service, turn, LINE, releases[number], trial, decision).run()

        deploy(1)
        with pytest.raises(DeployError, match=r"(?s)Smoke test of .* failed.*version 3.*Version 1 goes on"):
            deploy(2)
        assert served(workspace) == "1"
        cluster.servers[digests[2][:16]] = local.ensure(places[1], "tiles", folders[2], "2").url
        note = deploy(2)
        assert note.startswith("10 % for 0.002 min: 0 of 1 requests failed, too few to judge")
        assert served(workspace) == "2"
    finally:
        for place in places:
            local.stop(place, "tiles")
