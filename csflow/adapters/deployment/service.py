"""Observe and change the InferenceService of one line.

Requests to pods go through the API server (``pods/proxy``), because that works both from a pipeline's pod and from a
developer's machine, and because only a pod's own address makes certain which detector answers.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field

from csflow.adapters.deployment.endpoints import LOG_LINES, EndpointLock, Release
from csflow.adapters.deployment.inference_service import (
    CONTAINER,
    MODES,
    DesiredService,
    ObservedService,
    document,
    observed,
    other_name,
    pods_wanted,
    selector,
)
from csflow.adapters.deployment.kubernetes_api import HTTP_ROUTE, INFERENCE_SERVICE, ApiError, Document, KubernetesApi
from csflow.adapters.deployment.pods import RequestCounts, count_requests, is_ready, rest_port, troubles_of
from csflow.config import LineConfig
from csflow.errors import DeployError

OURS = (".spec.predictor.model.storageUri", ".spec.predictor.canaryTrafficPercent", ".spec.predictor.name",
        ".spec.canary", ".spec.predictor.annotations.csflow/", ".spec.predictor.labels.csflow/",
        ".spec.predictor.model.env")  # fmt: skip
"""Fields that decide which detector answers; csflow takes their ownership back from whoever changed them."""


@dataclass(frozen=True)
class ClusterEndpoint:
    """A detector that answers on a cluster.

    Attributes:
        line: The line, which is also the name of its InferenceService.
        url: Address of the line.
        digest: Digest of the detector directory.
        version: Registered version.
        namespace: Namespace of the InferenceService.
        beside: The challenger that is being tried, for people: ``version 4 at 10 %``; empty if there is none.
    """

    line: str
    url: str
    digest: str
    version: str
    namespace: str
    beside: str = field(default="", compare=False)

    @property
    def log(self) -> str:
        """Return the command that shows the logs of its pods."""
        labels = selector(self.line, Release(self.version, self.digest, ""))
        return f"kubectl logs -n {self.namespace} -l {labels} -c {CONTAINER}"


class LineService:
    """The InferenceService of one line.

    Args:
        api: The cluster.
        line: The line.
        lock: The right to change it; checked before each change.
    """

    def __init__(self, api: KubernetesApi, line: LineConfig, lock: EndpointLock) -> None:
        self._api, self._line, self._lock = api, line, lock

    def observe(self) -> ObservedService | None:
        """Read the state of the InferenceService; return ``None`` if the line has none.

        Raises:
            DeployError: If its deployment mode is not the line's.
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

    def apply(self, wanted: DesiredService, *, dry_run: bool = False) -> ObservedService:
        """Apply the wanted state to the InferenceService.

        Raises:
            DeployError: If the cluster refuses, another manager owns a field that csflow does not take back, or
                the cluster would drop the canary.
        """
        self._lock.check()
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
        """Delete the InferenceService and all its pods; return True if there was one."""
        self._lock.check()
        return self._api.delete(INFERENCE_SERVICE, self._line.line)

    def splits(self) -> bool:
        """Return True if this cluster can split requests between two detectors of this line."""
        return self._line.serving.mode == "knative" or self._route() is not None

    def require_split(self) -> None:
        """Refuse canary steps on a cluster that would accept a canary but send it no requests.

        Raises:
            DeployError: If it is such a cluster; the message says what it lacks.
        """
        if not self.splits():
            raise DeployError(
                f"Line {self._line.line} wants canary steps (serving.canary), but in Standard mode requests are "
                f"shared by a Gateway API HTTPRoute, and this cluster made none named {self._line.line} in "
                f"{self._api.namespace}: the canary would silently get nothing. Set enableGatewayApi in KServe's "
                "inferenceservice-config, or serving.mode: knative, or remove serving.canary."
            )

    def answers(self, release: Release) -> bool:
        """Return True if at least one pod of a release is ready."""
        return any(is_ready(pod) for pod in self._pods(release))

    def unready(self, wanted: DesiredService, release: Release) -> str:
        """Describe why a release does not answer as wanted yet; return an empty string if it does."""
        percent = wanted.percent if release == wanted.challenger else 100
        count = pods_wanted(self._line.serving, percent if self._line.serving.mode == "standard" else 100)
        ready = sum(is_ready(pod) for pod in self._pods(release))
        if ready < count:
            return f"{ready} of {count} pods are ready"
        seen = self.observe()
        if seen is None:
            return "the InferenceService is gone"
        if wanted.challenger is None and not seen.ready:
            return "; ".join(seen.troubles) or "KServe does not report it ready"
        return self._wrong_share(wanted, seen)

    def explain(self, release: Release) -> str:
        """Describe the problems that KServe and a release's pods report, with last log lines of failing containers."""
        found = self._api.get(INFERENCE_SERVICE, self._line.line)
        said = list(observed(found).troubles) if found else []
        for pod in self._pods(release):
            said += [f"pod {pod['metadata']['name']}: {trouble}" for trouble in troubles_of(pod)]
            said += self._last_words(pod)
        return "\n".join(said) or "Neither KServe nor the pods give a reason."

    def restarts(self, release: Release) -> int:
        """Count the restarts of containers in a release's pods."""
        statuses = [each for pod in self._pods(release) for each in pod["status"].get("containerStatuses", [])]
        return sum(each.get("restartCount", 0) for each in statuses if each["name"] == CONTAINER)

    def counts(self, release: Release) -> RequestCounts:
        """Count the requests that a release's ready pods have answered, from their own counters.

        Raises:
            DeployError: If a pod's metrics cannot be read.
        """
        texts = [self._metrics(pod) for pod in self._pods(release) if is_ready(pod)]
        per_pod = [count_requests(text, self._line.line) for text in texts if text]
        return RequestCounts(sum(each.requests for each in per_pod), sum(each.failures for each in per_pod))

    def endpoint(self, release: Release, url: str = "") -> ClusterEndpoint:
        """Return the endpoint at which a release can be tried."""
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
        """Return the line's HTTPRoute; ``None`` if there is none or the cluster has no Gateway API."""
        try:
            return self._api.get(HTTP_ROUTE, self._line.line)
        except ApiError as error:
            if error.status == 404:
                return None
            raise

    def _wrong_share(self, wanted: DesiredService, seen: ObservedService) -> str:
        """Describe how the requests are split if that is not as wanted; else return an empty string."""
        knative = self._line.serving.mode == "knative"
        if knative and not _newest_is_ready(seen):
            return "; ".join(seen.troubles) or "its revision is not ready"
        share = _knative_share(seen) if knative else self._standard_share(wanted)
        expected = 100 if wanted.challenger is None else wanted.percent
        if share in (None, expected):
            return ""
        return f"{share} % of the requests go to it instead of {expected} %"

    def _standard_share(self, wanted: DesiredService) -> int | None:
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
        """Return a pod's counters; empty if the pod has gone since it was listed, for instance with a drained node."""
        name = pod["metadata"]["name"]
        try:
            return str(self._api.through_pod(name, rest_port(pod), "metrics"))
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
            with suppress(ApiError):  # an account that may not read logs still gets the other reasons
                log = self._api.pod_log(name, each["name"], lines=LOG_LINES, previous="waiting" in each["state"])
                words.append(f"Last lines of {name}, {each['name']}:\n{log.strip() or '(nothing)'}")
        return words


def _newest_is_ready(seen: ObservedService) -> bool:
    predictor = seen.status.get("components", {}).get("predictor", {})
    newest = predictor.get("latestCreatedRevision")
    return newest is not None and newest == predictor.get("latestReadyRevision")


def _knative_share(seen: ObservedService) -> int:
    """Return the newest revision's share of the requests."""
    predictor = seen.status["components"]["predictor"]
    newest = predictor["latestCreatedRevision"]
    return sum(each.get("percent", 0) for each in predictor.get("traffic", []) if each.get("revisionName") == newest)


def _weight(backends: Sequence[Document], service: str) -> int:
    total = sum(each.get("weight", 1) for each in backends)
    own = sum(each.get("weight", 1) for each in backends if each["name"] == service)
    return round(100 * own / total) if total else 0


def _conflicts(error: ApiError) -> list[tuple[str, str]]:
    """List the fields of a refused apply and their managers, from the causes of a 409."""
    if error.status != 409:
        return []
    causes = error.body.get("details", {}).get("causes", [])
    found = [each for each in causes if each.get("reason") == "FieldManagerConflict"]
    return [(str(each["field"]), str(each.get("message", "")).removeprefix("conflict with ")) for each in found]
