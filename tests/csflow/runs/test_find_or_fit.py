"""How many processes fit a line, and that no two fit the same model."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch

from csflow.config import DataConfig, LineConfig, ResourcesConfig, TrainingConfig
from csflow.features.cache_manifest import CacheManifest
from csflow.runs import find_or_fit as module
from csflow.runs.find_or_fit import find_or_fit, processes_for
from csflow.system.files import new_directory

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


def test_two_that_want_the_same_model_fit_it_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fits: list[str] = []

    def fit(line: LineConfig, cached: CacheManifest, images: list[str], folder: Path, publish: Any, **_: Any) -> None:
        fits.append(threading.current_thread().name)
        with new_directory(folder) as made:
            time.sleep(0.5)
            (made / "training.json").write_text("[]")

    monkeypatch.setattr(module, "read_epochs", lambda folder: [])  # the model is sound
    monkeypatch.setattr(module, "fit_here", fit)
    cached = CacheManifest(tmp_path / "features", "space", ((1, 1, 1),), ("a" * 64,))
    with ThreadPoolExecutor(3) as pool:
        asked = [pool.submit(find_or_fit, LINE, cached, ["a" * 64], tmp_path / "models") for _ in range(3)]
        folders = {each.result() for each in asked}
    assert len(fits) == 1
    assert list((tmp_path / "models").iterdir()) == list(folders), "the lock is gone"
