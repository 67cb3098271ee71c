"""A workspace in which a small line was ablated: real backbone and models, MLflow on SQLite, a plain data folder."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from csflow.ablation import timing
from csflow.ablation.measure import Bench
from csflow.ablation.run import run_ablation
from csflow.adapters.versioning import CheckedOut
from csflow.config import LineConfig
from csflow.data.manifest import Manifest, build_manifest
from csflow.runs import checkout
from csflow.runs.services import Services
from csflow.system.workspace import Workspace
from tests.csflow.ablation.small_line import draw, measured_at_once, request


@pytest.fixture(scope="session")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("images")
    for seed, name in enumerate(("plates", "tiles")):
        draw(root / name, seed)
    return root


@pytest.fixture(scope="session")
def ablation_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One for all tests: a tracking database takes seconds to make, and models are found again."""
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def workspace(ablation_home: Path, images: Path) -> Iterator[Workspace]:
    """The workspace, with images from a plain folder and short, undisturbed timing."""
    patch = pytest.MonkeyPatch()
    patch.delenv("MLFLOW_TRACKING_URI", raising=False)

    def materialise(line: LineConfig, _: Workspace) -> tuple[Manifest, CheckedOut]:
        root = images / line.data.path
        return build_manifest(root, line=line.line, roles=line.roles), CheckedOut(root, "c0ffee", "0.dir")

    patch.setattr(checkout, "materialise", materialise)
    patch.setattr(timing, "REPETITIONS", 5)
    patch.setattr(timing, "_cores_missing", lambda *_: 0.0)  # whatever else runs on the machine of the tests
    yield Workspace(ablation_home)
    patch.undo()


@pytest.fixture(scope="module")
def first(workspace: Workspace) -> Path:
    """An ablation of four variants, of which two are the same experiment; nothing is faked."""
    return run_ablation(request(groups=("map", "standardization")), Services.of(workspace))


@pytest.fixture
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Bench, "measure", measured_at_once)
    monkeypatch.setattr(Bench, "timed_here", lambda _, __, row: row)
