"""How many threads OpenMP starts, and how they wait; and that no gradient is computed with fewer."""

from __future__ import annotations

import os
import subprocess
import sys
from types import SimpleNamespace

import pytest

import csflow.system.threads as module
from csflow.system.threads import prepare_threads, share_of_threads, why_fewer

SLEEPING = {"OMP_WAIT_POLICY": "passive"}


@pytest.fixture
def eight_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine of eight cores, six of which the quota allows, before torch is imported."""
    monkeypatch.setattr(module, "cores_in_reach", lambda: 8)
    monkeypatch.setattr(module, "cores", lambda: 6)
    monkeypatch.setattr(sys, "modules", {})


@pytest.mark.usefixtures("eight_cores")
@pytest.mark.parametrize(
    ("given", "threads"),
    [
        ({}, "6"),
        ({"OMP_NUM_THREADS": ""}, "6"),
        ({"OMP_NUM_THREADS": "7"}, "7"),  # has the last word
        ({"OMP_NUM_THREADS": " 4,2 "}, " 4,2 "),
        ({"OMP_NUM_THREADS": "many"}, "6"),
        ({"OMP_THREAD_LIMIT": "3"}, "3"),
        ({"OMP_THREAD_LIMIT": "30"}, "6"),
        ({"OMP_NUM_THREADS": "7", "OMP_THREAD_LIMIT": "3"}, "3"),
        ({"OMP_NUM_THREADS": "2", "OMP_THREAD_LIMIT": "3"}, "2"),
        ({"OMP_MAX_ACTIVE_LEVELS": "0"}, "1"),
        ({"OMP_MAX_ACTIVE_LEVELS": "2"}, "6"),
    ],
)
def test_no_more_threads_than_quota_choice_and_limits_allow(given: dict[str, str], threads: str) -> None:
    environment = dict(given)
    prepare_threads(environment)
    assert environment == given | SLEEPING | {"OMP_NUM_THREADS": threads}
    again = dict(environment)
    prepare_threads(again)
    assert again == environment


def test_a_machine_of_ones_own_keeps_the_default_number(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "cores_in_reach", lambda: 8)
    monkeypatch.setattr(module, "cores", lambda: 8)
    environment: dict[str, str] = {}
    prepare_threads(environment)
    assert environment == SLEEPING


@pytest.mark.usefixtures("eight_cores")
def test_waiting_is_a_choice_and_a_varying_number_is_not() -> None:
    environment = {"OMP_NUM_THREADS": "2", "OMP_WAIT_POLICY": "active", "OMP_DYNAMIC": "TRUE"}
    prepare_threads(environment)
    assert environment == {"OMP_NUM_THREADS": "2", "OMP_WAIT_POLICY": "active", "OMP_DYNAMIC": "false"}


@pytest.mark.usefixtures("eight_cores")
def test_training_processes_share_the_cores_unless_a_number_was_chosen() -> None:
    assert share_of_threads(2, {}) == 3
    assert share_of_threads(2, {"OMP_NUM_THREADS": "6"}) == 3  # which prepare_threads made of the quota
    assert share_of_threads(2, {"OMP_NUM_THREADS": "2"}) == 2
    assert share_of_threads(9, {}) == 1


def test_torch_that_is_there_already_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[int] = []
    monkeypatch.setattr(module, "cores_in_reach", lambda: 8)
    monkeypatch.setattr(module, "cores", lambda: 6)
    monkeypatch.setitem(sys.modules, "torch", SimpleNamespace(set_num_threads=told.append))
    prepare_threads({})
    assert told == [6]
    prepare_threads({"OMP_NUM_THREADS": "4"})
    assert told == [6]


@pytest.mark.parametrize(
    ("given", "threads", "reason"),
    [
        ({}, 8, None),
        ({"OMP_DYNAMIC": "True"}, 2, "OMP_DYNAMIC=true"),
        ({"OMP_DYNAMIC": "true"}, 1, None),
        ({"OMP_DYNAMIC": "false"}, 8, None),
        ({"OMP_THREAD_LIMIT": "4"}, 4, None),
        ({"OMP_THREAD_LIMIT": "4"}, 5, "OMP_THREAD_LIMIT=4"),
        ({"OMP_MAX_ACTIVE_LEVELS": "0"}, 2, "OMP_MAX_ACTIVE_LEVELS=0"),
        ({"OMP_MAX_ACTIVE_LEVELS": "1"}, 8, None),
    ],
)
def test_what_makes_threads_missing_is_named(given: dict[str, str], threads: int, reason: str | None) -> None:
    assert why_fewer(threads, given) == reason


TRAINS = """
import sys
from csflow.system import cores
from csflow.system.threads import prepare_threads
if sys.argv[1] == "prepared":
    cores.cpu_quota = lambda: 2.0
    prepare_threads()
import torch
from csflow.flow.gradient_check import require_sound_gradients
require_sound_gradients(torch.device("cpu"))
print("right with", torch.get_num_threads())
"""


def test_gradients_are_right_whatever_openmp_was_told() -> None:
    """Torch counts on two threads and OpenMP starts one: oneDNN leaves half of each gradient as it found the memory.

    That is not computed here: on processors with AVX-512 it would not end.
    """
    told = {"OMP_DYNAMIC": "true", "OMP_THREAD_LIMIT": "1"}
    assert run("prepared", **told).stdout == "right with 1\n"
    refused = run("as it is", OMP_NUM_THREADS="2", **told)
    assert refused.returncode == 1
    assert "ModelError: OMP_DYNAMIC=true makes OpenMP start fewer threads than torch counts on" in refused.stderr
    assert "Unset OMP_DYNAMIC, OMP_THREAD_LIMIT" in refused.stderr


def run(argument: str, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = {key: value for key, value in os.environ.items() if not key.startswith("OMP_")} | variables
    command = [sys.executable, "-c", TRAINS, argument]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
