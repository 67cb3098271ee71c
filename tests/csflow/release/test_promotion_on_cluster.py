"""Promotion, rollback and reconciliation on a cluster: the registry is in memory, the cluster is one over HTTP."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import cast

import pytest
import yaml

from csflow.adapters.deployment.cluster import ClusterEndpoints
from csflow.adapters.deployment.endpoints import Approval, CanaryProgress, Endpoint, Release
from csflow.adapters.deployment.local import LocalEndpoints
from csflow.adapters.mlflow.registry import Registry
from csflow.adapters.mlflow.tracking import Tracker
from csflow.adapters.mlflow.versions import Version
from csflow.config import CanaryStep, DataConfig, LineConfig, ServingConfig
from csflow.errors import DeployError
from csflow.release import deployment, promotion
from csflow.release.gate import GateDecision
from csflow.release.publication import Published
from csflow.runs.services import Services
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

    def publish(_: Services, version: Version) -> Published:
        return Published(Path(digest(version.version)), f"s3://store/detectors/tiles/{digest(version.version)}/")

    monkeypatch.setattr(deployment, "publish", publish)
    monkeypatch.setattr(deployment, "smoke_test", lambda *_: made.call("smoke_test"))
    for number in (1, 2, 3):
        made.add(number, detector_digest=digest(number))
    return made


@pytest.fixture
def services(world: World, workspace: Workspace) -> Services:
    return Services(workspace, Tracker(workspace), cast(Registry, world), ClusterEndpoints(workspace))


def served(services: Services) -> str | None:
    found = services.endpoints.status("tiles")
    return found.version if found else None


def promote(services: Services, number: int, decision: GateDecision = BETTER) -> promotion.Promotion:
    return promotion.promote(services, LINE, number, lambda: decision)


def left_behind(services: Services, number: int, *, by: str = "gate", percent: int = 10) -> None:
    """What a promotion that was killed leaves at the Lease (``test_canary.py`` really kills one)."""
    release = Release(str(number), digest(number), f"s3://store/detectors/tiles/{digest(number)}/")
    with services.endpoints.lock("tiles") as lock:
        lock.record(CanaryProgress(release, percent, datetime.now(UTC), Approval(by, "it was better")))


def interrupted(world: World, services: Services, number: int) -> None:
    """Promote, and be interrupted before the alias moves."""
    world.broken = "set_alias"
    with pytest.raises(KeyboardInterrupt):
        promote(services, number)
    world.broken = ""


def test_the_winner_is_served_before_it_is_champion_and_the_reason_says_what_was_seen(
    world: World, services: Services, cluster: Cluster
) -> None:
    promote(services, 1)
    cluster.counts[digest(2)[:16]] = (300, 0)
    done = promote(services, 2)
    assert (done.outcome, done.champion, served(services), world.champion) == ("promoted", 2, "2", 2)
    assert done.reason == "it is better; canary: 10 % for 0.002 min: 0 of 300 requests failed (at most 1.0%)"
    assert world.known[2].tags["decision_reason"] == done.reason
    assert cluster.service()["spec"]["predictor"]["model"]["storageUri"].endswith(f"/tiles/{digest(2)}/")


def test_a_failed_canary_moves_no_alias_and_decides_nothing(world: World, services: Services, cluster: Cluster) -> None:
    promote(services, 1)
    cluster.counts[digest(2)[:16]] = (50, 50)
    with pytest.raises(DeployError, match="Version 1 goes on"):
        promote(services, 2)
    assert (world.champion, served(services), world.known[2].decision) == (1, "1", "")
    assert promotion.reconcile(services, LINE).champion == 1


def test_the_loser_is_noted_and_the_champion_goes_on(world: World, services: Services) -> None:
    promote(services, 1)
    assert promote(services, 2, WORSE).outcome == "kept_worse"
    assert served(services) == "1"


def test_a_rollback_needs_no_canary_steps(world: World, services: Services, cluster: Cluster) -> None:
    promote(services, 1)
    promote(services, 2)
    cluster.history.clear()
    done = promotion.rollback(services, LINE, reason="it cried wolf")
    assert (done.champion, served(services), world.champion) == (1, "1", 1)
    assert world.hold is not None
    assert all(10 not in each.values() for each in cluster.history)


def test_an_interruption_before_the_alias_is_finished_by_reconcile(world: World, services: Services) -> None:
    promote(services, 1)
    interrupted(world, services, 2)
    assert (world.champion, served(services)) == (1, "2")
    done = promotion.reconcile(services, LINE)
    assert (done.outcome, done.champion, served(services), world.champion) == ("reconciled", 2, "2", 2)
    assert done.reason.startswith("its interrupted promotion was completed: it is better")
    assert promotion.reconcile(services, LINE).reason == "champion version 2 was served already"


def test_a_hold_since_then_ends_the_interrupted_promotion(world: World, services: Services) -> None:
    promote(services, 1)
    interrupted(world, services, 2)
    world.hold = {"reason": "stop", "user": "ada", "time": "now"}
    done = promotion.reconcile(services, LINE)
    assert (done.champion, served(services), world.champion) == (1, "1", 1)
    assert done.reason.endswith("the interrupted promotion of version 2 was given up")


@pytest.mark.parametrize("change", [{"decision": "kept_worse"}, {"detector_digest": "another"}])
def test_what_was_decided_otherwise_or_changed_is_not_promoted(
    world: World, services: Services, change: dict[str, str]
) -> None:
    promote(services, 1)
    left_behind(services, 2)
    world.set_version_tags("tiles", 2, change)
    assert promotion.reconcile(services, LINE).champion == 1
    assert served(services) == "1"


def test_a_version_that_is_gone_is_given_up(world: World, services: Services) -> None:
    promote(services, 1)
    left_behind(services, 2)
    del world.known[2]
    assert promotion.reconcile(services, LINE).champion == 1


def test_what_a_person_asked_for_is_finished_in_spite_of_a_hold(world: World, services: Services) -> None:
    promote(services, 1)
    world.hold = {"reason": "stop", "user": "ada", "time": "now"}
    left_behind(services, 2, by="hand")
    done = promotion.reconcile(services, LINE)
    assert (done.champion, world.champion, world.hold) == (2, 2, None)


def test_without_champion_nothing_is_served(world: World, services: Services, cluster: Cluster) -> None:
    promote(services, 1)
    world.known[1] = Version("tiles", 1, "run", datetime.now(UTC), (), {"decision": "promoted"})
    assert promotion.reconcile(services, LINE).reason == "no champion: the endpoint was stopped"
    assert ("inferenceservices", "tiles") not in cluster.objects


def test_a_store_that_a_cluster_cannot_read_is_told(
    world: World, services: Services, monkeypatch: pytest.MonkeyPatch
) -> None:
    def publish(_: Services, version: Version) -> Published:
        return Published(Path(digest(1)), f"file:///home/detectors/tiles/{digest(1)}/")

    monkeypatch.setattr(deployment, "publish", publish)
    with pytest.raises(DeployError, match="CSFLOW_STORE=s3://BUCKET/PREFIX"):
        promote(services, 1)


def test_the_champions_document_is_what_runs(world: World, services: Services, cluster: Cluster) -> None:
    promote(services, 1)
    promote(services, 2)
    live = cluster.service()
    printed = deployment.champion_document(services, LINE)
    assert printed["spec"] == live["spec"]
    assert yaml.safe_load(yaml.safe_dump(printed)) == printed


def serve(workspace: Workspace, directory: Path, version: str) -> str:
    """Address of a model server on this machine that serves a detector."""
    endpoints = LocalEndpoints(workspace)
    return endpoints.switch(endpoints.start_candidate("tiles", directory, version)).url


@pytest.mark.slow
def test_real_servers_behind_the_pods(
    world: World,
    services: Services,
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
            cluster.servers[digests[number][:16]] = serve(place, folder, said)

        def deploy(number: int) -> str:
            def trial(endpoint: Endpoint) -> None:
                deployment.smoke_test(services.endpoints, endpoint, folders[number], ())

            with services.endpoints.lock("tiles") as lock:
                approval = Approval("gate", "better")
                release = releases[number]
                done = services.endpoints.deploy(
                    LINE, release, folders[number], trial=trial, lock=lock, approval=approval
                )
                return done.note

        deploy(1)
        with pytest.raises(DeployError, match=r"(?s)Smoke test of .* failed.*version 3.*Version 1 goes on"):
            deploy(2)
        assert served(services) == "1"
        cluster.servers[digests[2][:16]] = serve(places[1], folders[2], "2")
        note = deploy(2)
        assert note.startswith("10 % for 0.002 min: 0 of 1 requests failed, too few to judge")
        assert served(services) == "2"
    finally:
        for place in places:
            LocalEndpoints(place).stop("tiles")
