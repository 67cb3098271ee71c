"""The compiled pipelines: as a whole against golden files, and what each setting must come to.

After an intended change: ``CSFLOW_UPDATE_GOLDEN=1 python -m pytest tests/pipelines/test_package.py``, then read the
difference.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any, Literal

import pytest
import yaml

from csflow.config import ResourcesConfig, Toleration
from pipelines.package import Package, compiled
from pipelines.placement import COMPUTES, REPEATABLE, TRAINS, Placement

pytestmark = pytest.mark.filterwarnings("ignore")
GOLDEN = Path(__file__).parent / "golden"
GPU = ResourcesConfig(
    cpu="6",
    memory="24Gi",
    gpus=2,
    gpu_type="nvidia.com/gpu",
    shared_memory="4Gi",
    node_selector={"accelerator": "l4"},
    tolerations=(Toleration(key="nvidia.com/gpu", effect="NoSchedule"), Toleration()),
)
Graph = Literal["retrain", "ablate"]
STEPS = {
    "retrain": {"ingest", "validate", "plan-shards", "extract-shard", "cache-features", "train", "evaluate", "register",
                "promote"},
    "ablate": {"plan-ablation", "ablate-variant", "collect-ablation"},
}  # fmt: skip
GRAPHS = sorted(STEPS)


class Compiled:
    """What a server would read from a package."""

    def __init__(self, package: Package) -> None:
        self.pipeline, platforms = yaml.safe_load_all(package.text)
        self.kubernetes = platforms["platforms"]["kubernetes"]["deploymentSpec"]["executors"]
        self.executors = self.pipeline["deploymentSpec"]["executors"]
        graphs = [self.pipeline["root"], *self.pipeline["components"].values()]
        self.tasks = [task for graph in graphs for task in graph.get("dag", {}).get("tasks", {}).items()]

    def container(self, step: str) -> dict[str, Any]:
        return self.executors[f"exec-{step}"]["container"]  # type: ignore[no-any-return]

    def platform(self, step: str) -> dict[str, Any]:
        return self.kubernetes[f"exec-{step}"]  # type: ignore[no-any-return]

    def retried(self) -> dict[str, dict[str, Any]]:
        return {name: task["retryPolicy"] for name, task in self.tasks if "retryPolicy" in task}


@pytest.fixture(scope="module")
def packages() -> dict[str, Compiled]:
    return {graph: Compiled(compiled(graph, Placement(resources=GPU))) for graph in ("retrain", "ablate")}


def normalised(package: Package) -> str:
    """Without what changes with every release: image and version of the SDK."""
    documents = list(yaml.safe_load_all(package.text))
    documents[0]["sdkVersion"] = "kfp-VERSION"
    for executor in documents[0]["deploymentSpec"]["executors"].values():
        executor["container"]["image"] = "IMAGE"
    return yaml.safe_dump_all(documents, sort_keys=True, width=120)


@pytest.mark.parametrize("graph", GRAPHS)
def test_golden(graph: Graph) -> None:
    text, file = normalised(compiled(graph, Placement(resources=GPU))), GOLDEN / f"{graph}.yaml"
    if os.environ.get("CSFLOW_UPDATE_GOLDEN"):
        file.parent.mkdir(exist_ok=True)
        file.write_text(text)
    remedy = "CSFLOW_UPDATE_GOLDEN=1 python -m pytest tests/pipelines/test_package.py"
    assert text == file.read_text(), f"if that is meant, write the golden files again: {remedy}"


@pytest.mark.parametrize("graph", GRAPHS)
def test_every_step_has_image_volume_addresses_and_credentials(packages: dict[str, Compiled], graph: str) -> None:
    found = packages[graph]
    assert {name.removeprefix("exec-") for name in found.executors} == STEPS[graph]
    assert found.kubernetes.keys() == found.executors.keys()
    for step in STEPS[graph]:
        platform = found.platform(step)
        assert platform["imagePullPolicy"] == "IfNotPresent"
        (claim,) = platform["pvcMount"]
        assert (claim["constant"], claim["mountPath"]) == ("csflow-store", "/var/lib/csflow")
        assert {"name": "CSFLOW_HOME", "value": "/var/lib/csflow"} in found.container(step)["env"]
        variables = {
            pair["envVar"]: (source.get("configMapName") or source["secretName"], source["optional"])
            for source in (*platform["configMapAsEnv"], *platform["secretAsEnv"])
            for pair in source["keyToEnv"]
        }
        assert variables["MLFLOW_TRACKING_URI"] == ("csflow", False)
        assert variables["CSFLOW_ENDPOINTS"] == ("csflow", False)
        for name in ("CSFLOW_STORE", "AWS_ENDPOINT_URL", "AWS_DEFAULT_REGION", "CSFLOW_SERVE_IMAGE"):
            assert variables[name] == ("csflow", True)
        assert variables["AWS_SECRET_ACCESS_KEY"] == ("csflow-storage", True)
        assert variables["MLFLOW_TRACKING_PASSWORD"] == ("csflow-mlflow", True)
        assert "pip install" not in str(found.container(step)["command"])


@pytest.mark.parametrize("graph", GRAPHS)
def test_the_servers_cache_is_off_for_every_task(packages: dict[str, Compiled], graph: str) -> None:
    tasks = [task for name, task in packages[graph].tasks if not name.startswith("for-loop")]
    assert len(tasks) >= len(STEPS[graph])
    assert all(task["cachingOptions"] == {} for task in tasks), "kfp writes enableCache only where it is on"


@pytest.mark.parametrize("graph", GRAPHS)
def test_only_what_trains_asks_for_accelerators_and_their_nodes(packages: dict[str, Compiled], graph: str) -> None:
    found = packages[graph]
    for step in STEPS[graph]:
        resources, platform = found.container(step).get("resources", {}), found.platform(step)
        assert (step in COMPUTES) == ("resourceCpuRequest" in resources)
        if step in COMPUTES:
            assert (resources["resourceCpuRequest"], resources["resourceMemoryRequest"]) == ("6", "24Gi")
        trains = step in TRAINS
        assert trains == ("accelerator" in resources)
        assert trains == ("nodeSelector" in platform) == ("tolerations" in platform) == ("emptyDirMounts" in platform)
        if trains:
            accelerator = resources["accelerator"]
            assert (accelerator["resourceType"], accelerator["resourceCount"]) == ("nvidia.com/gpu", "2")
            assert platform["nodeSelector"]["labels"] == {"accelerator": "l4"}
            assert platform["tolerations"][0] == {
                "key": "nvidia.com/gpu",
                "operator": "Exists",
                "effect": "NoSchedule",
            }
            assert platform["tolerations"][1] == {"operator": "Exists"}
            (shm,) = platform["emptyDirMounts"]
            assert (shm["mountPath"], shm["medium"], shm["sizeLimit"]) == ("/dev/shm", "Memory", "4Gi")


def test_a_line_without_accelerators_asks_for_none() -> None:
    found = Compiled(compiled("retrain", Placement()))
    assert all("accelerator" not in found.container(step).get("resources", {}) for step in STEPS["retrain"])
    assert "nodeSelector" not in found.platform("train")
    assert "emptyDirMounts" in found.platform("train")


@pytest.mark.parametrize("graph", GRAPHS)
def test_only_steps_that_are_safe_to_repeat_are_tried_again(packages: dict[str, Compiled], graph: str) -> None:
    retried = packages[graph].retried()
    assert set(retried) == STEPS[graph] & REPEATABLE
    assert not {"ingest", "promote", "plan-ablation"} & set(retried)
    for policy in retried.values():
        assert policy["maxRetryCount"] == 2
        assert policy["backoffFactor"] == 2.0
        assert (policy["backoffDuration"], policy["backoffMaxDuration"]) == ("60s", "600s")


def test_why_a_step_is_tried_again_is_written_down() -> None:
    from pipelines import placement

    rows = dict(re.findall(r"^([a-z-]+) +(yes|no) ", placement.__doc__ or "", re.MULTILINE))
    assert set(rows) == STEPS["retrain"] | STEPS["ablate"]
    assert {step for step, again in rows.items() if again == "yes"} == REPEATABLE


def test_extraction_is_a_nested_loop_whose_number_is_given(packages: dict[str, Compiled]) -> None:
    pipeline = packages["retrain"].pipeline
    parameters = pipeline["root"]["inputDefinitions"]["parameters"]
    assert parameters["shards"]["defaultValue"] == 1
    assert parameters["shards"]["parameterType"] == "NUMBER_INTEGER"
    extract = pipeline["components"]["comp-csflow-extract"]["dag"]["tasks"]
    (loop,) = [task for task in extract.values() if "parameterIterator" in task]
    assert "iteratorPolicy" not in loop, "all shards at once"
    assert pipeline["root"]["dag"]["tasks"]["cache-features"]["dependentTasks"] == ["csflow-extract", "ingest"]
    assert "condition" not in str(pipeline["root"]), "the branch for the local runner is not for servers"


def test_equal_content_has_an_equal_version_and_other_resources_another() -> None:
    first, again = compiled("retrain", Placement()), compiled("retrain", Placement())
    assert first == again
    assert re.fullmatch("csflow-retrain-[0-9a-f]{16}", first.version)
    assert compiled("retrain", Placement(resources=GPU)).version != first.version
    assert compiled("ablate", Placement()).version.startswith("csflow-ablate-")
