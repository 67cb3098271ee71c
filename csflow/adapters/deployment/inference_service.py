"""Write the KServe InferenceService of a line's endpoint, and read one back.

KServe has two deployment modes; an InferenceService cannot change its mode later. A line selects one in
``serving.mode``; csflow always writes it down (``serving.kserve.io/deploymentMode``), so that the cluster's
default (``inferenceservice-config``, ``deploy.defaultDeploymentMode``) does not matter.

=========================================  ==========================================  ========  ==================
Mode of the line, and the cluster          How two detectors share the requests        Canary    Tried before it
                                                                                       steps     gets any request
=========================================  ==========================================  ========  ==================
``knative``                                ``spec.predictor.canaryTrafficPercent``:    yes       yes, at 0 %
                                           newest revision against the last one that
                                           had all requests
``standard``; KServe 0.20 or later with    ``spec.canary: [{trafficPercent,            yes       yes, at 0 %
Gateway API (``enableGatewayApi``)         predictor}]``: a second Deployment,
                                           weights in the HTTPRoute
``standard``; KServe 0.20 or later with    accepted, the second Deployment starts,     refused   no: rolling update
plain Ingress or no ingress                and no request ever reaches it
``standard``; KServe before 0.20           ``spec.canary`` is unknown and dropped      refused   no: rolling update
=========================================  ==========================================  ========  ==================

In Standard mode ``canaryTrafficPercent`` is ignored without a message; in Knative mode KServe's webhook refuses
``spec.canary``. What a cluster can do is not concluded from its version: a dry run shows if it keeps
``spec.canary``, and after each step the share is read back from the HTTPRoute (Standard) or the traffic status
(Knative).

The position of a value in the document decides which pods restart when it changes. KServe copies annotations and
labels of the InferenceService to its pods, so a change there would restart every pod (Standard) or make a new revision
(Knative). The version and digest of a detector are therefore written to its *predictor*, where they last as long as
its pods, and the canary step is written to the line's Lease (:mod:`csflow.adapters.deployment.lease`). In Standard mode
a detector that passed takes over by its ``predictor.name``, without a restart; names alternate between ``a`` and
``b``, because a Service's name has at most 63 characters and a line's may have 50.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from csflow.adapters.deployment.endpoints import Release
from csflow.adapters.deployment.kubernetes_api import Document
from csflow.config import LineConfig, ServingConfig
from csflow.errors import DeployError

API_VERSION = "serving.kserve.io/v1beta1"
MODE = "serving.kserve.io/deploymentMode"
MODES = {"standard": "Standard", "knative": "Knative"}
LEGACY_MODES = {"RawDeployment": "Standard", "Serverless": "Knative"}
MODEL_FORMAT = "csflow"
CONTAINER = "kserve-container"
READABLE_SCHEMES = ("s3://", "gs://", "pvc://", "https://", "hf://", "oci://")
"""URL schemes that KServe's storage initializer can read."""

VERSION, DIGEST = "csflow/version", "csflow/digest"
FORMER_VERSION, FORMER_DIGEST, FORMER_URI = "csflow/former-version", "csflow/former-digest", "csflow/former-uri"
LABEL_DIGITS = 16
_NAME = re.compile(r"[a-z]([-a-z0-9]*[a-z0-9])?")


@dataclass(frozen=True)
class DesiredService:
    """The wanted state of a line's InferenceService.

    Attributes:
        champion: The release that serves.
        former: The release that served before it, recorded for people; ``None`` if there was none.
        challenger: The release that is being tried; ``None`` if there is none.
        percent: The challenger's share of the requests.
        name: ``predictor.name`` of the champion in Standard mode; empty for none.
    """

    champion: Release
    former: Release | None = None
    challenger: Release | None = None
    percent: int = 0
    name: str = ""


@dataclass(frozen=True)
class ObservedService:
    """The observed state of a line's InferenceService.

    Attributes:
        wanted: The wanted state, read back from the document; ``None`` if csflow did not write it.
        mode: ``standard`` or ``knative``; empty if the cluster has not reported it yet.
        url: Address from outside the cluster, else from inside; empty as long as there is none.
        ready: True if KServe reports it ready.
        troubles: Problems that KServe reports.
        status: KServe's status.
    """

    wanted: DesiredService | None
    mode: str
    url: str
    ready: bool
    troubles: tuple[str, ...]
    status: Mapping[str, Any]


def document(line: LineConfig, wanted: DesiredService, namespace: str) -> Document:
    """Build the InferenceService document of a line.

    Promotions apply this document, and ``csflow endpoint LINE --yaml`` prints it; no other code builds one.

    Raises:
        DeployError: If KServe could not accept it: the name starts with a digit, or it cannot read the detector.
    """
    _check(line, wanted)
    mode = line.serving.mode
    annotations = {MODE: MODES[mode]}
    if mode == "knative":
        # Without a tag Knative may remove the pods of a revision that gets no requests yet.
        annotations["serving.kserve.io/enable-tag-routing"] = "true"
    return {
        "apiVersion": API_VERSION,
        "kind": "InferenceService",
        "metadata": {
            "name": line.line,
            "namespace": namespace,
            "labels": {"app.kubernetes.io/part-of": "csflow", "app.kubernetes.io/managed-by": "csflow",
                       "csflow/line": line.line},
            "annotations": annotations,
        },
        "spec": _knative(line, wanted) if mode == "knative" else _standard(line, wanted),
    }  # fmt: skip


