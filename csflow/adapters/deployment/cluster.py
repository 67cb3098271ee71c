"""A line's endpoint on a cluster: what it says, what its pods say, and changing it.

Pods are asked by way of the API server (``pods/proxy``), because that works from a pipeline's pod and from a
desk alike, and because only a pod's own address tells for certain which detector answers.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from csflow.adapters.deployment.endpoint import request_bodies
from csflow.adapters.deployment.inference_service import (
    CONTAINER,
    MODES,
    Document,
    Observed,
    Release,
    Wanted,
    document,
    observed,
    other_name,
    pods_wanted,
    selector,
)
from csflow.adapters.deployment.kubernetes_api import HTTP_ROUTE, INFERENCE_SERVICE, ApiError, KubernetesApi, connect
from csflow.adapters.deployment.turns import Turn
from csflow.config import LineConfig
from csflow.errors import DeployError

PORT = 8080
LOG_LINES = 15
COUNTER = "csflow_requests_total"
OURS = (".spec.predictor.model.storageUri", ".spec.predictor.canaryTrafficPercent", ".spec.predictor.name",
        ".spec.canary", ".spec.predictor.annotations.csflow/", ".spec.predictor.labels.csflow/",
        ".spec.predictor.model.env")  # fmt: skip
"""Fields that decide which detector answers: csflow takes them back from whoever changed them."""


@dataclass(frozen=True)
class ClusterEndpoint:
    """A detector that answers on a cluster.

    Attributes:
        line: The line, name of its InferenceService.
        url: Address of the line.
        digest: Digest of the detector directory.
        version: Registered version.
        namespace: Where it is.
        beside: What is tried beside it, for people: ``version 4 at 10 %``; empty for nothing.
    """

    line: str
    url: str
    digest: str
    version: str
    namespace: str
    beside: str = field(default="", compare=False)

    @property
    def log(self) -> str:
        """The command that shows what its pods have written."""
        labels = selector(self.line, Release(self.version, self.digest, ""))
        return f"kubectl logs -n {self.namespace} -l {labels} -c {CONTAINER}"


@dataclass(frozen=True)
class Counts:
    """Requests that pods have answered since they started.

    Attributes:
        requests: All but those the client got wrong.
        failures: Those of them that failed.
    """

    requests: int
    failures: int


class Service:
    """The InferenceService of one line.

    Args:
        api: The cluster.
        line: The line.
        turn: The right to change it; asked before each change.
    """

    def __init__(self, api: KubernetesApi, line: LineConfig, turn: Turn) -> None:
        self._api, self._line, self._turn = api, line, turn

    def observe(self) -> Observed | None:
        """What the cluster says; ``None`` if the line has no InferenceService.

        Raises:
            DeployError: If it is in another deployment mode than the line wants.
        """
        found = self._api.get(INFERENCE_SERVICE, self._line.line)
        if found is None:
            return None
        seen, mode = observed(found), self._line.serving.mode
        if seen.status.get("deploymentMode") and seen.mode != mode:
            raise DeployError(
                f"The InferenceService {self._line.line} is in mode {seen.mode}, its line wants serving.mode {mode}. "
                f"KServe cannot change the mode. Set the line's mode back, or delete it (kubectl delete "
                f"inferenceservice {self._line.line} -n {self._api.namespace}; nothing answers meanwhile) and run "
                f"csflow reconcile {self._line.line}."
            )
        return seen

    def apply(self, wanted: Wanted, *, dry_run: bool = False) -> Observed:
        """Make the InferenceService say what is wanted.

        Raises:
            DeployError: If the cluster refuses, somebody else owns a field and csflow does not take it back, or
                the cluster would drop the canary.
        """
        self._turn.check()
        wanted_document = document(self._line, wanted, self._api.namespace)
        try:
            applied = self._applied(wanted_document, dry_run=dry_run)
        except ApiError as error:
            if "canary" in error.said and any(text in error.said for text in ("unknown field", "not declared")):
                raise self._no_canary(error.said) from error
            raise
        if len(applied["spec"].get("canary", [])) != len(wanted_document["spec"].get("canary", [])):
            raise self._no_canary("it drops spec.canary")
        return observed(applied)

    def delete(self) -> bool:
        """Delete it and all its pods; whether there was one."""
        self._turn.check()
        return self._api.delete(INFERENCE_SERVICE, self._line.line)

    def splits(self) -> bool:
        """Whether this cluster can share requests between two detectors of this line."""
        return self._line.serving.mode == "knative" or self._route() is not None

    def require_split(self) -> None:
        """Raise if a canary of this line would be accepted and get no requests.

        Raises:
            DeployError: Saying what the cluster lacks.
        """
        if not self.splits():
            raise DeployError(
                f"Line {self._line.line} wants canary steps (serving.canary), but in Standard mode requests are "
                f"shared by a Gateway API HTTPRoute, and this cluster made none named {self._line.line} in "
                f"{self._api.namespace}: the canary would silently get nothing. Set enableGatewayApi in KServe's "
                "inferenceservice-config, or serving.mode: knative, or remove serving.canary."
            )

    def answers(self, release: Release) -> bool:
        """Whether at least one pod of a release is ready."""
        return any(_is_ready(pod) for pod in self._pods(release))

    def unready(self, wanted: Wanted, release: Release) -> str:
        """Why a release of what is wanted does not answer as wanted yet; empty when it does."""
        percent = wanted.percent if release == wanted.challenger else 100
        count = pods_wanted(self._line.serving, percent if self._line.serving.mode == "standard" else 100)
        ready = sum(_is_ready(pod) for pod in self._pods(release))
        if ready < count:
            return f"{ready} of {count} pods are ready"
        seen = self.observe()
        if seen is None:
            return "the InferenceService is gone"
        if wanted.challenger is None and not seen.ready:
            return "; ".join(seen.troubles) or "KServe does not report it ready"
        return self._wrong_share(wanted, seen)

    def explain(self, release: Release) -> str:
        """What KServe and the pods of a release say is wrong, with the last words of a container that fails."""
        found = self._api.get(INFERENCE_SERVICE, self._line.line)
        said = list(observed(found).troubles) if found else []
        for pod in self._pods(release):
            said += [f"pod {pod['metadata']['name']}: {trouble}" for trouble in _pod_troubles(pod)]
            said += self._last_words(pod)
        return "\n".join(said) or "Neither KServe nor the pods give a reason."

    def restarts(self, release: Release) -> int:
        """How often containers of a release's pods were started again."""
        statuses = [each for pod in self._pods(release) for each in pod["status"].get("containerStatuses", [])]
        return sum(each.get("restartCount", 0) for each in statuses if each["name"] == CONTAINER)

    def counts(self, release: Release) -> Counts:
        """Requests a release's ready pods have answered, by their own counters.

        Raises:
            DeployError: If a pod's metrics cannot be read.
        """
        texts = [self._metrics(pod) for pod in self._pods(release) if _is_ready(pod)]
        per_pod = [_counted(text, self._line.line) for text in texts if text]
        return Counts(sum(each.requests for each in per_pod), sum(each.failures for each in per_pod))

    def endpoint(self, release: Release, url: str = "") -> ClusterEndpoint:
        """A release as an endpoint that can be tried."""
        found = None if url else self.observe()
        address = url or (found.url if found else "") or f"inferenceservice/{self._line.line}"
        return ClusterEndpoint(self._line.line, address, release.digest, release.version, self._api.namespace)

    def _applied(self, wanted: Document, *, dry_run: bool) -> Document:
        try:
            return self._api.apply(INFERENCE_SERVICE, wanted, dry_run=dry_run)
        except ApiError as error:
            conflicts = _conflicts(error)
            if not conflicts:
                raise
            foreign = [(path, manager) for path, manager in conflicts if not path.startswith(OURS)]
            if foreign:
                listed = ", ".join(f"{path} ({manager})" for path, manager in foreign)
                raise DeployError(
                    f"The InferenceService {self._line.line} has fields that somebody else manages: {listed}. "
                    "Put the value into the line's YAML (serving:) and take it out there, or give the field up: "
                    "kubectl apply --server-side --field-manager=csflow --force-conflicts with the output of "
                    f"csflow endpoint {self._line.line} --yaml"
                ) from error
            return self._api.apply(INFERENCE_SERVICE, wanted, dry_run=dry_run, force=True)

    def _no_canary(self, why: str) -> DeployError:
        return DeployError(
            f"This cluster's KServe cannot do canaries in {MODES[self._line.serving.mode]} mode ({why}): spec.canary "
            "came with KServe 0.20. Update KServe, set serving.mode: knative, or remove serving.canary of line "
            f"{self._line.line}."
        )

    def _route(self) -> Document | None:
        """The line's HTTPRoute; ``None`` also where the cluster knows no Gateway API."""
        try:
            return self._api.get(HTTP_ROUTE, self._line.line)
        except ApiError as error:
            if error.status == 404:
                return None
            raise

    def _wrong_share(self, wanted: Wanted, seen: Observed) -> str:
        """How the requests are shared, where that is not as wanted."""
        knative = self._line.serving.mode == "knative"
        if knative and not _newest_is_ready(seen):
            return "; ".join(seen.troubles) or "its revision is not ready"
        share = _knative_share(seen) if knative else self._standard_share(wanted)
        expected = 100 if wanted.challenger is None else wanted.percent
        if share in (None, expected):
            return ""
        return f"{share} % of the requests go to it instead of {expected} %"

    def _standard_share(self, wanted: Wanted) -> int | None:
        route = self._route()
        if route is None:
            return None
        name = wanted.name if wanted.challenger is None else other_name(wanted.name)
        service = f"{self._line.line}-{name}-predictor" if name else f"{self._line.line}-predictor"
        shares = [_weight(rule.get("backendRefs", []), service) for rule in route["spec"].get("rules", [])]
        return min(shares) if shares else 0

    def _pods(self, release: Release) -> list[Document]:
        pods = self._api.pods(selector(self._line.line, release))
        return [pod for pod in pods if not pod["metadata"].get("deletionTimestamp")]

    def _metrics(self, pod: Document) -> str:
        """A pod's counters; empty if it went away since it was listed, as when its node is drained."""
        name = pod["metadata"]["name"]
        try:
            return str(self._api.through_pod(name, _port(pod), "metrics"))
        except ApiError as error:
            if error.status == 404 and error.body.get("details", {}).get("name") == name:
                return ""
            raise

    def _last_words(self, pod: Document) -> list[str]:
        name, status = pod["metadata"]["name"], pod.get("status", {})
        words = []
        for each in (*status.get("initContainerStatuses", []), *status.get("containerStatuses", [])):
            ended = each.get("state", {}).get("terminated") or each.get("lastState", {}).get("terminated")
            if each.get("ready") or (not ended and each["name"] != CONTAINER) or (ended and ended["exitCode"] == 0):
                continue
            with suppress(ApiError):  # an account that may not read logs still gets the rest
                log = self._api.pod_log(name, each["name"], lines=LOG_LINES, previous="waiting" in each["state"])
                words.append(f"Last lines of {name}, {each['name']}:\n{log.strip() or '(nothing)'}")
        return words


