"""What counts as the code of a result: all that is imported, and nothing that is not; words never."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from csflow.config import KINDS, DataConfig, LineConfig
from csflow.runs.identity import DETECTOR_ROOTS, MODEL_ROOTS, detector_code, model_code
from csflow.system import code_identity
from csflow.system.code_identity import code_version, modules_of

SOURCE = '''"""A module."""

from __future__ import annotations

from typing import TYPE_CHECKING

from plant.tools import rate

if TYPE_CHECKING:
    from plant.hints import Hint

SPEED = 2
"""A rate."""


def go(hint: "Hint") -> float:
    """Go."""
    from plant.late import later

    return rate(SPEED) + later()
'''


@pytest.fixture
def plant(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., str]]:
    """A function that writes a package ``plant`` and returns the identity of ``plant.main``."""
    folder = tmp_path / "plant"
    folder.mkdir()
    monkeypatch.syspath_prepend(tmp_path)

    def version(**changed: str) -> str:
        files = {
            "__init__": "",
            "main": SOURCE,
            "tools": "def rate(speed: int) -> float:\n    return speed / 3\n",
            "late": "def later() -> float:\n    return 1.0\n",
            "hints": "class Hint: ...\n",
            "apart": "UNUSED = 1\n",
        }
        for name, text in (files | changed).items():
            file = folder / f"{name.replace('.', '/')}.py"
            file.parent.mkdir(exist_ok=True)
            file.write_text(text)
        forget()
        return code_version("plant.main")

    yield version
    forget()


def forget() -> None:
    for cached in (code_version, code_identity._module, code_identity._file, code_identity._collected):
        cached.cache_clear()
    for name in [name for name in sys.modules if name.partition(".")[0] == "plant"]:
        del sys.modules[name]
    importlib.invalidate_caches()


@pytest.mark.parametrize(
    "changed",
    [
        {"main": SOURCE.replace("SPEED = 2", "SPEED = 3")},
        {"tools": "def rate(speed: int) -> float:\n    return speed / 4\n"},
        {"late": "def later() -> float:\n    return 2.0\n"},
    ],
    ids=["a constant", "an imported module", "a module imported inside a function"],
)
def test_other_code_has_another_identity(plant: Callable[..., str], changed: dict[str, str]) -> None:
    assert plant(**changed) != plant()


@pytest.mark.parametrize(
    "changed",
    [
        {"main": SOURCE.replace('"""Go."""', '"""Go on, and say how."""').replace('"""A rate."""', '"""A speed."""')},
        {"main": "# A remark.\n" + SOURCE.replace("SPEED = 2", "SPEED  =  2  # metres per second")},
        {"hints": "class Hint:\n    size = 1\n"},
        {"main": SOURCE.replace("    from plant.hints import Hint", "    from plant.other import Hint")},
        {"apart": "UNUSED = 2\n"},
    ],
    ids=[
        "docstrings",
        "comments and layout",
        "a module for type checkers",
        "an import for type checkers",
        "a module nobody imports",
    ],
)
def test_what_cannot_change_a_result_does_not_count(plant: Callable[..., str], changed: dict[str, str]) -> None:
    assert plant(**changed) == plant()


def test_only_the_branch_that_runs_counts(plant: Callable[..., str]) -> None:
    """Both ways to write the condition, with an ``else`` that is what runs."""
    branches = SOURCE.replace("if TYPE_CHECKING:", "if typing.TYPE_CHECKING:").replace("import TYPE_CHECKING", "Any")
    source = branches.replace(" import Hint\n", " import Hint\nelse:\n    from plant.apart import UNUSED\n")
    source = source.replace("from typing Any", "import typing")
    assert plant(main=source, hints="class Hint:\n    size = 1\n") == plant(main=source)
    assert plant(main=source, apart="UNUSED = 2\n") != plant(main=source)
    assert {"plant.apart", "plant.late"} <= modules_of("plant.main")
    assert "plant.hints" not in modules_of("plant.main")


SHAPES = {
    "main": "from plant.shapes import Round\n",
    "shapes.__init__": "from plant.shapes.curved import Round\nfrom plant.shapes.square import Square\n__all__ = []\n",
    "shapes.curved": "class Round: ...\n",
    "shapes.square": "class Square: ...\n",
}


@pytest.mark.parametrize(
    ("changed", "counts"),
    [
        ({"shapes.curved": "class Round:\n    sides = 1\n"}, True),
        ({"shapes.square": "class Square:\n    sides = 4\n"}, False),
        ({"shapes.__init__": SHAPES["shapes.__init__"] + "from plant.tools import rate\n"}, False),
        ({"shapes.__init__": SHAPES["shapes.__init__"] + "SIDES = 4\n"}, True),
    ],
    ids=["the module of the name", "another module", "another name", "code of the package's own"],
)
def test_a_package_of_names_counts_by_the_names_taken_from_it(
    plant: Callable[..., str], changed: dict[str, str], counts: bool
) -> None:
    assert (plant(**SHAPES) != plant(**SHAPES | changed)) is counts


@pytest.mark.parametrize(
    "statement",
    ["from .tools import rate", "from . import tools", "from .deep.inner import wheel", "from plant import SPOKES"],
)
def test_relative_imports_and_the_package_itself_count(plant: Callable[..., str], statement: str) -> None:
    inner = {"deep.__init__": "", "deep.inner": "from ..tools import rate\nfrom .. import late\n\nwheel = 1\n"}
    files = {"main": f"{statement}\n", "__init__": "SPOKES = 8\n", **inner}
    changed = {
        "tools": "def rate(speed: int) -> float:\n    return speed / 4\n",
        "__init__": "SPOKES = 9\n",
    }
    counts = ["__init__"] if "SPOKES" in statement else ["__init__", "tools"]
    for name in changed:
        assert (plant(**files) != plant(**files | {name: changed[name]})) is (name in counts)


def test_a_module_outside_of_any_package_counts(tmp_path: Path, plant: Callable[..., str]) -> None:
    """A kind of detector of one's own may be a single file."""
    plant()
    file = tmp_path / "lonely.py"
    found = []
    for text in ("from plant.tools import rate\n", "from plant.tools import rate\nSPEED = 2\n"):
        file.write_text(text)
        forget()
        found.append(code_version("lonely"))
    assert found[0] != found[1]
    assert "csflow" not in modules_of("lonely", "csflow.config")


