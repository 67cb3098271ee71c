"""Read the state and the request counters of the pods that serve a line."""

from __future__ import annotations

from dataclasses import dataclass

from csflow.adapters.deployment.inference_service import CONTAINER
from csflow.adapters.deployment.kubernetes_api import Document
from csflow.errors import DeployError

PORT = 8080
COUNTER = "csflow_requests_total"

_FAILURES = ("failed", "overloaded", "late")
"""Outcomes that a better detector would not have had: a slow one turns requests away or answers them too late."""


@dataclass(frozen=True)
class RequestCounts:
    """Requests that pods have answered since they started.

    Attributes:
        requests: Number of requests, without those that were the client's mistake.
        failures: Number of them that failed.
    """

    requests: int
    failures: int


def is_ready(pod: Document) -> bool:
    """Return True if Kubernetes reports the pod ready."""
    conditions = pod.get("status", {}).get("conditions", [])
    return any(each["type"] == "Ready" and each["status"] == "True" for each in conditions)


def rest_port(pod: Document) -> int:
    """Return the REST port of the model server."""
    containers = {each["name"]: each for each in pod.get("spec", {}).get("containers", [])}
    ports = [each["containerPort"] for each in containers.get(CONTAINER, {}).get("ports", [])]
    return PORT if PORT in ports or not ports else int(ports[0])


def troubles_of(pod: Document) -> list[str]:
    """List the reasons why a pod does not run, from its status."""
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


def count_requests(text: str, line: str) -> RequestCounts:
    """Read the server's counters, without clients' mistakes, which say nothing about the detector."""
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
    failures = sum(by_outcome.get(outcome, 0) for outcome in _FAILURES)
    return RequestCounts(by_outcome.get("answered", 0) + failures, failures)
