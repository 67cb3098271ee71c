"""InferenceServices over HTTP: what csflow applies, what it reads back, and what each refusal of a cluster says."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

import pytest

from csflow.adapters.deployment import endpoints_from_environment, kubernetes_api
from csflow.adapters.deployment import lease as lease_module
from csflow.adapters.deployment.cluster import ClusterEndpoints
from csflow.adapters.deployment.endpoints import Approval, CanaryProgress, Release
from csflow.adapters.deployment.inference_service import DesiredService, document, observed, selector
from csflow.adapters.deployment.lease import lease
from csflow.adapters.deployment.local import LocalLock
from csflow.adapters.deployment.pods import RequestCounts
from csflow.adapters.deployment.service import LineService
from csflow.config import CanaryStep, DataConfig, LineConfig, ServingConfig
from csflow.errors import DeployError, UsageError
from csflow.system.workspace import Workspace
from tests.csflow.kubernetes_server import NAMESPACE, Cluster, kubeconfig

ONE = Release("1", "1" * 64, f"s3://store/detectors/tiles/{'1' * 64}/")
TWO = Release("2", "2" * 64, f"s3://store/detectors/tiles/{'2' * 64}/")
THREE = Release("3", "3" * 64, f"s3://store/detectors/tiles/{'3' * 64}/")


def endpoints() -> ClusterEndpoints:
    return ClusterEndpoints(Workspace(Path("nowhere")))


def line(mode: str = "standard", *steps: tuple[int, float], name: str = "tiles", replicas: int = 1) -> LineConfig:
    canary = tuple(CanaryStep(percent=percent, minutes=minutes) for percent, minutes in steps)
    serving = ServingConfig.model_validate({"mode": mode, "canary": canary, "replicas": replicas})
    return LineConfig(line=name, data=DataConfig(path="data/tiles"), serving=serving)


def service(mode: str = "standard", *steps: tuple[int, float], replicas: int = 1) -> LineService:
    return endpoints().service(line(mode, *steps, replicas=replicas), LocalLock())


# --- the document ------------------------------------------------------------------------------------------------


def test_the_document_names_the_digest_path_and_sets_the_mode() -> None:
    made = document(line("standard", replicas=3), DesiredService(TWO, ONE, name="a"), "factory")
    assert made["metadata"]["name"] == "tiles"
    assert made["metadata"]["annotations"]["serving.kserve.io/deploymentMode"] == "Standard"
    predictor = made["spec"]["predictor"]
    assert predictor["model"]["storageUri"] == TWO.uri
    assert predictor["minReplicas"] == 3
    assert predictor["annotations"]["csflow/former-digest"] == ONE.digest
    assert predictor["model"]["resources"]["requests"] == predictor["model"]["resources"]["limits"]
    assert "canaryTrafficPercent" not in predictor


@pytest.mark.parametrize("mode", ["standard", "knative"])
@pytest.mark.parametrize(
    "wanted",
    [
        DesiredService(ONE),
        DesiredService(TWO, ONE),
        DesiredService(ONE, None, TWO, 0),
        DesiredService(ONE, None, TWO, 25),
        DesiredService(ONE, None, ONE, 0),
    ],
)
def test_what_is_written_is_read_back(mode: str, wanted: DesiredService) -> None:
    assert observed(document(line(mode), wanted, "factory")).wanted == wanted


def test_names_of_predictors_alternate_and_are_read_back() -> None:
    for name, other in (("", "a"), ("a", "b"), ("b", "a")):
        made = document(line(), DesiredService(TWO, ONE, THREE, 10, name), "factory")
        assert made["spec"]["canary"][0]["predictor"]["name"] == other
        assert observed(made).wanted == DesiredService(TWO, ONE, THREE, 10, name)


def test_a_taken_over_detector_keeps_its_pods() -> None:
    """All that KServe makes a pod from is the same before and after, so that nothing restarts."""
    tried = document(line(replicas=4), DesiredService(ONE, None, TWO, 50, "a"), "factory")
    taken = document(line(replicas=4), DesiredService(TWO, ONE, name="b"), "factory")
    before, after = tried["spec"]["canary"][0]["predictor"], taken["spec"]["predictor"]
    assert before.pop("minReplicas") == 2
    assert after.pop("minReplicas") == 4
    assert before == after
    assert tried["metadata"] == taken["metadata"]


@pytest.mark.parametrize(
    ("uri", "said"),
    [
        ("file:///home/x/detectors/tiles/" + "1" * 64 + "/", "Set CSFLOW_STORE=s3://"),
        ("models:/csflow-tiles@champion", "Set CSFLOW_STORE=s3://"),
        ("s3://store/detectors/tiles/champion/", "Never serve an alias"),
        ("s3://store/detectors/tiles/" + "1" * 64, "Never serve an alias"),
    ],
)
def test_what_a_cluster_cannot_read_or_is_no_digest_path_is_refused(uri: str, said: str) -> None:
    with pytest.raises(DeployError, match=said):
        document(line(), DesiredService(Release("1", "1" * 64, uri)), "factory")


def test_a_name_kserve_refuses_is_told_before() -> None:
    with pytest.raises(DeployError, match="a letter first"):
        document(line(name="3d-parts"), DesiredService(ONE), "factory")


# --- requests and refusals ---------------------------------------------------------------------------------------


def test_create_and_read_back(cluster: Cluster) -> None:
    assert endpoints().status("tiles") is None
    service().apply(DesiredService(ONE))
    endpoint = endpoints().status("tiles")
    assert endpoint is not None
    assert (endpoint.version, endpoint.digest, endpoint.url) == ("1", ONE.digest, "http://tiles.example.com")
    assert endpoint.log.startswith(f"kubectl logs -n {NAMESPACE} -l serving.kserve.io/inferenceservice=tiles")
    assert service().unready(DesiredService(ONE), ONE) == ""
    assert endpoints().score(endpoint, [b"x", b"y"])[1]["version"] == "1"


def test_a_dry_run_changes_nothing(cluster: Cluster) -> None:
    service().apply(DesiredService(ONE), dry_run=True)
    assert cluster.objects == {}


def test_a_field_of_somebody_else_is_not_taken(cluster: Cluster) -> None:
    service().apply(DesiredService(ONE))
    cluster.owners["inferenceservices", "tiles"][".spec\x00predictor\x00minReplicas"] = "autoscaler"
    cluster.service()["spec"]["predictor"]["minReplicas"] = 5
    with pytest.raises(DeployError, match=r'\.spec\.predictor\.minReplicas \("autoscaler"\)') as caught:
        service().apply(DesiredService(TWO, ONE))
    assert "--force-conflicts" in str(caught.value)
    assert cluster.service()["spec"]["predictor"]["model"]["storageUri"] == ONE.uri


def test_what_decides_who_answers_is_taken_back(cluster: Cluster) -> None:
    service().apply(DesiredService(ONE))
    cluster.owners["inferenceservices", "tiles"][".spec\x00predictor\x00model\x00storageUri"] = "kubectl-edit"
    cluster.service()["spec"]["predictor"]["model"]["storageUri"] = "s3://elsewhere/x/"
    service().apply(DesiredService(ONE))
    assert cluster.service()["spec"]["predictor"]["model"]["storageUri"] == ONE.uri


def test_forbidden_names_the_verb_the_resource_and_the_role(cluster: Cluster) -> None:
    cluster.denied.add(("patch", "inferenceservices"))
    with pytest.raises(DeployError) as caught:
        service().apply(DesiredService(ONE))
    for part in (
        "cannot patch",
        'apiGroups ["serving.kserve.io"]',
        'resources ["inferenceservices"]',
        'verbs ["patch"]',
    ):
        assert part in str(caught.value)


def test_a_webhook_is_quoted(cluster: Cluster) -> None:
    cluster.webhook = "modelFormat csflow has no runtime"
    with pytest.raises(DeployError, match=r"admission webhook.*refused.*modelFormat csflow has no runtime"):
        service().apply(DesiredService(ONE))


def test_wrong_credentials_are_told(cluster: Cluster, tmp_path: Path) -> None:
    address = json.loads((tmp_path / "kubeconfig").read_text())["clusters"][0]["cluster"]["server"]
    kubeconfig(tmp_path / "kubeconfig", address, token="expired")
    with pytest.raises(DeployError, match=r"does not accept the credentials \(401\)"):
        service().observe()


def test_no_server_is_told(cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "sleep", lambda _: None)
    kubeconfig(tmp_path / "kubeconfig", "http://127.0.0.1:9")
    with pytest.raises(DeployError, match=r"http://127\.0\.0\.1:9 does not answer .*kubectl cluster-info"):
        service().observe()


def test_no_kubeconfig_is_told(cluster: Cluster, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "none"))
    with pytest.raises(DeployError, match="there is no cluster to talk to"):
        kubernetes_api.connect()


def test_no_kserve_is_told(cluster: Cluster) -> None:
    cluster.kserve = False
    with pytest.raises(DeployError, match="Is KServe installed"):
        service().observe()


def test_a_short_outage_is_waited_out(cluster: Cluster) -> None:
    service().apply(DesiredService(ONE))
    cluster.failures += [503, 500]
    assert service().observe() is not None


def test_the_namespace_of_the_environment_wins(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    assert kubernetes_api.connect().namespace == NAMESPACE
    monkeypatch.setenv("CSFLOW_NAMESPACE", "elsewhere")
    assert kubernetes_api.connect().namespace == "elsewhere"


def test_another_profile_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CSFLOW_ENDPOINTS", "cloud")
    with pytest.raises(UsageError, match="expected local or kubernetes"):
        endpoints_from_environment(Workspace(Path("nowhere")))


def test_stop_deletes_what_csflow_made_and_nothing_else(cluster: Cluster) -> None:
    assert endpoints().stop("tiles") is False
    service().apply(DesiredService(ONE))
    assert endpoints().stop("tiles") is True
    assert cluster.pods() == {}
    service().apply(DesiredService(ONE))
    del cluster.service()["spec"]["predictor"]["annotations"]
    assert endpoints().stop("tiles") is False


# --- deployment modes --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("prunes", [False, True])
def test_a_canary_an_older_kserve_would_drop_is_refused(cluster: Cluster, prunes: bool) -> None:
    pytest.importorskip("jsonschema")
    if kubernetes_server_has_no_schema():
        pytest.skip("needs KServe's CRDs: set CSFLOW_SCHEMAS")
    service().apply(DesiredService(ONE))
    cluster.canaries, cluster.prunes = False, prunes
    with pytest.raises(DeployError, match=r"cannot do canaries in Standard mode.*KServe 0\.20"):
        service().apply(DesiredService(ONE, None, TWO, 10), dry_run=True)
    assert cluster.service()["spec"]["predictor"]["model"]["storageUri"] == ONE.uri


def kubernetes_server_has_no_schema() -> bool:
    from tests.csflow import kubernetes_server

    return not (kubernetes_server.SCHEMAS / "serving.kserve.io_inferenceservices.yaml").exists()


def test_a_canary_that_gets_no_requests_is_refused(cluster: Cluster) -> None:
    cluster.gateway = False
    service().apply(DesiredService(ONE))
    assert not service().splits()
    with pytest.raises(DeployError, match="the canary would silently get nothing.*enableGatewayApi"):
        service("standard", (10, 1)).require_split()
    service("knative", (10, 1)).require_split()


def test_another_mode_than_the_cluster_has_is_refused(cluster: Cluster) -> None:
    service("standard").apply(DesiredService(ONE))
    with pytest.raises(DeployError, match=r"is in mode standard, its line wants serving\.mode knative"):
        service("knative").observe()


@pytest.mark.parametrize("mode", ["standard", "knative"])
def test_the_share_is_read_back(cluster: Cluster, mode: str) -> None:
    tried = DesiredService(ONE, None, TWO, 10)
    service(mode).apply(DesiredService(ONE))
    assert "0 of 1 pods" in service(mode).unready(tried, TWO)
    service(mode).apply(tried)
    assert service(mode).unready(tried, TWO) == ""
    assert "10 % of the requests go to it instead of 25 %" in service(mode).unready(
        DesiredService(ONE, None, TWO, 25), TWO
    )
    assert cluster.history[-1] == {ONE.uri: 90, TWO.uri: 10}


def test_pods_of_each_release_are_told_apart_and_counted(cluster: Cluster) -> None:
    one = service("standard", replicas=3)
    one.apply(DesiredService(ONE))
    one.apply(DesiredService(ONE, None, TWO, 34))
    cluster.counts = {ONE.digest[:16]: (10, 0), TWO.digest[:16]: (5, 2)}
    assert one.counts(ONE) == RequestCounts(30, 0)
    assert one.counts(TWO) == RequestCounts(14, 4)  # two pods: a third of three, rounded up
    cluster.restarts[TWO.digest[:16]] = 3
    one.apply(DesiredService(ONE, None, TWO, 50))
    assert (one.restarts(ONE), one.restarts(TWO)) == (0, 6)


def test_pods_that_do_not_count_are_told(cluster: Cluster) -> None:
    service().apply(DesiredService(ONE))
    with one_page("# TYPE up gauge\nup 1.0\n") as address:
        cluster.servers[ONE.digest[:16]] = address
        with pytest.raises(DeployError, match="do not count their requests"):
            service().counts(ONE)


def test_never_ready_tells_what_pods_and_kserve_say(cluster: Cluster) -> None:
    cluster.broken[ONE.digest[:16]] = "back-off restarting failed container"
    service().apply(DesiredService(ONE))
    assert "0 of 1 pods are ready" in service().unready(DesiredService(ONE), ONE)
    said = service().explain(ONE)
    for part in ("MinimumReplicasUnavailable", "CrashLoopBackOff back-off restarting", "the model is broken"):
        assert part in said
    cluster.denied.add(("get", "pods/log"))
    assert "CrashLoopBackOff" in service().explain(ONE)


# --- one at a time -----------------------------------------------------------------------------------------------


def test_the_lease_keeps_a_second_one_out_and_is_given_back(cluster: Cluster) -> None:
    api = kubernetes_api.connect()
    with lease(api, "tiles"):
        with pytest.raises(DeployError, match="holds the Lease csflow-tiles since"), lease(api, "tiles", patience=0.1):
            pass
        with lease(api, "nuts"):
            pass
    with lease(api, "tiles", patience=0.1) as lock:
        assert lock.progress is None


def test_a_silent_holder_is_replaced_and_its_step_is_known(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease_module, "LEASE_SECONDS", 1)
    api = kubernetes_api.connect()
    left = CanaryProgress(TWO, 25, datetime.now(UTC), Approval("gate", "it is better"))
    with lease(api, "tiles") as dead:
        dead.record(left)
        api.client.configuration.refresh_api_key_hook = None
        api.client.configuration.host = "http://127.0.0.1:9"  # from here on it is silent
        with lease(kubernetes_api.connect(), "tiles") as lock:
            assert lock.progress == left
            time.sleep(1.1)
            with pytest.raises(DeployError, match="was lost"):
                dead.check()


def test_a_holder_that_renews_is_not_replaced(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease_module, "LEASE_SECONDS", 1)
    with lease(kubernetes_api.connect(), "tiles") as lock:
        with pytest.raises(DeployError, match="Somebody else"), lease(kubernetes_api.connect(), "tiles", patience=1.5):
            pass
        lock.check()


def test_a_lost_lease_stops_the_next_change(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease_module, "LEASE_SECONDS", 0.3)
    with lease(kubernetes_api.connect(), "tiles") as lock:
        taken = cluster.objects["leases", "csflow-tiles"]
        taken["metadata"]["resourceVersion"], taken["spec"]["holderIdentity"] = "stolen", "somebody"
        time.sleep(0.5)
        with pytest.raises(DeployError, match="was lost"):
            endpoints().service(line(), lock).apply(DesiredService(ONE))
    assert ("inferenceservices", "tiles") not in cluster.objects


def test_a_write_whose_answer_was_lost_is_no_loss(cluster: Cluster) -> None:
    left = CanaryProgress(TWO, 25, datetime.now(UTC), Approval("gate", "it is better"))
    with lease(kubernetes_api.connect(), "tiles") as lock:
        cluster.objects["leases", "csflow-tiles"]["metadata"]["resourceVersion"] = "a later one"
        lock.record(left)
        lock.check()
    with lease(kubernetes_api.connect(), "tiles") as lock:
        assert lock.progress == left


def test_selector_fits_a_label() -> None:
    assert len(selector("tiles", ONE).rpartition("=")[2]) <= 63


@contextmanager
def one_page(text: str) -> Iterator[str]:
    """A server that answers everything with one text."""
    from http.server import BaseHTTPRequestHandler, HTTPServer

    class Page(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(text.encode())

        def log_message(self, *_: object) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Page)
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()
