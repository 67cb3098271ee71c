"""Promotions on a cluster: canary steps over HTTP, every way they can end, and a process killed between two."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path

import pytest

from csflow.adapters.deployment import lease
from csflow.adapters.deployment.canary import Rollout, judge_canary
from csflow.adapters.deployment.cluster import ClusterEndpoints
from csflow.adapters.deployment.endpoints import Approval, Endpoint, Release
from csflow.adapters.deployment.inference_service import DesiredService, observed
from csflow.adapters.deployment.pods import RequestCounts
from csflow.adapters.deployment.service import LineService
from csflow.config import CanaryStep, DataConfig, LineConfig, ServingConfig
from csflow.errors import DeployError
from csflow.system.workspace import Workspace
from tests.csflow.kubernetes_server import NAMESPACE, Cluster

ONE = Release("1", "1" * 64, f"s3://store/detectors/tiles/{'1' * 64}/")
TWO = Release("2", "2" * 64, f"s3://store/detectors/tiles/{'2' * 64}/")
THREE = Release("3", "3" * 64, f"s3://store/detectors/tiles/{'3' * 64}/")
BETTER = Approval("gate", "it is better")
STEPS = ((10, 0.002), (50, 0.002))
MODES = pytest.mark.parametrize("mode", ["standard", "knative"])


def endpoints() -> ClusterEndpoints:
    return ClusterEndpoints(Workspace(Path("nowhere")))


def line(mode: str = "standard", steps: tuple[tuple[int, float], ...] = STEPS, replicas: int = 1) -> LineConfig:
    canary = tuple(CanaryStep(percent=percent, minutes=minutes) for percent, minutes in steps)
    serving = ServingConfig.model_validate({"mode": mode, "canary": canary, "replicas": replicas})
    return LineConfig(line="tiles", data=DataConfig(path="data/tiles"), serving=serving)


def roll_out(line: LineConfig, release: Release, approval: Approval | None = BETTER, trial: object = None) -> str:
    """Promote as ``deploy`` does; the trial asks the release's own pods."""

    def ask(endpoint: Endpoint) -> None:
        assert endpoints().score(endpoint, [b"x"])[0]["version"] == endpoint.version

    with endpoints().lock("tiles") as lock:
        note = Rollout(endpoints().service(line, lock), lock, line, release, trial or ask, approval).run()  # type: ignore[arg-type]
        lock.record(None)
    return note


def served() -> tuple[str, str]:
    """Version that serves, and the one that is tried beside it."""
    seen = endpoints()._found("tiles")
    assert seen is not None
    wanted = observed(seen).wanted
    assert wanted is not None
    return wanted.champion.version, wanted.challenger.version if wanted.challenger else ""


def shares(cluster: Cluster) -> list[dict[str, int]]:
    """The history of shares with versions instead of addresses."""
    names = {release.uri: release.version for release in (ONE, TWO, THREE)}
    return [{names[uri]: share for uri, share in each.items()} for each in cluster.history]


# --- the way through ---------------------------------------------------------------------------------------------


@MODES
def test_the_first_detector_of_a_line_serves_at_once(cluster: Cluster, mode: str) -> None:
    assert roll_out(line(mode), ONE) == ""
    assert served() == ("1", "")
    assert shares(cluster)[-1] == {"1": 100}


@MODES
def test_the_challenger_gets_more_and_more(cluster: Cluster, mode: str) -> None:
    roll_out(line(mode), ONE)
    cluster.counts[TWO.digest[:16]] = (200, 1)
    note = roll_out(line(mode), TWO)
    assert note == (
        "10 % for 0.002 min: 1 of 201 requests failed (at most 1.0%); "
        "50 % for 0.002 min: 1 of 201 requests failed (at most 1.0%)"
    )
    assert served() == ("2", "")
    steps = [each["2"] for each in shares(cluster) if "2" in each]
    assert steps == ([0, 10, 50, 100, 100] if mode == "standard" else [0, 10, 50, 100])
    predictor = cluster.service()["spec"]["predictor"]
    assert predictor["annotations"]["csflow/former-digest"] == ONE.digest
    assert "canaryTrafficPercent" not in predictor
    assert "canary" not in cluster.service()["spec"]


