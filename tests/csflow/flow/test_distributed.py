"""Two gloo processes against one: the same curve and weights at the same batches, whatever falls in between."""

from __future__ import annotations

import json
import os
import runpy
import signal
import socket
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from csflow.errors import ModelError, UsageError
from csflow.flow.distributed import ALONE, ProcessGroup, join_process_group

# Plays the fits that a JSON file names; every process writes what it became, the epochs it was told and what it read.
SCRIPT = """
import json, os, sys, time
from dataclasses import asdict
from pathlib import Path
import torch
sys.path.insert(0, sys.argv[2])
from safetensors.torch import save_file
from test_training import FLOW, PLAIN, Images, Killed, crash_at, run
from csflow.flow.distributed import join_process_group
from csflow.errors import ModelError

folder = Path(sys.argv[1])
with join_process_group(device="cpu") as group:
    for case in json.loads((folder / "cases.json").read_text()):
        told = []
        crash = case.get("crash")
        images = Images(case.get("images", 21), crash_at(crash) if crash else lambda calls: None)
        hold = case.get("hold")
        if hold:
            def on_batch(calls):
                if calls == hold:
                    (folder / f"held-{group.rank}").touch()
                    while not (folder / "go").exists():
                        time.sleep(0.01)
            images.on_batch = on_batch
        flow = FLOW if case.get("standardize") else PLAIN
        try:
            result = run(folder / case["run"], images, flow=flow, on_epoch=told.append, group=group, **case["changes"])
        except (Killed, ModelError) as error:
            (folder / f"{case['name']}-{group.rank}.txt").write_text(f"{type(error).__name__}: {error}")
            continue
        state = {name: tensor.contiguous() for name, tensor in result.state_dict().items()}
        save_file(state, folder / f"{case['name']}-{group.rank}.safetensors")
        heard = {"told": [asdict(r) for r in told], "asked": images.asked}
        (folder / f"{case['name']}-{group.rank}.json").write_text(json.dumps(heard))
"""
EVERY_STEP = {"checkpoint_seconds": 1e-9}
single = SimpleNamespace(**runpy.run_path(str(Path(__file__).with_name("test_training.py"))))
"""The small fits of one process."""


def start(folder: Path, cases: list[dict[str, Any]]) -> list[subprocess.Popen[str]]:
    """Two processes with what torchrun would tell them, without the seconds it takes to load itself."""
    (folder / "cases.json").write_text(json.dumps(cases))
    here = Path(__file__).parent
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    told = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", SCRIPT, str(folder), str(here)]
    environment = os.environ | {"PYTHONPATH": str(here.parents[2])} | told
    return [
        subprocess.Popen(command, env=environment | {"RANK": rank}, stderr=subprocess.PIPE, text=True) for rank in "01"
    ]


CASES: dict[str, dict[str, Any]] = {
    # 21 images in batches of 8 leave 5 for the last one: 2 for the first process and 3 for the second.
    "plain": {"changes": {}},
    "standardised": {"changes": {}, "standardize": True},
    "clipped": {"changes": {"max_grad_norm": 0.02}},
    "averaged": {"changes": {"averaging": 0.6, "schedule": "cosine"}},
    "one left over": {"changes": {"batch_size": 4}},
}