def test_a_module_that_is_not_there_is_refused(plant: Callable[..., str]) -> None:
    plant()
    with pytest.raises(ModuleNotFoundError, match=r"plant\.nothing"):
        code_version("plant.main", "plant.nothing")


@pytest.mark.parametrize("kind", KINDS)
def test_the_code_of_a_detector_is_the_method_and_no_outside_system(kind: str) -> None:
    """Defects drawn on calibration images fix the colours of its maps, so drawing them is a part of it."""
    code = modules_of(*DETECTOR_ROOTS, KINDS[kind].implementation)
    assert {"csflow.detector.calibration", "csflow.detector.boxes", "csflow.detector.graph", "csflow.data.images",
            "csflow.data.manifest", "csflow.features.extraction", "csflow.flow.cross_scale"} <= code  # fmt: skip
    assert code.isdisjoint({"csflow.config.loading", "csflow.system.project", "csflow.system.workspace"})
    rooms = {name.split(".")[1] for name in code}
    assert rooms.isdisjoint({"adapters", "cli", "reporting", "steps", "release", "ablation", "metrics"})


def test_a_model_does_not_depend_on_how_it_is_shown_or_calibrated() -> None:
    code = modules_of(*MODEL_ROOTS, KINDS["csflow"].implementation)
    assert {"csflow.flow.training", "csflow.detector.scoring", "csflow.detector.model_file",
            "csflow.features.entries", "csflow.features.cache_manifest"} <= code  # fmt: skip
    shown = {"boxes", "heatmap", "p_values", "calibration", "prediction", "engine", "graph", "directory"}
    assert code.isdisjoint({f"csflow.detector.{name}" for name in shown})


def test_a_module_imported_by_a_computed_name_is_a_root() -> None:
    """The source of the caller does not tell of it; only the kinds of detector are imported so."""
    code = modules_of(*DETECTOR_ROOTS)
    files = {name: code_identity._file(name) for name in code}
    callers = {name for name, file in files.items() if file and "import_module(" in file.read_text()}
    assert callers == {"csflow.detector.fitting"}


def test_a_kind_is_known_by_its_own_code_alone() -> None:
    lines = [LineConfig(line="tiles", data=DataConfig(path="x"), detector=kind) for kind in ("padim", "patchcore")]
    assert model_code(lines[0]) != model_code(lines[1])
    assert "csflow.detector.kinds.patchcore" not in modules_of(*MODEL_ROOTS, KINDS["padim"].implementation)
    assert detector_code(lines[0]) != model_code(lines[0])