def raw(line: str) -> Document | None:
    """The line's InferenceService as the cluster has it, whoever wrote it; ``None`` if there is none.

    Raises:
        DeployError: If the cluster cannot be asked.
    """
    return connect().get(INFERENCE_SERVICE, line)


def status(line: str) -> ClusterEndpoint | None:
    """What answers for a line on the cluster; ``None`` if nothing does that csflow put there.

    Raises:
        DeployError: If the cluster cannot be asked.
    """
    api = connect()
    found = api.get(INFERENCE_SERVICE, line)
    seen = observed(found) if found else None
    if seen is None or seen.wanted is None or not seen.url:
        return None
    champion, challenger = seen.wanted.champion, seen.wanted.challenger
    beside = f"version {challenger.version} at {seen.wanted.percent} %" if challenger else ""
    return ClusterEndpoint(line, seen.url, champion.digest, champion.version, api.namespace, beside)


def delete(line: str) -> bool:
    """Delete what answers for a line on the cluster, unless csflow did not put it there; whether there was one.

    Raises:
        DeployError: If the cluster refuses.
    """
    api = connect()
    found = api.get(INFERENCE_SERVICE, line)
    if found is None or observed(found).wanted is None:
        return False
    return api.delete(INFERENCE_SERVICE, line)


def score(
    endpoint: ClusterEndpoint, images: Sequence[bytes], *, heatmap: bool = False, boxes: bool = False
) -> list[dict[str, Any]]:
    """Score encoded images with one of an endpoint's pods, in the order given.

    Raises:
        DeployError: If no pod is ready, or it refuses an image; its own reason is part of the message.
    """
    api = connect()
    pods = api.pods(selector(endpoint.line, Release(endpoint.version, endpoint.digest, "")))
    pod = next((pod for pod in pods if _is_ready(pod)), None)
    if pod is None:
        raise DeployError(f"No pod of {endpoint.line} version {endpoint.version} is ready. See {endpoint.log}.")
    answers: list[dict[str, Any]] = []
    for body in request_bodies(images, heatmap=heatmap, boxes=boxes):
        path = f"v1/models/{endpoint.line}:predict"
        answers += api.through_pod(pod["metadata"]["name"], _port(pod), path, body)["predictions"]
    return answers