@pytest.fixture(scope="module")
def fits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every case by two processes, the crashes and resumes by them, too; one start for all, for it takes seconds."""
    folder = tmp_path_factory.mktemp("fits")
    with pytest.raises(single.Killed):  # one process begins, two go on
        single.run(folder / "resumed", single.Images(21, single.crash_at(6)), **EVERY_STEP, averaging=0.6)
    cases = [{"name": name, "run": f"run {name}", **case} for name, case in CASES.items()]
    cases += [{"name": "resumed", "run": "resumed", "changes": {"averaging": 0.6}}]
    cases += [{"name": "begun", "run": "begun", "changes": EVERY_STEP, "crash": 6}]
    cases += [{"name": "diverged", "run": "diverged", "changes": {"learning_rate": 1e6, "max_grad_norm": 1e6}}]
    cases += [{"name": "held", "run": "held", "changes": {}, "hold": 5}]
    processes = start(folder, cases)
    try:
        wait_for([folder / "held-0", folder / "held-1"], processes)
        processes[1].send_signal(signal.SIGTERM)
        (folder / "go").touch()
        outputs = [process.communicate(timeout=60)[1] for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [143, 143], outputs
    return folder


def wait_for(files: list[Path], processes: list[subprocess.Popen[str]]) -> None:
    deadline = time.monotonic() + 500
    while not all(file.exists() for file in files) and time.monotonic() < deadline:
        assert all(process.poll() is None for process in processes), [p.communicate()[1] for p in processes]
        time.sleep(0.02)


def one_process(folder: Path, name: str) -> tuple[dict[str, torch.Tensor], list[dict[str, Any]], list[list[int]]]:
    case, told, images = CASES[name], [], single.Images(21)
    flow = single.FLOW if case.get("standardize") else single.PLAIN
    result = single.run(folder / f"alone {name}", images, flow=flow, on_epoch=told.append, **case["changes"])
    return result.state_dict(), [asdict(r) for r in told], images.asked


def assert_close(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_two_processes_train_what_one_does(fits: Path, name: str) -> None:
    expected, told, asked = one_process(fits, name)
    both = [load_file(fits / f"{name}-{rank}.safetensors") for rank in (0, 1)]
    assert_close(both[0], expected)
    assert all(torch.equal(both[0][key], both[1][key]) for key in both[0]), "processes drift apart"
    heard = [json.loads((fits / f"{name}-{rank}.json").read_text()) for rank in (0, 1)]
    assert heard[1]["told"] == [], "the first process tells, once"
    for mine, theirs in zip(heard[0]["told"], told, strict=True):
        for key in ("nll", "grad_norm"):
            assert mine[key] == pytest.approx(theirs[key], rel=1e-5)
        assert mine["learning_rate"] == theirs["learning_rate"]
    statistics = 1 if CASES[name].get("standardize") else 0
    first, second = (part["asked"][statistics:] for part in heard)
    size = CASES[name]["changes"].get("batch_size", 8)
    lengths = [(len(batch) // 2, len(batch) - len(batch) // 2) for batch in asked[statistics:]]
    assert [len(batch) for batch in first] == [a for a, _ in lengths if a]
    assert [len(batch) for batch in second] == [b for _, b in lengths]
    if size == 8:
        assert [a + b for a, b in zip(first, second, strict=True)] == asked[statistics:], "the same shuffled batches"


@pytest.mark.slow
def test_a_checkpoint_of_one_process_is_resumed_by_two_and_back(fits: Path) -> None:
    expected = single.run(fits / "whole", single.Images(21), averaging=0.6).state_dict()
    resumed = load_file(fits / "resumed-0.safetensors")
    assert_close(resumed, expected)
    heard = json.loads((fits / "resumed-0.json").read_text())
    assert len(heard["asked"]) == 9 - 5, "two processes went on where one was killed"
    assert (fits / "begun-0.txt").read_text().startswith("Killed")
    images = single.Images(21)
    assert_close(single.run(fits / "begun", images).state_dict(), one_process(fits, "plain")[0])
    assert len(images.asked) == 9 - 5, "one process went on where two were killed"


@pytest.mark.slow
def test_divergence_is_found_in_every_process(fits: Path) -> None:
    for rank in (0, 1):
        assert (fits / f"diverged-{rank}.txt").read_text().startswith("ModelError: Training diverged in epoch 1")


@pytest.mark.slow
def test_a_signal_to_one_process_ends_all_after_the_same_step_with_a_checkpoint(fits: Path) -> None:
    images = single.Images(21)
    assert_close(single.run(fits / "held", images).state_dict(), one_process(fits, "plain")[0])
    assert len(images.asked) == 9 - 5


def test_shares_cover_a_batch_once_and_differ_by_one_at_most() -> None:
    for size in (1, 2, 3, 8):
        for count in range(18):
            shares = [ProcessGroup(rank, size).share(range(count)) for rank in range(size)]
            assert [i for share in shares for i in share] == list(range(count))
            lengths = {len(share) for share in shares}
            assert max(lengths) - min(lengths) <= 1


def test_alone_without_torchrun(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with join_process_group() as group:
        assert group is ALONE
    assert ALONE.agree(15) == 15


def test_more_processes_than_devices_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"WORLD_SIZE": "4", "LOCAL_WORLD_SIZE": "4", "LOCAL_RANK": "3", "RANK": "3"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(ModelError, match=r"4 processes .* shows 2 CUDA devices"), join_process_group(device="cuda"):
        pass
    with pytest.raises(UsageError, match="mps"), join_process_group(device="mps"):
        pass
