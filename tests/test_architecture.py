"""The house rules of docs/architecture.md, enforced on the imports of every file."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterable, Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = ("csflow", "components", "pipelines")

MAY_IMPORT = {
    "csflow": "",
    "errors": "",
    "system": "errors",
    "config": "errors system",
    "synthetic": "errors system",
    "data": "config errors system",
    "flow": "config errors system",  # a checkpoint is sealed like everything else that is kept
    "features": "config data errors flow system",
    "detector": "config data errors features flow system",
    "metrics": "data detector errors",
    "reporting": "config data detector errors flow metrics system",
    "adapters": "config data detector errors flow system",
    "runs": "adapters config data detector errors features flow synthetic system",
    "release": "adapters config data detector errors metrics reporting runs synthetic system",
    "ablation": "adapters config data detector errors features metrics reporting runs synthetic system",
    "steps": "adapters config data detector errors features release reporting runs system",
    "cli": "ablation adapters config data detector errors features flow release reporting runs steps synthetic system",
    "components": "ablation runs steps",
    "pipelines": "ablation cli components config errors release reporting runs system",
}
"""What each room may import, from the ground floor up. A new arrow is a decision: add it here and say why."""


def module_name(file: Path) -> str:
    return ".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


MODULES = {module_name(file): file for folder in FOLDERS for file in sorted((ROOT / folder).rglob("*.py"))}


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


def own_imports(file: Path) -> set[str]:
    """The modules of this project that a file imports."""
    names = (name if name in MODULES else name.rpartition(".")[0] for name in imports(file))
    return {name for name in names if name in MODULES}


def room(module: str) -> str:
    """The room a module is in; ``csflow`` for the package itself."""
    parts = module.split(".")
    return parts[0] if parts[0] != "csflow" or len(parts) == 1 else parts[1]


def arrows(modules: dict[str, Path]) -> Iterator[tuple[str, str, str]]:
    """Every import from one room to another: both rooms, and the import in words."""
    for name, file in modules.items():
        for target in own_imports(file):
            if room(name) != room(target):
                yield room(name), room(target), f"{name} imports {target}"


def offenders(files: Iterable[Path], forbidden: tuple[str, ...]) -> list[str]:
    return [
        f"{file.relative_to(ROOT)} imports {name}"
        for file in files
        for name in sorted(imports(file))
        if any(name == prefix or name.startswith(f"{prefix}.") for prefix in forbidden)
    ]


def in_room(*names: str) -> list[Path]:
    return [file for name, file in MODULES.items() if room(name) in names]


def test_every_room_imports_what_it_may() -> None:
    assert {room(name) for name in MODULES} <= MAY_IMPORT.keys(), "a new room: say what it may import"
    found = [text for start, end, text in arrows(MODULES) if end not in {*MAY_IMPORT[start].split(), "csflow"}]
    assert found == []


def test_every_right_to_import_is_used() -> None:
    used = defaultdict(set)
    for start, end, _ in arrows(MODULES):
        used[start].add(end)
    unused = {name: sorted(set(may.split()) - used[name]) for name, may in MAY_IMPORT.items()}
    assert {name: rooms for name, rooms in unused.items() if rooms} == {}


def test_rooms_form_no_circle_and_at_most_twelve_levels() -> None:
    graph: dict[str, set[str]] = {name: set() for name in MAY_IMPORT}
    for start, end, _ in arrows(MODULES):
        graph[start].add(end)
    levels: dict[str, int] = {}
    for name in TopologicalSorter(graph).static_order():
        levels[name] = max((levels[below] + 1 for below in graph[name]), default=0)
    assert max(levels.values()) + 1 <= 12


def test_a_circle_of_rooms_would_be_seen() -> None:
    with pytest.raises(CycleError):
        list(TopologicalSorter({"data": {"flow"}, "flow": {"data"}}).static_order())
    assert ("steps", "release", "csflow.steps.promote imports csflow.release.promotion") in set(arrows(MODULES))


def test_modules_form_no_circle() -> None:
    graph = {name: own_imports(file) - {name} for name, file in MODULES.items()}
    try:
        list(TopologicalSorter(graph).static_order())
    except CycleError as error:
        pytest.fail(f"circle: {' → '.join(error.args[1])}")


def test_package_knows_no_orchestrator() -> None:
    assert offenders((ROOT / "csflow").rglob("*.py"), ("kfp", "components", "pipelines")) == []


def test_pipelines_know_the_command_line_at_their_door_alone() -> None:
    door = ROOT / "pipelines/__main__.py"
    assert offenders([file for file in in_room("pipelines") if file != door], ("csflow.cli",)) == []
    assert offenders([door], ("csflow.cli",)) != []


def test_adapters_do_not_know_each_other() -> None:
    names = {path.stem for path in (ROOT / "csflow/adapters").iterdir() if path.stem not in ("__init__", "__pycache__")}
    for file in in_room("adapters"):
        own = file.relative_to(ROOT / "csflow/adapters").parts[0].removesuffix(".py")
        assert offenders([file], tuple(f"csflow.adapters.{name}" for name in names - {own})) == []


@pytest.mark.parametrize("system", ["mlflow", "kserve", "dvc", "great_expectations", "kubernetes"])
def test_an_outside_system_is_known_to_adapters_alone(system: str) -> None:
    others = [file for name, file in MODULES.items() if name.startswith("csflow") and room(name) != "adapters"]
    assert offenders(others, (system,)) == []


def test_object_stores_are_known_to_one_module_and_its_adapter() -> None:
    """The module is in system because weights are fetched with it too, before any adapter is there."""
    knowing = ("csflow.system.object_store", "csflow.adapters.storage")
    others = [file for name, file in MODULES.items() if not name.startswith(knowing)]
    assert offenders(others, ("boto3", "botocore")) == []


def test_services_are_made_at_the_entrances_alone() -> None:
    """Elsewhere they are handed down: nothing in the middle looks the environment up."""
    makers = {
        name.partition(".")[0] if not name.startswith("csflow") else room(name)
        for name, file in MODULES.items()
        if "Services.from_environment()" in file.read_text() or "Workspace.from_environment()" in file.read_text()
    }
    assert makers == {"cli", "components", "pipelines", "runs"}
    runs = {
        name for name, file in MODULES.items() if room(name) == "runs" and ".from_environment()" in file.read_text()
    }
    assert runs == {"csflow.runs.services", "csflow.runs.torchrun"}, "the second is an entrance: python -m"


def test_components_import_csflow_inside_their_body_only() -> None:
    for file in in_room("components"):
        top = [node for node in ast.parse(file.read_text()).body if isinstance(node, ast.Import | ast.ImportFrom)]
        modules = {node.module if isinstance(node, ast.ImportFrom) else node.names[0].name for node in top}
        assert not any(name and name.startswith("csflow") for name in modules), file


def test_the_rule_checker_sees_a_broken_rule() -> None:
    assert offenders([ROOT / "csflow/flow/cross_scale.py"], ("torch",)) != []


@pytest.mark.parametrize(
    ("module", "unwanted"),
    [
        ("csflow", ("torch", "mlflow", "kfp", "kserve", "dvc", "great_expectations")),
        ("csflow.config", ("torch", "pandas", "mlflow")),
        ("csflow.detector.detector", ("mlflow", "kfp", "kserve", "dvc", "great_expectations", "matplotlib")),
        ("csflow.detector.engine", ("torch", "timm", "onnx", "onnxruntime", "safetensors", "scipy", "pandas")),
        ("csflow.data.images", ("torch",)),
        ("csflow.adapters.deployment", ("torch", "mlflow", "kserve", "kubernetes", "prometheus_client")),
        ("csflow.runs.services", ("torch", "mlflow", "kserve", "kubernetes", "boto3", "pandas")),
        ("csflow.adapters.serving.responses", ("torch", "timm", "onnx", "safetensors")),
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
    seen: set[Path] = set()
    while todo:
        file = todo.pop()
        seen.add(file)
        todo += {MODULES[name] for name in own_imports(file)} - seen
    assert ROOT / "csflow/detector/calibration.py" in seen
    assert offenders(sorted(seen), ("torch", "timm", "onnx", "safetensors")) == []


def public_names(file: Path) -> set[str]:
    """Classes that a module defines for others."""
    return {
        node.name
        for node in ast.parse(file.read_text()).body
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_")
    }


def test_a_public_class_has_its_name_alone() -> None:
    owners = defaultdict(list)
    for name, file in MODULES.items():
        for each in public_names(file):
            owners[each].append(name)
    assert {each: names for each, names in owners.items() if len(names) > 1} == {}


def test_files_and_functions_fit_in_the_head() -> None:
    for name, file in MODULES.items():
        text = file.read_text()
        assert len(text.splitlines()) <= 350, name
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                assert (node.end_lineno or 0) - node.lineno < 50, f"{name}.{node.name}"


def test_the_package_has_few_entries() -> None:
    entries = [path.name for path in (ROOT / "csflow").iterdir() if path.name != "__pycache__"]
    assert len(entries) <= 18, sorted(entries)
