"""Check that documents find each other by names, selectors, references and ports."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

from checks.documents import CLUSTER_WIDE, Document, Manifests, Pod, matches, namespace_of, where

EXTERNAL_NAMESPACES = frozenset({"kubeflow", "csflow"})
"""Namespaces that others make before csflow is installed; csflow's own only if it is that of a Kubeflow profile."""

EXTERNAL_ACCOUNTS = frozenset({("csflow", "default-editor")})
"""Service accounts that Kubeflow makes in a profile."""

MADE_BY_PEOPLE = frozenset({
    ("Secret", "csflow-storage"), ("Secret", "csflow-mlflow-database"), ("Secret", "csflow-registry"),
    ("ConfigMap", "csflow-ca"),
})  # fmt: skip
"""Made with kubectl, because their contents never belong in a repository; docs/guides/cluster.md says how."""

KNATIVE_PORTS = frozenset({8012, 8013, 8022})
GRPC_PORT = 8081
"""Ports of predictors that are open although no container declares them: the container or Knative's proxy listens."""

_DIGEST_PATH = re.compile(r"[a-z0-9]+://.+/detectors/(?P<line>[^/]+)/[0-9a-f]{64}/")


def names_are_unique(manifests: Manifests) -> Iterator[str]:
    """Refuse two documents of one kind, group and namespace with the same name."""
    group = [(each["apiVersion"].rpartition("/")[0], where(each)) for each in manifests.documents]
    yield from (f"{name}: rendered {count} times" for (_, name), count in Counter(group).items() if count > 1)


def namespaces_exist(manifests: Manifests) -> Iterator[str]:
    """Require that the namespace of every document is made here or known to exist."""
    known = {each["metadata"]["name"] for each in manifests.of_kind("Namespace")} | EXTERNAL_NAMESPACES
    for each in manifests.documents:
        if each["kind"] not in CLUSTER_WIDE and namespace_of(each) not in known:
            yield f"{where(each)}: namespace {namespace_of(each)!r}, expected one of {', '.join(sorted(known))}"


def pods_find_what_they_name(manifests: Manifests) -> Iterator[str]:
    """Require that the config maps, keys, secrets, claims and accounts of every pod exist or are made by people."""
    for pod in manifests.pods():
        for kind, name, key, optional in _named_by(pod):
            if not optional and not _exists(manifests, kind, pod.namespace, name):
                yield f"{pod.where}: {kind} {name} exists nowhere in {pod.namespace}"
            if kind == "ConfigMap" and key and not optional and not _has_key(manifests, pod.namespace, name, key):
                yield f"{pod.where}: ConfigMap {name} has no key {key}"


def mounts_have_volumes(manifests: Manifests) -> Iterator[str]:
    """Require that every mount of a container names a volume of its pod."""
    for pod in manifests.pods():
        volumes = {each["name"] for each in pod.spec.get("volumes", [])}
        for container in pod.containers:
            for mount in container.get("volumeMounts", []):
                if mount["name"] not in volumes:
                    yield f"{pod.where}: {container['name']} mounts {mount['name']}, volumes are {sorted(volumes)}"


def accounts_find_what_they_name(manifests: Manifests) -> Iterator[str]:
    """Require that secrets of service accounts exist or are made by people, and that bindings bind what exists."""
    for account in manifests.of_kind("ServiceAccount"):
        for secret in (*account.get("secrets", []), *account.get("imagePullSecrets", [])):
            if not _exists(manifests, "Secret", namespace_of(account), secret["name"]):
                yield f"{where(account)}: Secret {secret['name']} exists nowhere"
    for binding in manifests.of_kind("RoleBinding", "ClusterRoleBinding"):
        role = binding["roleRef"]
        namespace = namespace_of(binding) if role["kind"] == "Role" else ""
        if not manifests.has(role["kind"], namespace, role["name"]):
            yield f"{where(binding)}: {role['kind']} {role['name']} exists nowhere"
        for subject in binding["subjects"]:
            bound = subject.get("namespace", ""), subject["name"]
            known = bound in EXTERNAL_ACCOUNTS or manifests.has("ServiceAccount", *bound)
            if subject["kind"] != "ServiceAccount" or not known:
                yield f"{where(binding)}: {subject['kind']} {'/'.join(bound)} exists nowhere"