def _is_ready(pod: Document) -> bool:
    conditions = pod.get("status", {}).get("conditions", [])
    return any(each["type"] == "Ready" and each["status"] == "True" for each in conditions)


def _port(pod: Document) -> int:
    """The REST port of the model server."""
    containers = {each["name"]: each for each in pod.get("spec", {}).get("containers", [])}
    ports = [each["containerPort"] for each in containers.get(CONTAINER, {}).get("ports", [])]
    return PORT if PORT in ports or not ports else int(ports[0])


def _pod_troubles(pod: Document) -> list[str]:
    """Why a pod does not run, as its status tells."""
    status = pod.get("status", {})
    said = [
        f"{each.get('reason', '')} {each.get('message', '')}".strip()
        for each in status.get("conditions", [])
        if each["status"] != "True" and each.get("message") and each["type"] == "PodScheduled"
    ]
    for each in (*status.get("initContainerStatuses", []), *status.get("containerStatuses", [])):
        for state in (each.get("state", {}), each.get("lastState", {})):
            for detail in (state.get("waiting"), state.get("terminated")):
                if detail and detail.get("exitCode") != 0 and detail.get("reason") != "PodInitializing":
                    words = (detail.get("reason"), detail.get("message"))
                    said.append(f"{each['name']}: {' '.join(word.strip() for word in words if word)}")
    return said


