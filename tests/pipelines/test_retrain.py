from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest
import yaml

pytestmark = pytest.mark.filterwarnings("ignore")
ORDER = ["ingest", "validate", "csflow-extract", "cache-features", "train", "evaluate", "register", "promote"]
STEPS = [*(name for name in ORDER if name != "csflow-extract"), "extract-shard", "plan-shards"]


@pytest.fixture(scope="module")
def ir(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    from kfp import compiler

    from pipelines.placement import local
    from pipelines.retrain import retrain_on

    path = tmp_path_factory.mktemp("ir") / "retrain.yaml"
    compiler.Compiler().compile(retrain_on(local), package_path=str(path))
    return yaml.safe_load(path.read_text())  # type: ignore[no-any-return]


def test_graph_is_a_straight_line(ir: dict[str, Any]) -> None:
    tasks = ir["root"]["dag"]["tasks"]
    assert sorted(tasks) == sorted(ORDER)
    for before, after in itertools.pairwise(ORDER):
        assert before in tasks[after]["dependentTasks"], f"{after} does not wait for {before}"
    assert not any("triggerPolicy" in task or "iterator" in str(task) for task in tasks.values())


def test_orchestrators_cache_is_off_and_nothing_is_installed_at_run_time(ir: dict[str, Any]) -> None:
    assert all("enableCache" not in task.get("cachingOptions", {}) for task in ir["root"]["dag"]["tasks"].values())
    images = {executor["container"]["image"] for executor in ir["deploymentSpec"]["executors"].values()}
    assert len(images) == 1
    assert "pip install" not in yaml.safe_dump(ir["deploymentSpec"])


def test_runs_on_this_machine_have_the_same_graph_and_a_branch_never_taken(ir: dict[str, Any]) -> None:
    from pipelines.retrain import retrain

    tasks = retrain.pipeline_spec.root.dag.tasks
    (branch,) = set(tasks) - set(ORDER)
    assert set(tasks) == {*ORDER, branch}
    assert tasks[branch].trigger_policy.condition.endswith("== 'never'")
    here = {name: sorted(task.dependent_tasks) for name, task in tasks.items() if name != branch}
    assert here == {name: sorted(task.get("dependentTasks", [])) for name, task in ir["root"]["dag"]["tasks"].items()}


def test_every_step_has_a_component_and_a_function() -> None:
    root = Path(__file__).resolve().parents[2]
    functions = "\n".join(file.read_text() for file in (root / "csflow" / "steps").glob("*.py"))
    for name in (step.replace("-", "_") for step in STEPS):
        assert (root / "components" / f"{name}.py").is_file()
        assert f"def {name}(" in functions
