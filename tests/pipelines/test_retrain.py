from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest
import yaml

pytestmark = pytest.mark.filterwarnings("ignore")
ORDER = ["ingest", "validate", "cache-features", "train", "evaluate", "register", "promote"]


@pytest.fixture(scope="module")
def ir(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    from kfp import compiler

    from pipelines.retrain import retrain

    path = tmp_path_factory.mktemp("ir") / "retrain.yaml"
    compiler.Compiler().compile(retrain, package_path=str(path))
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


def test_every_step_has_a_component_and_a_function() -> None:
    root = Path(__file__).resolve().parents[2]
    for name in (step.replace("-", "_") for step in ORDER):
        assert (root / "components" / f"{name}.py").is_file()
        assert f"def {name}(" in (root / "csflow" / "steps" / f"{name}.py").read_text()
