"""The steps that KFP runs."""

from __future__ import annotations

import pytest

from csflow.ablation.rows import UNFINISHED
from csflow.ablation.steps import plan_step
from csflow.runs.services import Services
from csflow.system.workspace import Workspace
from tests.csflow.ablation.small_line import planned, request, store


def test_the_pipelines_loop_has_the_same_order(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, keys = planned(workspace, 3.4)
    store(workspace, keys["mean"], UNFINISHED)
    monkeypatch.setenv("CSFLOW_HOME", str(workspace.root))
    asked = request(overrides={"flow.clamp": 3.4}).model_dump_json()
    assert plan_step(Services.from_environment(), asked) == (str(folder), [keys["nll"], keys["max"], keys["mean"]])
