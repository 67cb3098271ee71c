from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

pytestmark = pytest.mark.filterwarnings("ignore")
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def ir(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    from kfp import compiler

    from pipelines.ablate import ablation

    path = tmp_path_factory.mktemp("ir") / "ablate.yaml"
    compiler.Compiler().compile(ablation, package_path=str(path))
    return yaml.safe_load(path.read_text())  # type: ignore[no-any-return]


def tasks_of(ir: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    """Every task of the graph and of those inside it; two loops have one name."""
    graphs = [ir["root"], *ir["components"].values()]
    return [task for graph in graphs for task in graph.get("dag", {}).get("tasks", {}).items()]


def test_a_loop_over_lines_holds_a_loop_over_variants(ir: dict[str, Any]) -> None:
    loops = [task for _, task in tasks_of(ir) if "parameterIterator" in task]
    assert len(loops) == 2
    assert all(loop["iteratorPolicy"]["parallelismLimit"] == 1 for loop in loops), "they share cores and clock"
    assert dict(tasks_of(ir))["collect-ablation"]["dependentTasks"] == ["csflow-ablation-variants", "plan-ablation"]


def test_orchestrators_cache_is_off(ir: dict[str, Any]) -> None:
    assert not any(task.get("cachingOptions", {}).get("enableCache") for _, task in tasks_of(ir))


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_whole_ablation_through_the_local_runner(tmp_path: Path) -> None:
    environment = os.environ | {"CSFLOW_HOME": str(tmp_path), "DVC_NO_ANALYTICS": "1"}
    small = [word for key in ("flow.hidden=4", "flow.blocks=1", "training.epochs=1", "features.image_size=128",
             "training.device=cpu") for word in ("--set", key)]  # fmt: skip
    command = [
        sys.executable,
        "-m",
        "csflow.cli",
        "ablate",
        "demo-texture",
        "--group",
        "map",
        "--runner",
        "kfp",
        *small,
    ]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    (plan,) = tmp_path.glob("ablations/demo-texture/*/plan.json")
    keys = {entry["key"] for entry in json.loads(plan.read_text())["entries"]}
    rows = {file.stem: json.loads(file.read_text()) for file in (plan.parent / "rows").iterdir()}
    assert set(rows) == keys
    assert all(not row["error"] and "image_auroc" in row["metrics"] for row in rows.values())
    assert "finest scale" in done.stdout
    assert not list(tmp_path.glob("runs/*/kfp"))
