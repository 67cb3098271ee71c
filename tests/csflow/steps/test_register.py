"""A detector that was damaged after it was written is not registered."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import pytest

from csflow.adapters.mlflow.registry import Registry
from csflow.adapters.mlflow.tracking import Tracker
from csflow.config import DataConfig, LineConfig
from csflow.errors import ModelError
from csflow.runs.context import RunContext
from csflow.runs.services import Services
from csflow.steps.register import register
from csflow.system.workspace import Workspace
from tests.damage import damages, inflict

LINE = LineConfig(line="tiles", data=DataConfig(path="tiles"))


@pytest.mark.parametrize("name", ["model.onnx", "backbone.onnx", "model.safetensors", "calibration.json"])
def test_a_damaged_detector_is_not_registered(
    make_detector: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr(Tracker, "step", lambda *_: nullcontext())
    monkeypatch.setattr(Registry, "register", lambda *_, **__: pytest.fail("a damaged detector was registered"))
    directory, context = make_detector("tiles"), tmp_path / "context"
    RunContext(LINE, "run", "rev", "md5", "digest", "key", str(tmp_path), False, "").save(context)
    sound = (directory / name).read_bytes()
    for _, content in damages(sound, flips=3):
        inflict(directory / name, content)
        with pytest.raises(ModelError):
            register(Services.of(Workspace(tmp_path / "home")), context, tmp_path / "manifest", directory)
