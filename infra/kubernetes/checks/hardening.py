"""Check the privileges and resources of containers, their images, and that no secret is exposed."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator

from checks.documents import Document, Manifests, Pod, where

OWN_IMAGES = frozenset({"csflow-train", "csflow-serve"})
WRITABLE = frozenset({"emptyDir", "persistentVolumeClaim"})

_SECRET_NAME = re.compile(r"(SECRET|PASSWORD|PASSWD|TOKEN|CREDENTIAL|ACCESS_KEY|API_KEY)", re.IGNORECASE)
_PASSWORD_IN_URI = re.compile(r"[a-z][a-z0-9+.-]*://[^/\s:@]*:[^/\s@]+@")


def containers_are_locked_in(manifests: Manifests, _: str) -> Iterator[str]:
    """Require containers without root, privileges or capabilities, with default seccomp, that write to volumes only."""
    for pod in manifests.pods():
        around = pod.spec.get("securityContext", {})
        for container in pod.containers:
            context = around | container.get("securityContext", {})
            yield from (f"{pod.where}: {container['name']}: {wrong}" for wrong in _weaknesses(context))
        yield from _pod_weaknesses(pod)


def containers_have_bounds(manifests: Manifests, _: str) -> Iterator[str]:
    """Require requests and limits of CPU and memory for every container."""
    for pod in manifests.pods():
        for container in pod.containers:
            resources = container.get("resources", {})
            missing = [
                f"{part}.{name}"
                for part in ("requests", "limits")
                for name in ("cpu", "memory")
                if name not in resources.get(part, {})
            ]
            if missing:
                yield f"{pod.where}: {container['name']} has no {', '.join(missing)}"


def servers_have_probes(manifests: Manifests, _: str) -> Iterator[str]:
    """Require a readiness and a liveness probe for every container with a port."""
    for pod in manifests.pods():
        for container in pod.spec["containers"]:
            if container.get("ports") and not {"readinessProbe", "livenessProbe"} <= container.keys():
                yield f"{pod.where}: {container['name']} has ports, but not both readinessProbe and livenessProbe"


def images_are_pinned(manifests: Manifests, version: str) -> Iterator[str]:
    """Require a tag other than ``latest`` for every image, and the project's version for csflow's own."""
    for pod in manifests.pods():
        for container in pod.containers:
            name, _, tag = container["image"].rpartition("/")[2].partition(":")
            if tag in ("", "latest") and "@sha256:" not in container["image"]:
                yield f"{pod.where}: {container['name']} runs {container['image']}, expected a tag other than latest"
            elif name in OWN_IMAGES and tag != version:
                yield f"{pod.where}: {container['name']} runs {container['image']}, expected tag {version}"


def secrets_are_only_named(manifests: Manifests, _: str) -> Iterator[str]:
    """Refuse Secrets with values, and passwords in config maps and variables."""
    for secret in manifests.of_kind("Secret"):
        yield f"{where(secret)}: a Secret is in the manifests; only name it, and make it with kubectl"
    for config in manifests.of_kind("ConfigMap"):
        yield from (f"{where(config)}: {key} looks like a secret" for key, value in config.get("data", {}).items()
                    if _gives_away(key, value))  # fmt: skip
    for pod in manifests.pods():
        for container in pod.containers:
            for variable in container.get("env", []):
                if _gives_away(variable["name"], variable.get("value", "")):
                    yield f"{pod.where}: {container['name']}: {variable['name']} looks like a secret"


def accounts_have_little(manifests: Manifests, _: str) -> Iterator[str]:
    """Refuse tokens in pods, wildcards, cluster-wide rights, and access to secrets that are not named."""
    for pod in manifests.pods():
        account = next(
            (each for each in manifests.of_kind("ServiceAccount")
             if each["metadata"]["name"] == pod.spec.get("serviceAccountName", "default")
             and each["metadata"].get("namespace") == pod.namespace), {},
        )  # fmt: skip
        said = pod.spec.get("automountServiceAccountToken", account.get("automountServiceAccountToken", True))
        if said is not False:
            yield f"{pod.where}: gets the token of its service account, which nothing in it needs"
    for binding in manifests.of_kind("ClusterRoleBinding"):
        yield f"{where(binding)}: gives rights in all namespaces"
    for role in manifests.of_kind("Role", "ClusterRole"):
        for rule in role["rules"]:
            for field in ("apiGroups", "resources", "verbs"):
                if "*" in rule.get(field, []):
                    yield f"{where(role)}: {field} has a wildcard"
            if "secrets" in rule.get("resources", []) and (not rule.get("resourceNames") or rule["verbs"] != ["get"]):
                yield f"{where(role)}: may do more with secrets than read those it names"


HARDENING: tuple[Callable[[Manifests, str], Iterator[str]], ...] = (
    containers_are_locked_in, containers_have_bounds, servers_have_probes, images_are_pinned, secrets_are_only_named,
    accounts_have_little,
)  # fmt: skip


def _weaknesses(context: Document) -> Iterator[str]:
    for field, expected in (
        ("runAsNonRoot", True),
        ("allowPrivilegeEscalation", False),
        ("readOnlyRootFilesystem", True),
    ):
        if context.get(field) is not expected:
            yield f"{field} is {context.get(field)}, expected {expected}"
    if context.get("runAsUser", 1) == 0 or context.get("privileged"):
        yield "runs as root or privileged"
    if context.get("capabilities") != {"drop": ["ALL"]}:
        yield f"capabilities are {context.get('capabilities')}, expected drop: [ALL]"
    if context.get("seccompProfile") != {"type": "RuntimeDefault"}:
        yield f"seccompProfile is {context.get('seccompProfile')}, expected RuntimeDefault"


def _pod_weaknesses(pod: Pod) -> Iterator[str]:
    for field in ("hostNetwork", "hostPID", "hostIPC"):
        if pod.spec.get(field):
            yield f"{pod.where}: {field} is set"
    for volume in pod.spec.get("volumes", []):
        if "hostPath" in volume:
            yield f"{pod.where}: volume {volume['name']} is a folder of the node"
        if "emptyDir" in volume and "sizeLimit" not in volume["emptyDir"]:
            yield f"{pod.where}: volume {volume['name']} has no sizeLimit"
    readable = {each["name"] for each in pod.spec.get("volumes", []) if not WRITABLE & each.keys()}
    for container in pod.containers:
        for mount in container.get("volumeMounts", []):
            if mount["name"] in readable and not mount.get("readOnly"):
                yield f"{pod.where}: {container['name']} mounts {mount['name']} without readOnly"


def _gives_away(name: str, value: object) -> bool:
    return bool(value) and bool(_SECRET_NAME.search(name) or _PASSWORD_IN_URI.search(str(value)))
