"""Cores that a process may use: its affinity mask, and the quotas of its control groups."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from csflow.system import cores as module
from csflow.system.cores import cores, cpu_quota


class Machine:
    """A ``/proc/self`` and control groups below a folder."""

    def __init__(self, root: Path) -> None:
        self.proc = root / "proc"
        self.proc.mkdir()
        self.mounts = ["22 1 0:5 / /proc rw - proc proc rw", "malformed"]
        self.groups: list[str] = []

    def mount(self, point: Path, kind: str, options: str = "rw", root: str = "/") -> None:
        point.mkdir(parents=True, exist_ok=True)
        escaped = str(point).replace(" ", r"\040")
        self.mounts.append(f"30 23 0:26 {root} {escaped} rw,nosuid shared:4 - {kind} {kind} {options}")

    def quota(self) -> float | None:
        (self.proc / "mountinfo").write_text("\n".join(self.mounts) + "\n")
        (self.proc / "cgroup").write_text("\n".join(self.groups) + "\n")
        return cpu_quota(self.proc)


def limit(folder: Path, text: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "cpu.max").write_text(text + "\n")


def limit_v1(folder: Path, quota: int, period: int = 100_000) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "cpu.cfs_quota_us").write_text(f"{quota}\n")
    (folder / "cpu.cfs_period_us").write_text(f"{period}\n")


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


@pytest.mark.parametrize(
    ("text", "quota"), [("200000 100000", 2.0), ("150000 100000", 1.5), ("max 100000", None), ("50000 100000", 0.5)]
)
def test_a_container_with_its_own_view_of_version_2(
    machine: Machine, tmp_path: Path, text: str, quota: float | None
) -> None:
    machine.mount(tmp_path / "cg", "cgroup2")
    machine.groups = ["0::/"]
    limit(tmp_path / "cg", text)
    assert machine.quota() == quota


def test_the_tightest_of_nested_groups_counts(machine: Machine, tmp_path: Path) -> None:
    machine.mount(tmp_path / "cg", "cgroup2")
    machine.groups = ["0::/kubepods/pod1/main"]
    limit(tmp_path / "cg/kubepods", "1600000 100000")
    limit(tmp_path / "cg/kubepods/pod1", "300000 100000")
    limit(tmp_path / "cg/kubepods/pod1/main", "max 100000")
    limit(tmp_path / "cg/kubepods/pod2", "100000 100000")
    assert machine.quota() == 3.0


def test_version_1_is_read_from_the_controller_of_the_cpu(machine: Machine, tmp_path: Path) -> None:
    machine.mount(tmp_path / "memory", "cgroup", "rw,memory")
    machine.mount(tmp_path / "cpu", "cgroup", "rw,cpu,cpuacct")
    machine.groups = ["9:memory:/other", "4:cpu,cpuacct:/docker/abc", "0::/"]
    limit_v1(tmp_path / "memory/docker/abc", 100_000)
    limit_v1(tmp_path / "cpu", -1)
    limit_v1(tmp_path / "cpu/docker/abc", 500_000, 200_000)
    assert machine.quota() == 2.5


def test_a_container_that_sees_its_path_from_the_machines_root(machine: Machine, tmp_path: Path) -> None:
    machine.mount(tmp_path / "cpu", "cgroup", "rw,cpu", root="/docker/abc")
    machine.groups = ["4:cpu:/docker/abc/worker"]
    limit_v1(tmp_path / "cpu", 400_000)
    limit_v1(tmp_path / "cpu/worker", 300_000)
    assert machine.quota() == 3.0
    machine.groups = ["4:cpu:/somewhere/else"]
    assert machine.quota() == 4.0, "the part that is mounted is the process's own"


def test_both_versions_at_once_and_blanks_in_a_path(machine: Machine, tmp_path: Path) -> None:
    machine.mount(tmp_path / "c p u", "cgroup", "rw,cpu")
    machine.mount(tmp_path / "unified", "cgroup2")
    machine.groups = ["4:cpu:/", "0::/"]
    limit_v1(tmp_path / "c p u", 200_000)
    assert machine.quota() == 2.0


@pytest.mark.parametrize("text", ["", "nonsense", "0 100000", "100000 0", "a b"])
def test_a_file_that_says_nothing_limits_nothing(machine: Machine, tmp_path: Path, text: str) -> None:
    machine.mount(tmp_path / "cg", "cgroup2")
    machine.groups = ["0::/"]
    limit(tmp_path / "cg", text)
    assert machine.quota() is None


def test_without_control_groups_there_is_no_quota(tmp_path: Path) -> None:
    assert cpu_quota(tmp_path / "none") is None


@pytest.mark.parametrize(
    ("quota", "expected"), [(None, 8), (2.0, 2), (2.9, 2), (1.5, 1), (0.25, 1), (8.0, 8), (64.0, 8)]
)
def test_a_quota_is_rounded_down_to_at_least_one_core(
    quota: float | None, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "cpu_quota", lambda: quota)
    monkeypatch.setattr(module, "cores_in_reach", lambda: 8)
    assert cores() == expected


def test_the_systems_count_has_what_anyone_computes_and_no_idling(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = ["cpu  9 9 9 9 9 9 9 9 9 9", "cpu0 1 2 4 1000 1000 8 16 32 64 64", "cpu1 100 0 0 0 0 0 0 0 0 0",
             "cpu2 7 7 7 7 7 7 7 7 7 7", "intr 5"]  # fmt: skip
    (tmp_path / "stat").write_text("\n".join(lines))
    monkeypatch.setattr(module, "_STAT", tmp_path / "stat")
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1})
    monkeypatch.setattr(os, "sysconf", lambda _: 100)
    assert module.busy_seconds() == pytest.approx(1.63)
    monkeypatch.setattr(module, "_STAT", tmp_path / "none")
    assert module.busy_seconds() is None
