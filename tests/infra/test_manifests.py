"""The rendered manifests against the schemas of Kubernetes and KServe, and against each other."""

from __future__ import annotations

import fnmatch
import json
import os
import shutil
import subprocess
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml
from checks import load, problems

ROOT = Path(__file__).resolve().parents[2]
KUBERNETES = ROOT / "infra" / "kubernetes"
VERSION = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
OLDEST = "1.29"  # of docs/guides/cluster.md
OTHERS_KINDS = ("InferenceService", "ServingRuntime", "ServiceMonitor")

Document = dict[str, Any]


def documents(text: str) -> list[Document]:
    return [each for each in yaml.safe_load_all(text) if each]


def closed(schema: Any) -> Any:
    """A CRD's schema as the API server applies it with strict field validation: unknown fields are an error."""
    if isinstance(schema, list):
        return [closed(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    inner = {key: closed(value) for key, value in schema.items()}
    if schema.get("type") == "object" and isinstance(inner.get("properties"), dict):
        inner.setdefault("additionalProperties", bool(schema.get("x-kubernetes-preserve-unknown-fields")))
    if schema.get("x-kubernetes-int-or-string") is True:
        inner.pop("type", None)
    return inner


@pytest.fixture(scope="session")
def kserve_kinds(schemas: Path) -> dict[str, Any]:
    """The closed schema of each of KServe's kinds that the manifests use."""
    found = {}
    for kind, version in (("InferenceService", "v1beta1"), ("ServingRuntime", "v1alpha1")):
        text = (schemas / f"serving.kserve.io_{kind.lower()}s.yaml").read_text()
        crd = yaml.load(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
        served = next(each for each in crd["spec"]["versions"] if each["name"] == version)
        schema = closed(served["schema"]["openAPIV3Schema"])
        schema["properties"]["metadata"] = {"type": "object"}
        found[kind] = schema
    return found


@pytest.mark.parametrize("version", [OLDEST, kubernetes_validate.latest_version()])
def test_every_overlay_follows_the_schemas_of_kubernetes(overlays: dict[str, str], version: str) -> None:
    found = {json.dumps(each) for text in overlays.values() for each in documents(text)}
    ours = [document for each in found if (document := json.loads(each))["kind"] not in OTHERS_KINDS]
    for document in ours:
        kubernetes_validate.validate(document, version, strict=True)
    assert {"Deployment", "DaemonSet", "NetworkPolicy", "Role"} <= {document["kind"] for document in ours}


def test_a_field_kubernetes_does_not_know_is_refused(overlays: dict[str, str]) -> None:
    deployment = next(each for each in documents(overlays["cpu"]) if each["kind"] == "Deployment")
    deployment["spec"]["template"]["spec"]["containers"][0]["readynessProbe"] = {}
    with pytest.raises(kubernetes_validate.ValidationError, match="readynessProbe"):
        kubernetes_validate.validate(deployment, OLDEST, strict=True)


def test_kserve_kinds_follow_their_own_schemas(
    overlays: dict[str, str], line: str, kserve_kinds: dict[str, Any]
) -> None:
    found = [each for text in (*overlays.values(), line) for each in documents(text) if each["kind"] in kserve_kinds]
    for document in found:
        jsonschema.Draft202012Validator(kserve_kinds[document["kind"]]).validate(document)
    assert {each["kind"] for each in found} == {"InferenceService", "ServingRuntime"}


def test_a_field_kserve_does_not_know_is_refused(line: str, kserve_kinds: dict[str, Any]) -> None:
    (service,) = documents(line)
    service["spec"]["predictor"]["model"]["storageUrl"] = service["spec"]["predictor"]["model"].pop("storageUri")
    with pytest.raises(jsonschema.ValidationError, match="storageUrl"):
        jsonschema.Draft202012Validator(kserve_kinds["InferenceService"]).validate(service)


MONITOR = {
    "type": "object",
    "required": ["selector", "endpoints"],
    "additionalProperties": False,
    "properties": {
        "selector": {"type": "object", "required": ["matchLabels"]},
        "namespaceSelector": {"type": "object", "properties": {"matchNames": {"type": "array", "minItems": 1}}},
        "endpoints": {
            "type": "array",
            "minItems": 1,
            "items": {
                "type": "object",
                "required": ["port"],
                "additionalProperties": False,
                "properties": {
                    "port": {"type": "string"},
                    "path": {"type": "string", "pattern": "^/"},
                    "interval": {"type": "string", "pattern": "^[0-9]+(ms|s|m)$"},
                    "scrapeTimeout": {"type": "string", "pattern": "^[0-9]+(ms|s|m)$"},
                    "relabelings": {
                        "type": "array",
                        "items": {
                            "type": "object",
                            "required": ["sourceLabels", "targetLabel"],
                            "properties": {"sourceLabels": {"type": "array", "items": {"pattern": "^[a-z0-9_]+$"}}},
                        },
                    },
                },
            },
        },
    },
}
"""The part of the Prometheus operator's ServiceMonitor that is used here."""


def test_a_service_monitor_is_in_the_monitoring_overlay_only(overlays: dict[str, str]) -> None:
    found = {name: [each for each in documents(text) if each["apiVersion"].startswith("monitoring.coreos.com/")]
             for name, text in overlays.items()}  # fmt: skip
    assert [name for name, monitors in found.items() if monitors] == ["monitoring"]
    (monitor,) = found["monitoring"]
    assert (monitor["apiVersion"], monitor["kind"]) == ("monitoring.coreos.com/v1", "ServiceMonitor")
    jsonschema.validate(monitor["spec"], MONITOR)


@pytest.mark.parametrize("name", ["air-gapped", "cpu", "gpu", "monitoring"])
def test_documents_of_an_overlay_fit_together(overlays: dict[str, str], line: str, name: str) -> None:
    assert problems(load(f"{overlays[name]}\n---\n{line}"), VERSION) == []


def site(folder: Path, *parts: str) -> Path:
    """An overlay of a site's own, beside the project."""
    kubernetes = os.path.relpath(KUBERNETES, folder)  # kustomize takes no absolute paths
    components = [f"{kubernetes}/components/{part}" for part in parts]
    (folder / "kustomization.yaml").write_text(
        yaml.safe_dump({"resources": [f"{kubernetes}/base"], "components": components})
    )
    return folder


def test_all_parts_together_fit_too(render: Callable[[Path], str], tmp_path: Path) -> None:
    text = render(site(tmp_path, "standard", "gpu", "monitoring", "air-gapped"))
    assert problems(load(text), VERSION) == []
    images = {line.split()[-1] for line in text.splitlines() if line.strip().startswith(("image:", "- image:"))}
    assert images == {f"registry.example.internal/csflow/{name}:{VERSION}" for name in ("csflow-serve", "csflow-train")}
    accounts = [each for each in documents(text) if each["kind"] == "ServiceAccount"]
    assert all(each["imagePullSecrets"] == [{"name": "csflow-registry"}] for each in accounts)


def test_in_a_kubeflow_profile_everything_lies_in_one_namespace(render: Callable[[Path], str], tmp_path: Path) -> None:
    text = render(site(tmp_path, "standard", "profile"))
    assert problems(load(text), VERSION) == []
    assert "namespace: kubeflow" not in text
    assert "kubernetes.io/metadata.name: kubeflow" not in text
    assert {each["metadata"]["namespace"] for each in documents(text)} == {"csflow"}
    (binding,) = [each for each in documents(text) if each["kind"] == "RoleBinding"]
    assert binding["subjects"] == [{"kind": "ServiceAccount", "name": "default-editor", "namespace": "csflow"}]
    (deny,) = [each for each in documents(text) if each["metadata"]["name"] == "default-deny"]
    assert deny["spec"]["podSelector"] == {"matchLabels": {"app.kubernetes.io/part-of": "csflow"}}


def test_knative_gets_one_port_by_a_name_it_knows_and_nothing_it_refuses(render: Callable[[Path], str]) -> None:
    """Knative takes one port, named http1 or h2c, and no lifecycle hooks."""
    base = documents(render(KUBERNETES / "base"))
    (container,) = next(each for each in base if each["kind"] == "ServingRuntime")["spec"]["containers"]
    assert [port["name"] for port in container["ports"]] == ["http1"]
    assert "lifecycle" not in container


def test_standard_mode_has_grpc_and_waits_for_the_gateways(overlays: dict[str, str]) -> None:
    for text in overlays.values():
        (container,) = next(each for each in documents(text) if each["kind"] == "ServingRuntime")["spec"]["containers"]
        assert {port["name"]: port["containerPort"] for port in container["ports"]} == {"http1": 8080, "grpc": 8081}
        assert "--grpc-port=8081" in container["args"]
        assert container["lifecycle"] == {"preStop": {"exec": {"command": ["sleep", "5"]}}}


def test_gpu_nodes_hold_the_training_image_and_nothing_else(overlays: dict[str, str]) -> None:
    found = {
        (each["kind"], each["metadata"]["name"]): each["spec"] for each in documents(overlays["gpu"]) if "spec" in each
    }
    puller = found["DaemonSet", "image-puller"]["template"]["spec"]
    assert puller["nodeSelector"] == {"nvidia.com/gpu.present": "true"}
    assert puller["tolerations"] == [{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}]
    for spec in (found["Deployment", "mlflow"]["template"]["spec"], found["ServingRuntime", "csflow-serve"]):
        (term,) = spec["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"][
            "nodeSelectorTerms"
        ]
        assert term["matchExpressions"] == [{"key": "nvidia.com/gpu.present", "operator": "DoesNotExist"}]


def test_steps_may_promote_and_nothing_more(overlays: dict[str, str]) -> None:
    """Verb by verb what csflow.adapters.deployment asks the API server for."""
    roles = {each["metadata"]["name"]: each for each in documents(overlays["cpu"]) if "rules" in each}
    granted = {
        f"{group or 'core'}/{resource}": sorted(rule["verbs"])
        for rule in roles["csflow-promote"]["rules"]
        for group in rule["apiGroups"]
        for resource in rule["resources"]
    }
    assert granted == {
        "serving.kserve.io/inferenceservices": ["create", "delete", "get", "list", "patch", "watch"],
        "gateway.networking.k8s.io/httproutes": ["get"],
        "coordination.k8s.io/leases": ["create", "get", "update"],
        "core/pods": ["get", "list"],
        "core/pods/proxy": ["create", "get"],
        "core/pods/log": ["get"],
    }


def test_the_namespace_enforces_the_restricted_standard(overlays: dict[str, str]) -> None:
    (namespace,) = [each for each in documents(overlays["cpu"]) if each["kind"] == "Namespace"]
    assert namespace["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"


def test_steps_get_the_settings_they_name(overlays: dict[str, str]) -> None:
    """Each variable of the cluster profile that is no secret, in the namespace of the steps."""
    maps = [each for each in documents(overlays["cpu"]) if each["kind"] == "ConfigMap"]
    settings = {each["metadata"]["namespace"]: each["data"] for each in maps if each["metadata"]["name"] == "csflow"}
    assert settings["kubeflow"] == settings["csflow"]
    assert settings["kubeflow"].keys() >= {
        "MLFLOW_TRACKING_URI", "CSFLOW_STORE", "CSFLOW_ENDPOINTS", "CSFLOW_NAMESPACE", "AWS_ENDPOINT_URL",
        "AWS_DEFAULT_REGION",
    }  # fmt: skip
    assert settings["kubeflow"]["CSFLOW_ENDPOINTS"] == "kubernetes"


def test_mlflow_answers_at_the_address_the_steps_are_given(overlays: dict[str, str]) -> None:
    found = {(each["kind"], each["metadata"]["name"]): each for each in documents(overlays["cpu"])}
    host, _, port = found["ConfigMap", "csflow"]["data"]["MLFLOW_TRACKING_URI"].removeprefix("http://").partition(":")
    service = found["Service", "mlflow"]
    assert host.split(".")[:3] == [service["metadata"]["name"], service["metadata"]["namespace"], "svc"]
    assert int(port) in {each["port"] for each in service["spec"]["ports"]}
    (container,) = found["Deployment", "mlflow"]["spec"]["template"]["spec"]["containers"]
    allowed = next(each for each in container["args"] if each.startswith("--allowed-hosts="))
    assert any(fnmatch.fnmatch(f"{host}:{port}", pattern) for pattern in allowed.partition("=")[2].split(","))


def test_what_compiled_pipelines_name_is_there(overlays: dict[str, str]) -> None:
    """Config map with its keys, secret, claim and account, in the namespace of the steps."""
    placement = pytest.importorskip("pipelines.placement")
    from checks.wiring import MADE_BY_PEOPLE

    manifests = load(overlays["cpu"])
    maps = {(each["metadata"]["namespace"], each["metadata"]["name"]): each for each in manifests.of_kind("ConfigMap")}
    settings = maps["kubeflow", placement.CONFIG_MAP]["data"]
    # The runtime says which image serves; a promotion need not.
    assert {*placement.REQUIRED_SETTINGS, *placement.OPTIONAL_SETTINGS} - settings.keys() == {"CSFLOW_SERVE_IMAGE"}
    assert ("Secret", placement.STORAGE_SECRET) in MADE_BY_PEOPLE
    assert manifests.has("PersistentVolumeClaim", "kubeflow", placement.Placement().claim)


def test_the_line_is_what_a_promotion_applies(line: str) -> None:
    """The documented InferenceService and the code that makes it do not drift apart."""
    endpoints = pytest.importorskip("csflow.adapters.deployment.endpoints")
    service = pytest.importorskip("csflow.adapters.deployment.inference_service")
    from csflow.config import load_line

    (documented,) = documents(line)
    predictor = documented["spec"]["predictor"]
    release = endpoints.Release("1", predictor["annotations"]["csflow/digest"], predictor["model"]["storageUri"])
    config = load_line(ROOT / "lines" / "demo-texture.yaml")
    assert service.document(config, service.DesiredService(release), "csflow") == documented


def test_make_manifests_says_what_is_missing_without_kubectl(tmp_path: Path) -> None:
    tools = tmp_path / "bin"
    tools.mkdir()
    for tool in ("bash", "make", "test", "python3.11", "touch", "grep"):
        found = shutil.which(tool)
        if found:
            (tools / tool).symlink_to(found)
    done = subprocess.run(
        ["make", "--old-file=setup", "manifests"],
        cwd=ROOT,
        env={"PATH": str(tools)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode != 0
    assert "kubectl is missing" in done.stderr
