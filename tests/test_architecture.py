"""The house rules of docs/architecture.md, enforced on the imports of every file."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PARTS = (".", "ablation", "metrics", "reporting", "synthetic")
METHOD = [file for part in PARTS for file in sorted((ROOT / "csflow" / part).glob("*.py"))]
ADAPTERS = sorted((ROOT / "csflow/adapters").rglob("*.py"))
PACKAGE = sorted((ROOT / "csflow").rglob("*.py"))
COMPONENTS = sorted((ROOT / "components").glob("*.py"))


def imports(file: Path) -> set[str]:
    """Every module a file imports, at its top or inside a function, relative to no package."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: relative import"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def offenders(files: list[Path], forbidden: tuple[str, ...]) -> list[str]:
    return [
        f"{file.relative_to(ROOT)} imports {name}"
        for file in files
        for name in sorted(imports(file))
        if any(name == prefix or name.startswith(f"{prefix}.") for prefix in forbidden)
    ]


def test_package_knows_no_orchestrator() -> None:
    assert offenders(PACKAGE, ("kfp", "components", "pipelines")) == []


def test_method_knows_no_outside_system() -> None:
    outside = ("csflow.adapters", "csflow.steps", "csflow.cli", "mlflow", "kserve", "dvc", "great_expectations")
    assert offenders(METHOD, outside) == []


def test_adapters_know_neither_steps_nor_commands() -> None:
    assert offenders(ADAPTERS, ("csflow.steps", "csflow.cli")) == []


# MLflow is one outside system in three files: runs, models, and the store below both.
SAME_SYSTEM = {"registry": {"mlflow_model", "mlflow_store", "pyfunc_model"}, "tracking": {"mlflow_store"}}


def test_adapters_do_not_know_each_other() -> None:
    names = {path.stem for path in (ROOT / "csflow/adapters").iterdir() if path.stem != "__init__"}
    for file in ADAPTERS:
        own = file.relative_to(ROOT / "csflow/adapters").parts[0].removesuffix(".py")
        others = names - {own} - SAME_SYSTEM.get(own, set())
        assert offenders([file], tuple(f"csflow.adapters.{name}" for name in others)) == []


@pytest.mark.parametrize("system", ["mlflow", "kserve", "dvc", "great_expectations", "kubernetes"])
def test_an_outside_system_is_known_to_adapters_alone(system: str) -> None:
    others = [file for file in PACKAGE if file not in ADAPTERS]
    assert offenders(others, (system,)) == []


def test_object_stores_are_known_to_adapters_alone() -> None:
    weights = ROOT / "csflow/features/weights.py"  # fetches one file, before anything else is there
    others = [file for file in PACKAGE if file not in ADAPTERS and file != weights]
    assert offenders(others, ("boto3", "botocore")) == []
    assert offenders([weights], ("csflow.adapters",)) == []


def test_components_import_csflow_inside_their_body_only() -> None:
    for file in COMPONENTS:
        top = [node for node in ast.parse(file.read_text()).body if isinstance(node, ast.Import | ast.ImportFrom)]
        modules = {node.module if isinstance(node, ast.ImportFrom) else node.names[0].name for node in top}
        assert not any(name and name.startswith("csflow") for name in modules), file


def test_the_rule_checker_sees_a_broken_rule(tmp_path: Path) -> None:
    bad = ROOT / "csflow" / "flow.py"
    assert offenders([bad], ("torch",)) != []


@pytest.mark.parametrize(
    ("module", "unwanted"),
    [
        ("csflow", ("torch", "mlflow", "kfp", "kserve", "dvc", "great_expectations")),
        ("csflow.detector.detector", ("mlflow", "kfp", "kserve", "dvc", "great_expectations", "matplotlib")),
        ("csflow.detector.engine", ("torch", "timm", "onnx", "onnxruntime", "safetensors", "scipy", "pandas")),
        ("csflow.data.images", ("torch",)),
        ("csflow.adapters.deployment", ("torch", "mlflow", "kserve", "kubernetes", "prometheus_client")),
        ("csflow.adapters.serving.answer", ("torch", "timm", "onnx", "safetensors")),
        ("csflow.cli.app", ("torch", "mlflow", "kfp", "kserve", "dvc", "great_expectations", "matplotlib", "pandas")),
    ],
)
def test_importing_pulls_in_nothing_heavy(module: str, unwanted: tuple[str, ...]) -> None:
    code = f"import sys, {module}; print([n for n in {unwanted!r} if n in sys.modules])"
    found = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


def test_what_serves_never_imports_what_trains() -> None:
    """From the server and the engine down, at the top of files and inside functions: no torch on the way."""
    todo = [*(ROOT / "csflow/adapters/serving").glob("*.py"), ROOT / "csflow/detector/engine.py"]
    seen = {
        ROOT / "csflow/detector/scoring.py"
    }  # two functions on latents use torch in there; only what trains calls them
    while todo:
        file = todo.pop()
        seen.add(file)
        names = {name.removeprefix("csflow.").partition(".")[0] for name in imports(file) if name.startswith("csflow.")}
        todo += {path for name in names if (path := ROOT / "csflow" / f"{name}.py").exists()} - seen
    served = sorted(seen - {ROOT / "csflow/detector/scoring.py"})
    assert (
        offenders(
            served, ("torch", "timm", "onnx", "safetensors", "csflow.detector.detector", "csflow.features.backbone")
        )
        == []
    )


def test_the_content_key_covers_every_module_a_detector_is_made_of() -> None:
    from csflow.runs.context import DETECTOR_CODE

    # What only carries, names or guards values cannot change what a detector says.
    carriers = {"checkpoint", "config", "errors", "files", "progress", "tier", "weights"}
    seen, todo = set(), {"detector", "training"}
    while todo:
        module = todo.pop()
        seen.add(module)
        names = {name.split(".")[1] for name in imports(ROOT / "csflow" / f"{module}.py") if name.startswith("csflow.")}
        todo |= {name for name in names if (ROOT / "csflow" / f"{name}.py").exists()} - seen
    assert seen - carriers == set(DETECTOR_CODE)