@MODES
def test_the_next_ones_follow_and_nothing_is_left(cluster: Cluster, mode: str) -> None:
    for release in (ONE, TWO, THREE):
        roll_out(line(mode, ()), release)
    assert served() == ("3", "")
    versions = {pod["metadata"]["labels"]["csflow/version"] for pod in cluster.pods().values()}
    assert versions == {"3"}


def test_a_challenger_that_takes_over_is_not_restarted(cluster: Cluster) -> None:
    roll_out(line(replicas=4), ONE)
    pods: list[set[str]] = []

    def remember(endpoint: Endpoint) -> None:
        pods.append(
            {name for name, pod in cluster.pods().items() if pod["metadata"]["labels"]["csflow/version"] == "2"}
        )

    roll_out(line(replicas=4), TWO, trial=remember)
    assert len(pods[0]) == 1  # dark: one pod is enough to be tried
    assert len(cluster.pods()) == 4
    assert pods[0] <= set(cluster.pods())


def test_no_steps_are_still_tried_before_any_request(cluster: Cluster) -> None:
    roll_out(line(steps=()), ONE)

    def refuse(_: Endpoint) -> None:
        raise DeployError("it says something else")

    with pytest.raises(DeployError, match=r"Version 2 of line tiles was not promoted: it says something else"):
        roll_out(line(steps=()), TWO, trial=refuse)
    assert served() == ("1", "")
    assert all(each.get("2", 0) == 0 for each in shares(cluster))


def test_serving_again_what_serves_changes_no_pod(cluster: Cluster) -> None:
    roll_out(line(), ONE)
    roll_out(line(), TWO)
    before = set(cluster.pods())
    assert roll_out(line(), TWO, None) == ""
    assert set(cluster.pods()) == before


def test_a_changed_yaml_takes_effect_when_serving_again(cluster: Cluster) -> None:
    roll_out(line(), ONE)
    roll_out(line(replicas=3), ONE, None)
    assert len(cluster.pods()) == 3


def test_too_few_requests_are_said(cluster: Cluster) -> None:
    roll_out(line(), ONE)
    cluster.counts[TWO.digest[:16]] = (4, 0)
    assert "0 of 4 requests failed, too few to judge (fewer than 20)" in roll_out(line(), TWO)


@pytest.mark.parametrize(
    ("counts", "failed"),
    [
        (RequestCounts(0, 0), False),
        (RequestCounts(19, 1), False),
        (RequestCounts(5, 3), True),
        (RequestCounts(20, 1), True),
        (RequestCounts(1000, 10), False),
        (RequestCounts(1000, 11), True),
    ],
)
def test_judgement(counts: RequestCounts, failed: bool) -> None:
    assert judge_canary(counts, 0.01)[0] is failed


# --- going back --------------------------------------------------------------------------------------------------


@MODES
def test_too_many_failures_bring_the_former_one_back(cluster: Cluster, mode: str) -> None:
    roll_out(line(mode), ONE)
    cluster.counts[TWO.digest[:16]] = (90, 10)
    with pytest.raises(DeployError) as caught:
        roll_out(line(mode, ((10, 5.0),)), TWO)
    assert "10 of 100 requests failed, 10.0% instead of at most 1.0%\nVersion 1 goes on." in str(caught.value)
    assert served() == ("1", "")
    assert cluster.service()["spec"]["predictor"]["model"]["storageUri"] == ONE.uri
    assert shares(cluster)[-1] == {"1": 100}
    assert max(each.get("2", 0) for each in shares(cluster)) == 10  # never everything, not even for a moment


@MODES
def test_never_ready_brings_the_former_one_back_with_the_reason(cluster: Cluster, mode: str) -> None:
    roll_out(line(mode), ONE)
    cluster.broken[TWO.digest[:16]] = "the storage initializer found nothing"
    with pytest.raises(DeployError, match="not ready after 1 seconds") as caught:
        roll_out(line(mode), TWO)
    for part in ("CrashLoopBackOff the storage initializer found nothing", "the model is broken", "Version 1 goes on"):
        assert part in str(caught.value)
    assert served() == ("1", "")
    assert {"2": 10} not in shares(cluster)