def selectors_match_pods(manifests: Manifests) -> Iterator[str]:
    """Require that services, budgets, policies and workloads select existing pods."""
    for each in manifests.of_kind("Service", "PodDisruptionBudget", "NetworkPolicy", "Deployment", "DaemonSet"):
        selector = _selector(each)
        everything = each["kind"] == "NetworkPolicy" and not selector
        if not everything and not (selector and manifests.selected(selector, namespace_of(each))):
            yield f"{where(each)}: selects {selector}, which no pod of {namespace_of(each)} has"
    for workload in manifests.of_kind("Deployment", "DaemonSet"):
        own = workload["spec"]["template"]["metadata"]["labels"]
        if not matches(workload["spec"]["selector"], own):
            yield f"{where(workload)}: selects {workload['spec']['selector']}, its own pods have {own}"


def every_pod_is_behind_a_policy(manifests: Manifests) -> Iterator[str]:
    """Require, in namespaces made here, a policy for all pods that denies everything that no other policy allows."""
    for namespace in manifests.of_kind("Namespace"):
        name = namespace["metadata"]["name"]
        policies = [each["spec"] for each in manifests.of_kind("NetworkPolicy") if namespace_of(each) == name]
        denies = {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}
        if denies not in policies:
            yield f"{where(namespace)}: no NetworkPolicy denies all ingress and egress by default"


def ports_exist(manifests: Manifests) -> Iterator[str]:
    """Require that services, policies and probes name ports of the pods behind them."""
    for service in manifests.of_kind("Service"):
        pods = manifests.selected(_selector(service), namespace_of(service))
        for port in service["spec"]["ports"]:
            target = port.get("targetPort", port["port"])
            yield from (f"{where(service)}: port {target} is none of {pod.where}" for pod in pods
                        if target not in _ports(pod))  # fmt: skip
    for policy in manifests.of_kind("NetworkPolicy"):
        pods = manifests.selected(policy["spec"]["podSelector"], namespace_of(policy))
        asked = {port["port"] for rule in policy["spec"].get("ingress", []) for port in rule.get("ports", [])}
        for pod in pods:
            unknown = asked - _ports(pod) - (KNATIVE_PORTS if pod.kserve else frozenset())
            yield from (f"{where(policy)}: port {port} is none of {pod.where}" for port in sorted(unknown, key=str))
    for pod in manifests.pods():
        for container in pod.containers:
            for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
                port = container.get(probe, {}).get("httpGet", {}).get("port")
                if port is not None and port not in _ports(pod):
                    yield f"{pod.where}: {probe} of {container['name']} asks port {port}, which it does not have"


def port_names_agree(manifests: Manifests) -> Iterator[str]:
    """Require that ports have names, and that a Service and its pods use the same name for a port."""
    for pod in manifests.pods():
        for container in pod.containers:
            yield from (f"{pod.where}: port {port['containerPort']} of {container['name']} has no name"
                        for port in container.get("ports", []) if not port.get("name"))  # fmt: skip
    for service in manifests.of_kind("Service"):
        for port in service["spec"]["ports"]:
            name, target = port.get("name"), port.get("targetPort")
            if not name or (isinstance(target, str) and target != name):
                yield f"{where(service)}: port {port['port']} is named {name!r}, its pods call it {target!r}"


def monitors_find_services(manifests: Manifests) -> Iterator[str]:
    """Require that a ServiceMonitor selects a Service with the port that it scrapes."""
    for monitor in manifests.of_kind("ServiceMonitor"):
        spaces = monitor["spec"].get("namespaceSelector", {}).get("matchNames", [namespace_of(monitor)])
        services = [
            service
            for service in manifests.of_kind("Service")
            if namespace_of(service) in spaces
            and matches(monitor["spec"]["selector"], service["metadata"].get("labels", {}))
        ]
        if not services:
            yield f"{where(monitor)}: selects {monitor['spec']['selector']}, which no Service of {spaces} has"
        for service in services:
            names = {port.get("name") for port in service["spec"]["ports"]}
            for endpoint in monitor["spec"]["endpoints"]:
                if endpoint.get("port") not in names:
                    yield f"{where(monitor)}: scrapes port {endpoint.get('port')}, {where(service)} has {sorted(names)}"