def _counted(text: str, line: str) -> Counts:
    """Read the server's counters; what the client got wrong says nothing about the detector."""
    from prometheus_client.parser import text_string_to_metric_families

    families = [each for each in text_string_to_metric_families(text) if f"{each.name}_total" == COUNTER]
    if not families:
        raise DeployError(
            f"The pods of {line} do not count their requests ({COUNTER} is not among their metrics), so that a canary "
            "cannot be judged. Serve with the csflow-serve image of this release."
        )
    by_outcome = {
        sample.labels["outcome"]: int(sample.value)
        for sample in families[0].samples
        if sample.name == COUNTER and sample.labels.get("model_name") == line
    }
    failures = by_outcome.get("failed", 0)
    return Counts(by_outcome.get("answered", 0) + failures, failures)


def _newest_is_ready(seen: Observed) -> bool:
    predictor = seen.status.get("components", {}).get("predictor", {})
    newest = predictor.get("latestCreatedRevision")
    return newest is not None and newest == predictor.get("latestReadyRevision")


def _knative_share(seen: Observed) -> int:
    """Share of the newest revision."""
    predictor = seen.status["components"]["predictor"]
    newest = predictor["latestCreatedRevision"]
    return sum(each.get("percent", 0) for each in predictor.get("traffic", []) if each.get("revisionName") == newest)


def _weight(backends: Sequence[Document], service: str) -> int:
    total = sum(each.get("weight", 1) for each in backends)
    own = sum(each.get("weight", 1) for each in backends if each["name"] == service)
    return round(100 * own / total) if total else 0


def _conflicts(error: ApiError) -> list[tuple[str, str]]:
    """Fields of a refused apply and who manages them, from the causes of a 409."""
    if error.status != 409:
        return []
    causes = error.body.get("details", {}).get("causes", [])
    found = [each for each in causes if each.get("reason") == "FieldManagerConflict"]
    return [(str(each["field"]), str(each.get("message", "")).removeprefix("conflict with ")) for each in found]
