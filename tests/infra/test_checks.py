"""Every check of the manifests finds what it is for: one thing is broken at a time."""

from __future__ import annotations

import copy
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from checks import HARDENING, WIRING, Manifests, load, problems
from checks.documents import matches

ROOT = Path(__file__).resolve().parents[2]
VERSION = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]

Document = dict[str, Any]
Find = Callable[[str, str], Document]


@pytest.fixture(scope="module")
def rendered(overlays: dict[str, str], line: str) -> Manifests:
    return load(f"{overlays['monitoring']}\n---\n{line}")


@pytest.fixture
def manifests(rendered: Manifests) -> Manifests:
    return copy.deepcopy(rendered)


def finder(manifests: Manifests) -> Find:
    return lambda kind, name: next(each for each in manifests.of_kind(kind) if each["metadata"]["name"] == name)


def pod(find: Find) -> Document:
    spec: Document = find("Deployment", "mlflow")["spec"]["template"]["spec"]
    return spec


def container(find: Find) -> Document:
    first: Document = pod(find)["containers"][0]
    return first


def runtime(find: Find) -> Document:
    spec: Document = find("ServingRuntime", "csflow-serve")["spec"]
    return spec


BREAKS: list[tuple[str, Callable[[Find], Any], str]] = [
    ("namespaces_exist", lambda f: f("Service", "mlflow")["metadata"].update(namespace="csflw"), "'csflw'"),
    ("pods_find_what_they_name", lambda f: f("ConfigMap", "csflow")["metadata"].update(name="csf"), "no key"),
    ("pods_find_what_they_name", lambda f: pod(f).update(serviceAccountName="mlflo"), "ServiceAccount mlflo"),
    ("pods_find_what_they_name", lambda f: f("ServiceAccount", "default")["metadata"].update(name="d"), "default"),
    (
        "pods_find_what_they_name",
        lambda f: pod(f)["volumes"].append({"name": "x", "persistentVolumeClaim": {"claimName": "data"}}),
        "PersistentVolumeClaim data",
    ),
    (
        "pods_find_what_they_name",
        lambda f: container(f)["env"].append({"name": "X", "valueFrom": {"secretKeyRef": {"name": "s", "key": "k"}}}),
        "Secret s",
    ),
    ("pods_find_what_they_name", lambda f: runtime(f).update(imagePullSecrets=[{"name": "pull"}]), "Secret pull"),
    ("mounts_have_volumes", lambda f: pod(f)["volumes"].clear(), "mounts tmp"),
    ("accounts_find_what_they_name", lambda f: f("Role", "csflow-promote")["metadata"].update(name="x"), "Role"),
    (
        "accounts_find_what_they_name",
        lambda f: f("RoleBinding", "csflow-promote")["subjects"][0].update(name="pipeline"),
        "kubeflow/pipeline",
    ),
    (
        "accounts_find_what_they_name",
        lambda f: f("ServiceAccount", "default")["secrets"][0].update(name="s3"),
        "Secret s3",
    ),
    ("selectors_match_pods", lambda f: f("Service", "mlflow")["spec"]["selector"].update(tier="x"), "Service"),
    ("selectors_match_pods", lambda f: f("Service", "mlflow")["spec"]["selector"].clear(), "Service"),
    (
        "selectors_match_pods",
        lambda f: f("PodDisruptionBudget", "predictors")["spec"]["selector"]["matchLabels"].update(tier="x"),
        "PodDisruptionBudget",
    ),
    (
        "selectors_match_pods",
        lambda f: f("NetworkPolicy", "predictors-to-storage")["spec"]["podSelector"]["matchLabels"].update(tier="x"),
        "NetworkPolicy",
    ),
    ("selectors_match_pods", lambda f: runtime(f)["labels"].clear(), "PodDisruptionBudget csflow/predictors"),
    (
        "selectors_match_pods",
        lambda f: f("Deployment", "mlflow")["spec"]["selector"]["matchLabels"].update(tier="x"),
        "its own pods",
    ),
    (
        "every_pod_is_behind_a_policy",
        lambda f: f("NetworkPolicy", "default-deny")["spec"].update(policyTypes=["Ingress"]),
        "denies all",
    ),
    ("ports_exist", lambda f: f("Service", "mlflow")["spec"]["ports"][0].update(targetPort="web"), "port web"),
    ("ports_exist", lambda f: container(f)["readinessProbe"]["httpGet"].update(port=8080), "readinessProbe"),
    (
        "ports_exist",
        lambda f: f("NetworkPolicy", "predictors-from-gateways")["spec"]["ingress"][0]["ports"][0].update(port=80),
        "port 80",
    ),
    ("port_names_agree", lambda f: container(f)["ports"][0].pop("name"), "has no name"),
    ("port_names_agree", lambda f: f("Service", "mlflow")["spec"]["ports"][0].update(name="web"), "'web'"),
    (
        "monitors_find_services",
        lambda f: f("ServiceMonitor", "csflow-predictors")["spec"]["endpoints"][0].update(port="metrics"),
        "port metrics",
    ),
    (
        "monitors_find_services",
        lambda f: f("Service", "predictors")["metadata"]["labels"].clear(),
        "no Service",
    ),
    ("inference_services_fit", lambda f: runtime(f)["supportedModelFormats"][0].update(name="onnx"), "0 runtimes"),
    ("inference_services_fit", lambda f: runtime(f).update(protocolVersions=["v1"]), "0 runtimes"),
    (
        "inference_services_fit",
        lambda f: f("InferenceService", "demo-texture")["spec"]["predictor"]["model"].update(
            storageUri="s3://csflow/store/detectors/demo-texture/champion/"
        ),
        "DIGEST",
    ),
    ("inference_services_fit", lambda f: f("InferenceService", "demo-texture")["metadata"].update(name="x"), "DIGEST"),
    ("containers_are_locked_in", lambda f: pod(f)["securityContext"].pop("runAsNonRoot"), "runAsNonRoot"),
    ("containers_are_locked_in", lambda f: pod(f)["securityContext"].update(runAsUser=0), "root"),
    ("containers_are_locked_in", lambda f: pod(f)["securityContext"].pop("seccompProfile"), "seccompProfile"),
    (
        "containers_are_locked_in",
        lambda f: container(f)["securityContext"].update(readOnlyRootFilesystem=False),
        "readOnlyRootFilesystem",
    ),
    ("containers_are_locked_in", lambda f: container(f)["securityContext"].pop("capabilities"), "capabilities"),
    (
        "containers_are_locked_in",
        lambda f: runtime(f)["containers"][0]["securityContext"].pop("allowPrivilegeEscalation"),
        "ServingRuntime",
    ),
    ("containers_are_locked_in", lambda f: pod(f).update(hostNetwork=True), "hostNetwork"),
    (
        "containers_are_locked_in",
        lambda f: pod(f)["volumes"].append({"name": "x", "hostPath": {"path": "/"}}),
        "folder of the node",
    ),
    ("containers_are_locked_in", lambda f: pod(f)["volumes"][0].update(emptyDir={}), "sizeLimit"),
    ("containers_have_bounds", lambda f: container(f)["resources"]["limits"].pop("memory"), "limits.memory"),
    (
        "containers_have_bounds",
        lambda f: pod(f)["initContainers"][0]["resources"].update(requests={}),
        "requests.cpu, requests.memory",
    ),
    ("servers_have_probes", lambda f: container(f).pop("livenessProbe"), "livenessProbe"),
    ("images_are_pinned", lambda f: container(f).update(image="csflow-train:latest"), "latest"),
    ("images_are_pinned", lambda f: container(f).update(image="registry:5000/csflow-train"), "expected a tag"),
    ("images_are_pinned", lambda f: container(f).update(image="a.b:5000/x/csflow-train:0.0.1"), f"tag {VERSION}"),
    ("secrets_are_only_named", lambda f: f("ConfigMap", "csflow")["data"].update(DB_PASSWORD="x"), "DB_PASSWORD"),
    (
        "secrets_are_only_named",
        lambda f: f("ConfigMap", "csflow")["data"].update(DATABASE="postgresql://mlflow:pw@db/mlflow"),
        "DATABASE",
    ),
    (
        "secrets_are_only_named",
        lambda f: container(f)["env"].append({"name": "AWS_SECRET_ACCESS_KEY", "value": "x"}),
        "AWS_SECRET_ACCESS_KEY",
    ),
    ("secrets_are_only_named", lambda f: f("ConfigMap", "csflow").update(kind="Secret"), "make it with kubectl"),
    ("accounts_have_little", lambda f: pod(f).update(automountServiceAccountToken=True), "token"),
    (
        "accounts_have_little",
        lambda f: f("ServiceAccount", "default").pop("automountServiceAccountToken"),
        "ServingRuntime",
    ),
    ("accounts_have_little", lambda f: f("Role", "csflow-promote")["rules"][0].update(verbs=["*"]), "wildcard"),
    (
        "accounts_have_little",
        lambda f: f("Role", "csflow-promote")["rules"][3].update(resources=["secrets"]),
        "with secrets",
    ),
    ("accounts_have_little", lambda f: f("RoleBinding", "csflow-promote").update(kind="ClusterRoleBinding"), "all"),
]