def inference_services_fit(manifests: Manifests) -> Iterator[str]:
    """Require that an InferenceService finds one runtime and names a digest of its own line, never an alias."""
    runtimes = [each["spec"] for each in manifests.of_kind("ServingRuntime")]
    for service in manifests.of_kind("InferenceService"):
        model, line = service["spec"]["predictor"]["model"], service["metadata"]["name"]
        fitting = [
            runtime
            for runtime in runtimes
            if model["modelFormat"]["name"] in {each["name"] for each in runtime["supportedModelFormats"]}
            and model["protocolVersion"] in runtime["protocolVersions"]
        ]
        if len(fitting) != 1:
            yield f"{where(service)}: {len(fitting)} runtimes serve {model['modelFormat']['name']}, expected 1"
        found = _DIGEST_PATH.fullmatch(model["storageUri"])
        if found is None or found["line"] != line:
            yield f"{where(service)}: storageUri {model['storageUri']}, expected …/detectors/{line}/DIGEST/"
        if service["metadata"]["labels"].get("csflow/line") != line:
            yield f"{where(service)}: label csflow/line is not {line}"


WIRING: tuple[Callable[[Manifests], Iterator[str]], ...] = (
    names_are_unique, namespaces_exist, pods_find_what_they_name, mounts_have_volumes, accounts_find_what_they_name,
    selectors_match_pods, every_pod_is_behind_a_policy, ports_exist, port_names_agree, monitors_find_services,
    inference_services_fit,
)  # fmt: skip


def _selector(document: Document) -> Document:
    spec = document["spec"]
    if document["kind"] == "Service":
        return {"matchLabels": spec["selector"]} if spec.get("selector") else {}
    selector: Document = spec["podSelector" if document["kind"] == "NetworkPolicy" else "selector"]
    return selector


def _ports(pod: Pod) -> set[int | str]:
    ports = [port for container in pod.spec["containers"] for port in container.get("ports", [])]
    known = {port["containerPort"] for port in ports} | {port["name"] for port in ports if "name" in port}
    return known | ({GRPC_PORT} if pod.kserve else set())


def _named_by(pod: Pod) -> Iterator[tuple[str, str, str, bool]]:
    """Yield kind, name, key and optionality of everything that a pod's spec names."""
    yield "ServiceAccount", pod.spec.get("serviceAccountName", "default"), "", False
    for secret in pod.spec.get("imagePullSecrets", []):
        yield "Secret", secret["name"], "", False
    for volume in pod.spec.get("volumes", []):
        yield from _volume_names(volume)
    for container in pod.containers:
        for source in container.get("envFrom", []):
            yield from _references(source, {"configMapRef": "ConfigMap", "secretRef": "Secret"})
        for variable in container.get("env", []):
            kinds = {"configMapKeyRef": "ConfigMap", "secretKeyRef": "Secret"}
            yield from _references(variable.get("valueFrom", {}), kinds)


def _references(source: Document, kinds: dict[str, str]) -> Iterator[tuple[str, str, str, bool]]:
    for field, kind in kinds.items():
        named: dict[str, Any] | None = source.get(field)
        if named:
            yield kind, named["name"], named.get("key", ""), bool(named.get("optional"))


def _volume_names(volume: Document) -> Iterator[tuple[str, str, str, bool]]:
    for field, kind, name in (
        ("configMap", "ConfigMap", "name"),
        ("secret", "Secret", "secretName"),
        ("persistentVolumeClaim", "PersistentVolumeClaim", "claimName"),
    ):
        if field in volume:
            yield kind, volume[field][name], "", bool(volume[field].get("optional"))


def _exists(manifests: Manifests, kind: str, namespace: str, name: str) -> bool:
    return (kind, name) in MADE_BY_PEOPLE or manifests.has(kind, namespace, name)


def _has_key(manifests: Manifests, namespace: str, name: str, key: str) -> bool:
    return any(
        key in each.get("data", {})
        for each in manifests.of_kind("ConfigMap")
        if each["metadata"]["name"] == name and namespace_of(each) == namespace
    )