def test_the_first_that_never_gets_ready_is_taken_away(cluster: Cluster) -> None:
    cluster.broken[ONE.digest[:16]] = "no such bucket"
    with pytest.raises(DeployError, match="no such bucket"):
        roll_out(line(), ONE)
    assert ("inferenceservices", "tiles") not in cluster.objects


def test_a_restart_during_a_step_ends_it(cluster: Cluster) -> None:
    roll_out(line(), ONE)
    seen: list[int] = []

    def restarts(self: object, release: Release) -> int:
        seen.append(len(seen))
        return seen[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(LineService, "restarts", restarts)
        with pytest.raises(DeployError, match="its pods restarted 1 times"):
            roll_out(line(), TWO)
    assert served() == ("1", "")


def test_the_champion_comes_back_beside_what_took_over_already(cluster: Cluster) -> None:
    roll_out(line(), ONE)
    calls: list[DesiredService] = []
    real = LineService.unready

    def unready(self: LineService, wanted: DesiredService, release: Release) -> str:
        calls.append(wanted)
        failing = wanted.challenger is None and wanted.champion == TWO
        return "its route is gone" if failing else real(self, wanted, release)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(LineService, "unready", unready)
        with pytest.raises(DeployError, match=r"its route is gone(?s:.*)Version 1 goes on"):
            roll_out(line(), TWO)
    assert served() == ("1", "")
    after = [wanted for wanted in calls if wanted.champion == TWO and wanted.challenger == ONE]
    assert [wanted.percent for wanted in after][-1:] == [100]  # first beside it, then instead of it


def test_a_champion_that_answers_nobody_is_replaced_without_steps(cluster: Cluster) -> None:
    roll_out(line(), ONE)
    cluster.broken[ONE.digest[:16]] = "its node is gone"
    cluster._reconcile("tiles")
    cluster.history.clear()
    assert roll_out(line(), TWO) == ""
    assert served() == ("2", "")
    assert {"1": 90, "2": 10} not in shares(cluster)


def test_a_rolling_update_that_fails_is_turned_back(cluster: Cluster) -> None:
    cluster.gateway = False
    roll_out(line(steps=()), ONE)
    roll_out(line(steps=()), TWO)
    assert served() == ("2", "")
    cluster.broken[THREE.digest[:16]] = "out of memory"
    with pytest.raises(DeployError, match=r"(?s)out of memory.*Version 2 goes on"):
        roll_out(line(steps=()), THREE)
    assert served() == ("2", "")


def test_steps_a_cluster_would_ignore_are_refused_before_anything_changes(cluster: Cluster) -> None:
    cluster.gateway = False
    roll_out(line(), ONE)
    version = cluster.service()["metadata"]["resourceVersion"]
    with pytest.raises(DeployError, match="would silently get nothing"):
        roll_out(line(), TWO)
    assert cluster.service()["metadata"]["resourceVersion"] == version


def test_a_refusal_comes_before_anything_changes(cluster: Cluster) -> None:
    roll_out(line(), ONE)
    version = cluster.service()["metadata"]["resourceVersion"]
    cluster.webhook = "not on a Friday"
    with pytest.raises(DeployError, match="not on a Friday"):
        roll_out(line(), TWO)
    assert cluster.service()["metadata"]["resourceVersion"] == version


def test_a_cluster_that_fails_while_going_back_is_told(cluster: Cluster) -> None:
    roll_out(line(), ONE)

    def break_cluster(_: Endpoint) -> None:
        cluster.webhook = "closed"
        raise DeployError("wrong score")

    with pytest.raises(DeployError, match=r"(?s)wrong score.*Going back to version 1 failed as well.*csflow reconcile"):
        roll_out(line(), TWO, trial=break_cluster)


# --- killed between two steps ------------------------------------------------------------------------------------

DRIVER = """
import sys
from pathlib import Path
from csflow.adapters.deployment import canary, lease
from csflow.adapters.deployment.cluster import ClusterEndpoints
from csflow.adapters.deployment.endpoints import Approval, Release
from csflow.config import parse_line_json
from csflow.system.workspace import Workspace

canary.PACE = canary.Pace(ready=5, again=5, poll=0.05)
lease.LEASE_SECONDS = 3
line = parse_line_json(sys.argv[1])
endpoints = ClusterEndpoints(Workspace(Path("nowhere")))
with endpoints.lock(line.line) as lock:
    approval = Approval("gate", "it is better")
    endpoints.deploy(
        line, Release(*sys.argv[2:5]), Path("nowhere"), trial=lambda _: None, lock=lock, approval=approval
    )
"""


@pytest.fixture
def quick_lease(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease, "LEASE_SECONDS", 3)  # one second is less than a busy machine may stand still


def kill_in_step(cluster: Cluster, line: LineConfig, percent: int) -> None:
    """Start a promotion of version 2 in a process of its own and kill it in a step."""
    command = [sys.executable, "-c", DRIVER, line.model_dump_json(), TWO.version, TWO.digest, TWO.uri]
    process = subprocess.Popen(command, env=dict(os.environ))
    end = time.monotonic() + 60
    while _recorded(cluster) != str(percent):
        assert process.poll() is None
        assert time.monotonic() < end
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()


def _recorded(cluster: Cluster) -> str | None:
    with cluster.lock:
        lease = cluster.objects.get(("leases", "csflow-tiles"), {"metadata": {}})
        return (lease["metadata"].get("annotations") or {}).get("csflow/canary-percent")


@pytest.mark.slow
@MODES
def test_what_is_left_of_the_step_is_waited_for(cluster: Cluster, mode: str, quick_lease: None) -> None:
    roll_out(line(mode), ONE)
    cluster.counts[TWO.digest[:16]] = (100, 0)
    slow = line(mode, ((10, 0.0), (50, 0.1), (90, 0.0)))
    kill_in_step(cluster, slow, 50)
    assert served() == ("1", "2")  # the champion goes on, the challenger keeps its half
    cluster.history.clear()
    start = datetime.now(UTC)
    note = roll_out(slow, TWO)
    assert (datetime.now(UTC) - start).total_seconds() < 30
    assert note.startswith("continued at 50 % after an interruption; 50 % for 0.1 min: 0 of 100")
    assert [each["2"] for each in shares(cluster) if "2" in each][-1] == 100
    assert 10 not in [each.get("2") for each in shares(cluster)]  # steps that were passed are not done again
    assert served() == ("2", "")


@pytest.mark.slow
@MODES
def test_a_challenger_nobody_wants_any_more_is_ended(cluster: Cluster, mode: str, quick_lease: None) -> None:
    roll_out(line(mode), ONE)
    kill_in_step(cluster, line(mode, ((10, 60.0),)), 10)
    roll_out(line(mode), ONE, None)
    assert served() == ("1", "")
    assert shares(cluster)[-1] == {"1": 100}
    assert max(each.get("2", 0) for each in shares(cluster)) == 10


@pytest.mark.slow
def test_another_challenger_takes_the_place_of_a_killed_one(cluster: Cluster, quick_lease: None) -> None:
    roll_out(line(), ONE)
    kill_in_step(cluster, line("standard", ((10, 60.0),)), 10)
    assert roll_out(line(), THREE).startswith("10 % for")
    assert served() == ("3", "")
    assert NAMESPACE in cluster.log[0]


def test_an_interrupted_step_that_failed_meanwhile_goes_back(cluster: Cluster, quick_lease: None) -> None:
    roll_out(line(), ONE)
    slow = line("standard", ((10, 60.0),))
    kill_in_step(cluster, slow, 10)
    cluster.counts[TWO.digest[:16]] = (0, 50)
    with pytest.raises(DeployError, match=r"50 of 50 requests failed(?s:.*)Version 1 goes on"):
        roll_out(slow, TWO)
    assert served() == ("1", "")