@pytest.mark.parametrize(("check", "break_it", "said"), BREAKS, ids=[f"{n}-{b[0]}" for n, b in enumerate(BREAKS)])
def test_a_check_finds_what_is_broken(
    manifests: Manifests, check: str, break_it: Callable[[Find], Any], said: str
) -> None:
    break_it(finder(manifests))
    by_name: dict[str, Callable[..., Any]] = {each.__name__: each for each in (*WIRING, *HARDENING)}
    arguments = (manifests, VERSION) if check in {each.__name__ for each in HARDENING} else (manifests,)
    found = list(by_name[check](*arguments))
    assert any(said in problem for problem in found), found


def test_a_name_that_is_rendered_twice_is_found(manifests: Manifests) -> None:
    twice = Manifests((*manifests.documents, finder(manifests)("Service", "mlflow")))
    assert problems(twice, VERSION) == ["Service csflow/mlflow: rendered 2 times"]


def test_every_check_is_shown_to_fail() -> None:
    shown = {name for name, _, _ in BREAKS} | {"names_are_unique"}
    assert shown == {each.__name__ for each in (*WIRING, *HARDENING)}


@pytest.mark.parametrize(
    ("expression", "expected"),
    [
        ({"key": "tier", "operator": "In", "values": ["a", "b"]}, True),
        ({"key": "tier", "operator": "In", "values": ["b"]}, False),
        ({"key": "tier", "operator": "NotIn", "values": ["b"]}, True),
        ({"key": "other", "operator": "NotIn", "values": ["b"]}, True),
        ({"key": "tier", "operator": "Exists"}, True),
        ({"key": "tier", "operator": "DoesNotExist"}, False),
    ],
)
def test_selectors_match_as_kubernetes_does(expression: Document, expected: bool) -> None:
    assert matches({"matchExpressions": [expression]}, {"tier": "a"}) is expected


def test_the_command_fails_with_the_file_and_the_problem(overlays: dict[str, str], tmp_path: Path) -> None:
    documents = [each for each in yaml.safe_load_all(overlays["cpu"]) if each["kind"] != "ServiceAccount"]
    file = tmp_path / "broken.yaml"
    file.write_text(yaml.safe_dump_all(documents))
    done = subprocess.run(
        [sys.executable, "-m", "checks", str(file)],
        cwd=ROOT / "infra" / "kubernetes",
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 1
    assert f"{file}: Deployment csflow/mlflow: ServiceAccount csflow-mlflow exists nowhere" in done.stdout
