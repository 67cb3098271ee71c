"""Training through torchrun, on the CPU: the model the step would have made, its errors, its end on a signal."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from csflow.config import DataConfig, FlowConfig, LineConfig, TrainingConfig
from csflow.errors import CacheError, CsflowError, ModelError, UsageError
from csflow.features.cache_manifest import CacheManifest
from csflow.features.entries import FeatureSpace
from csflow.flow.checkpoint import CHECKPOINT_FILE, TrainingProgress
from csflow.flow.training import EpochResult
from csflow.runs.find_or_fit import find_or_fit
from csflow.runs.fitting import model_folder, read_epochs
from csflow.runs.torchrun import Job, _failure, main

ROOT = Path(__file__).resolve().parents[3]
TRAINING = TrainingConfig(epochs=2, batch_size=8, learning_rate=2e-3, device="cpu", precision="float32")
LINE = LineConfig(line="two", data=DataConfig(path="data"), flow=FlowConfig(blocks=1, hidden=8), training=TRAINING)
SHAPES = ((6, 4, 4), (6, 2, 2))


def trained_with(**changes: object) -> LineConfig:
    return LINE.model_copy(update={"training": TRAINING.model_copy(update=changes)})


@pytest.fixture
def cached(tmp_path: Path) -> CacheManifest:
    """Features of 21 images in a store."""
    draw = np.random.default_rng(0)
    manifest = CacheManifest(tmp_path / "features", "space", SHAPES, tuple(f"{n:064d}" for n in range(21)))
    space = FeatureSpace(manifest.store / manifest.space, SHAPES)
    for sha in manifest.entries:
        space.write(sha, draw.normal(2.0, 3.0, space.values).astype(np.float16))
    return manifest


@pytest.mark.slow
def test_two_processes_make_the_model_of_one_under_the_same_key(tmp_path: Path, cached: CacheManifest) -> None:
    images = list(cached.entries)
    told: dict[str, list[EpochResult]] = {"one": [], "two": []}
    one = find_or_fit(LINE, cached, images, tmp_path / "one", told["one"].append, processes=1)
    two = find_or_fit(LINE, cached, images, tmp_path / "two", told["two"].append, processes=2)
    assert one.name == two.name
    assert [path.name for path in two.parent.iterdir()] == [two.name], "the checkpoint is gone once the model is safe"
    expected, found = load_file(one / "model.safetensors"), load_file(two / "model.safetensors")
    for name, tensor in expected.items():  # stored in half precision: 2 ** -11
        torch.testing.assert_close(found[name], tensor, rtol=1e-3, atol=1e-4)
    assert [result.nll for result in told["two"]] == pytest.approx([r.nll for r in told["one"]], rel=1e-5)
    assert read_epochs(two) == told["two"]
    told["again"] = []
    find_or_fit(LINE, cached, images, tmp_path / "two", told["again"].append)
    assert told["again"] == told["two"], "found again, whoever looks for it"


@pytest.mark.slow
def test_an_error_of_a_process_comes_back_as_what_it_is(tmp_path: Path, cached: CacheManifest) -> None:
    line = trained_with(learning_rate=1e6, max_grad_norm=1e6)
    with pytest.raises(ModelError, match=r"Training diverged in epoch 1, .*Lower\s+training.learning_rate"):
        find_or_fit(line, cached, list(cached.entries), tmp_path / "models", processes=2)


# As the step does it, where SIGTERM comes from outside; says when the first epoch is over.
SCRIPT = """
import sys
from pathlib import Path
from csflow.features.cache_manifest import CacheManifest
from csflow.config import parse_line_json
from csflow.runs.find_or_fit import find_or_fit
folder = Path(sys.argv[1])
cached = CacheManifest.load(folder / "features.json")
line = parse_line_json((folder / "line.json").read_text())
find_or_fit(line, cached, list(cached.entries), folder / "models", lambda r: (folder / "began").touch(), processes=2)
"""


@pytest.mark.slow
def test_sigterm_leaves_a_checkpoint_that_one_process_goes_on_from(tmp_path: Path, cached: CacheManifest) -> None:
    line = trained_with(epochs=20_000)
    cached.save(tmp_path / "features.json")
    (tmp_path / "line.json").write_text(line.model_dump_json())
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(
        [sys.executable, "-c", SCRIPT, str(tmp_path)], env=environment, stderr=subprocess.PIPE, text=True
    )
    deadline = time.monotonic() + 400
    while not (tmp_path / "began").exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    _, output = process.communicate(timeout=120)
    assert process.returncode == 128 + signal.SIGTERM, output
    folder = model_folder(line, cached, list(cached.entries), tmp_path / "models")
    with safe_open(folder.with_suffix(".work") / CHECKPOINT_FILE, framework="pt") as file:
        known = TrainingProgress.from_json(file.metadata()["progress"]).epoch - 1
    told: list[int] = []

    def stop(result: EpochResult) -> None:
        told.append(result.epoch)
        if result.epoch > known + 1:
            raise Enough

    with pytest.raises(Enough):
        find_or_fit(line, cached, list(cached.entries), tmp_path / "models", stop, processes=1)
    assert told == list(range(1, known + 3)), "the whole curve, and on from the checkpoint"


class Enough(Exception):
    """The resumed training has shown what it should."""


def test_what_went_wrong_first_hand_is_told(tmp_path: Path) -> None:
    job = tmp_path / "job.json"
    lost = {"kind": None, "message": "RuntimeError: Connection closed by peer"}
    (tmp_path / "error-0.json").write_text(json.dumps(lost))
    assert "Connection closed" in str(_failure(job, 2, 1))
    (tmp_path / "error-1.json").write_text(json.dumps({"kind": "CacheError", "message": "Features x are damaged."}))
    found = _failure(job, 2, 1)
    assert (type(found), str(found)) == (CacheError, "Features x are damaged.")


def test_a_process_that_was_killed_says_what_to_do(tmp_path: Path) -> None:
    found = _failure(tmp_path / "job.json", 4, 137)
    assert type(found) is CsflowError
    assert "4 processes ended with status 137" in str(found)
    assert "training.batch_size" in str(found)


def test_a_job_by_hand(tmp_path: Path, cached: CacheManifest, capsys: pytest.CaptureFixture[str]) -> None:
    """Without torchrun the command is a group of one; its errors are told as everywhere."""
    images = list(cached.entries)
    folder = model_folder(LINE, cached, images, tmp_path / "models")
    Job(LINE, images, folder).save(tmp_path / "job.json", cached)
    assert main(["fit", str(tmp_path / "job.json")]) == 0
    assert find_or_fit(LINE, cached, images, tmp_path / "models") == folder
    assert "found the model of these 21 images" in capsys.readouterr().err
    assert main(["fit", str(tmp_path / "nothing.json")]) == UsageError.exit_code
    assert "prepare LINE" in capsys.readouterr().err
