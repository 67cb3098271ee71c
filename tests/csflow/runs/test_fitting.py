"""The training curve on disk outlives kills."""

from __future__ import annotations

from pathlib import Path

from csflow.flow.training import EpochResult
from csflow.runs.fitting import _History


def _epoch(number: int) -> EpochResult:
    return EpochResult(epoch=number, epochs=3, nll=-float(number), grad_norm=1.0, seconds=1.0, learning_rate=1e-3)


def _curve(path: Path, told: list[int]) -> tuple[list[int], list[int]]:
    """Epochs kept and epochs published, when training tells of ``told``."""
    published: list[EpochResult] = []
    history = _History(path, published.append)
    for number in told:
        history.add(_epoch(number))
    history.finish(3)
    return [row["epoch"] for row in history.rows], [result.epoch for result in published]


def test_a_resumed_run_shows_its_whole_curve(tmp_path: Path) -> None:
    path = tmp_path / "history.json"
    assert _curve(path, [1, 2, 3]) == ([1, 2, 3], [1, 2, 3])
    assert _curve(path, [3]) == ([1, 2, 3], [1, 2, 3]), "an epoch after the last checkpoint is told again"
    assert _curve(path, []) == ([1, 2, 3], [1, 2, 3]), "killed after training, before the model was saved"
