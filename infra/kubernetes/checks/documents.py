"""Rendered documents, and the pods that will run from them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import yaml

Document = dict[str, Any]

CLUSTER_WIDE = frozenset({"Namespace", "ClusterRole", "ClusterRoleBinding", "PersistentVolume", "PriorityClass"})
KSERVE_LABELS = {"component": "predictor", "serving.kserve.io/inferenceservice": "LINE"}
"""Labels that KServe itself adds to the pods of an endpoint."""


@dataclass(frozen=True)
class Pod:
    """The pods that a document makes.

    Attributes:
        where: The document, for messages.
        namespace: Their namespace.
        labels: Their labels.
        spec: Their spec; for a ServingRuntime, the fields that it gives, with the account that KServe adds.
        kserve: True if KServe makes them.
    """

    where: str
    namespace: str
    labels: dict[str, str]
    spec: Document
    kserve: bool = False

    @property
    def containers(self) -> list[Document]:
        """Return all containers, init containers included."""
        return [*self.spec.get("initContainers", []), *self.spec["containers"]]


@dataclass(frozen=True)
class Manifests:
    """All documents of one overlay."""

    documents: tuple[Document, ...]

    def of_kind(self, *kinds: str) -> Iterator[Document]:
        """Return the documents of these kinds."""
        return (each for each in self.documents if each["kind"] in kinds)

    def has(self, kind: str, namespace: str, name: str) -> bool:
        """Return True if there is such a document."""
        return any(each["metadata"]["name"] == name and namespace_of(each) == namespace for each in self.of_kind(kind))

    def pods(self) -> list[Pod]:
        """Return the pods of all documents that make some."""
        made = [
            Pod(where(each), namespace_of(each), *_template(each))
            for each in self.of_kind("Deployment", "DaemonSet", "StatefulSet", "Job", "CronJob")
        ]
        served = [
            Pod(where(each), namespace_of(each), KSERVE_LABELS | each["spec"].get("labels", {}),
                {"serviceAccountName": "default"} | each["spec"], kserve=True)
            for each in self.of_kind("ServingRuntime")
        ]  # fmt: skip
        return made + served

    def selected(self, selector: Document, namespace: str) -> list[Pod]:
        """Return the pods of a namespace that a label selector matches."""
        return [pod for pod in self.pods() if pod.namespace == namespace and matches(selector, pod.labels)]


def load(text: str) -> Manifests:
    """Read a stream of YAML documents."""
    return Manifests(tuple(each for each in yaml.safe_load_all(text) if each))


def where(document: Document) -> str:
    """Name a document in messages: ``Kind namespace/name``."""
    return f"{document['kind']} {namespace_of(document)}/{document['metadata']['name']}".replace(" /", " ")


def namespace_of(document: Document) -> str:
    """Return the namespace of a document; empty if it has none."""
    return str(document["metadata"].get("namespace", ""))


def matches(selector: Document, labels: dict[str, str]) -> bool:
    """Return True if a Kubernetes label selector matches labels; an empty one matches all."""
    exact = selector.get("matchLabels", {}).items()
    return all(labels.get(key) == value for key, value in exact) and all(
        _expression_holds(each, labels) for each in selector.get("matchExpressions", [])
    )


def _expression_holds(expression: Document, labels: dict[str, str]) -> bool:
    key, operator, values = expression["key"], expression["operator"], expression.get("values", [])
    if operator in ("In", "NotIn"):
        return bool((labels.get(key) in values) == (operator == "In"))
    return bool((key in labels) == (operator == "Exists"))


def _template(document: Document) -> tuple[dict[str, str], Document]:
    """Return labels and spec of a workload's pods."""
    spec = document["spec"]
    template = (spec["jobTemplate"]["spec"] if document["kind"] == "CronJob" else spec)["template"]
    return template.get("metadata", {}).get("labels", {}), template["spec"]
