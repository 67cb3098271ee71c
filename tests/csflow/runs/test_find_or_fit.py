"""How many processes fit a line."""

from __future__ import annotations

import pytest
import torch

from csflow.config import DataConfig, LineConfig, ResourcesConfig, TrainingConfig
from csflow.runs.find_or_fit import processes_for

LINE = LineConfig(line="two", data=DataConfig(path="data"))


def test_a_line_trains_on_the_gpus_it_asks_for_if_all_are_here(monkeypatch: pytest.MonkeyPatch) -> None:
    def processes(gpus: int, **changes: object) -> int:
        training = TrainingConfig(batch_size=8).model_copy(update=changes)
        updates = {"resources": ResourcesConfig(gpus=gpus), "training": training}
        return processes_for(LINE.model_copy(update=updates))

    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    assert [processes(gpus) for gpus in (0, 1, 2, 4, 5)] == [1, 1, 2, 4, 1]
    assert processes(4, device="cuda") == 4
    assert processes(4, device="cpu") == 1
    assert processes(4, batch_size=3) == 3, "a process without an image would only wait"
    padim = LINE.model_copy(update={"detector": "padim", "resources": ResourcesConfig(gpus=4)})
    assert processes_for(padim) == 1, "nothing is trained in epochs"