def observed(found: Document) -> ObservedService:
    """Read the observed state from an InferenceService."""
    metadata, spec, status = found["metadata"], found.get("spec", {}), found.get("status", {})
    mode = status.get("deploymentMode") or metadata.get("annotations", {}).get(MODE, "")
    conditions = {condition["type"]: condition for condition in status.get("conditions", [])}
    address = status.get("address") or {}
    return ObservedService(
        wanted=_wanted(spec),
        mode=LEGACY_MODES.get(mode, mode).lower(),
        url=status.get("url") or address.get("url") or "",
        ready=conditions.get("Ready", {}).get("status") == "True",
        troubles=_troubles(conditions, status),
        status=status,
    )


def selector(line: str, release: Release) -> str:
    """Return the label selector of the pods that serve a release."""
    return f"serving.kserve.io/inferenceservice={line},{DIGEST}={release.digest[:LABEL_DIGITS]}"


def pods_wanted(serving: ServingConfig, percent: int) -> int:
    """Return the number of pods for a share of the requests: at least one, and all of them for all requests."""
    return max(1, math.ceil(serving.replicas * percent / 100))


def other_name(name: str) -> str:
    """Return the name of the challenger's predictor, given the champion's."""
    return "b" if name == "a" else "a"


def _knative(line: LineConfig, wanted: DesiredService) -> Document:
    if wanted.challenger is None:
        return {"predictor": _predictor(line, wanted.champion, wanted.former, line.serving.replicas)}
    predictor = _predictor(line, wanted.challenger, wanted.champion, line.serving.replicas)
    return {"predictor": predictor | {"canaryTrafficPercent": wanted.percent}}


def _standard(line: LineConfig, wanted: DesiredService) -> Document:
    replicas = line.serving.replicas
    champion = _predictor(line, wanted.champion, wanted.former, replicas)
    champion |= {"name": wanted.name} if wanted.name else {}
    if wanted.challenger is None:
        return {"predictor": champion}
    challenger = _predictor(line, wanted.challenger, wanted.champion, pods_wanted(line.serving, wanted.percent))
    challenger["name"] = other_name(wanted.name)
    return {"predictor": champion, "canary": [{"trafficPercent": wanted.percent, "predictor": challenger}]}


def _predictor(line: LineConfig, release: Release, former: Release | None, replicas: int) -> Document:
    """Describe the pods of one detector; every value here depends on the release and not on the canary step."""
    annotations = {VERSION: release.version, DIGEST: release.digest}
    if former is not None:
        annotations |= {FORMER_VERSION: former.version, FORMER_DIGEST: former.digest, FORMER_URI: former.uri}
    asked = {"cpu": line.serving.cpu, "memory": line.serving.memory}
    model: Document = {
        "name": CONTAINER,  # the schema of spec.canary requires it
        "modelFormat": {"name": MODEL_FORMAT},
        "protocolVersion": "v2",
        "storageUri": release.uri,
        "env": [{"name": "CSFLOW_VERSION", "value": release.version}],
        # Limits as well: KServe would fill in its own, which may be lower than the requests.
        "resources": {"requests": asked, "limits": dict(asked)},
    }
    image = os.environ.get("CSFLOW_SERVE_IMAGE")
    model |= {"image": image} if image else {}
    labels = {DIGEST: release.digest[:LABEL_DIGITS], VERSION: release.version}
    return {"minReplicas": replicas, "labels": labels, "annotations": annotations, "model": model}


def _check(line: LineConfig, wanted: DesiredService) -> None:
    if not _NAME.fullmatch(line.line):
        raise DeployError(
            f"Line {line.line!r} cannot be the name of an InferenceService: KServe wants a letter first. "
            "Rename the line."
        )
    for release in (wanted.champion, wanted.challenger):
        if release is not None and not release.uri.startswith(READABLE_SCHEMES):
            raise DeployError(
                f"Version {release.version} of line {line.line!r} is published at {release.uri}, which a cluster "
                f"cannot read; expected {', '.join(READABLE_SCHEMES)}. Set CSFLOW_STORE=s3://BUCKET/PREFIX and promote "
                "again."
            )
        if release is not None and not release.uri.endswith(f"/{release.digest}/"):
            raise DeployError(
                f"Version {release.version} of line {line.line!r} is published at {release.uri}, expected a path that "
                f"ends in its digest: …/{line.line}/{release.digest}/. Never serve an alias."
            )


def _wanted(spec: Document) -> DesiredService | None:
    predictor = spec.get("predictor", {})
    newest, before = _release(predictor), _former(predictor)
    name = str(predictor.get("name", ""))
    if newest is None:
        return None
    percent = predictor.get("canaryTrafficPercent")
    if percent is not None and before is not None:
        return DesiredService(before, None, newest, int(percent))
    for canary in spec.get("canary", []):
        return DesiredService(newest, before, _release(canary["predictor"]), int(canary["trafficPercent"]), name)
    return DesiredService(newest, before, name=name)


def _release(predictor: Document) -> Release | None:
    annotations, model = predictor.get("annotations", {}), predictor.get("model", {})
    known = annotations.get(VERSION), annotations.get(DIGEST), model.get("storageUri")
    return Release(*known) if all(known) else None


def _former(predictor: Document) -> Release | None:
    known = [predictor.get("annotations", {}).get(key) for key in (FORMER_VERSION, FORMER_DIGEST, FORMER_URI)]
    return Release(*known) if all(known) else None


def _troubles(conditions: Mapping[str, Document], status: Document) -> tuple[str, ...]:
    said = [
        f"{name}: {' '.join(part for part in (each.get('reason'), each.get('message')) if part)}"
        for name, each in sorted(conditions.items())
        if each.get("status") != "True" and name != "Stopped" and (each.get("reason") or each.get("message"))
    ]
    failure = status.get("modelStatus", {}).get("lastFailureInfo") or {}
    if failure.get("message"):
        said.append(f"{failure.get('reason', 'model')}: {failure['message']}")
    return tuple(said)
