"""A killed run, forced or not, is finished by the next; versions that nobody will decide are marked."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from csflow.adapters.mlflow.open_runs import OpenRuns
from csflow.adapters.mlflow.runs import flat_params
from csflow.config import DataConfig, LineConfig
from csflow.release.settled import is_settled
from csflow.release.unfinished import FORCED, abandon, unfinished
from csflow.runs.services import Services
from csflow.system.workspace import Workspace

pytestmark = pytest.mark.slow

LINE = LineConfig(line="tiles", data=DataConfig(path="tiles"))


def key_of(line: LineConfig) -> str:
    return f"images of today, seed {line.training.seed}"


class History:
    """Runs and versions of a line, as its steps leave them."""

    def __init__(self, services: Services, scratch: Path) -> None:
        self.services, self.scratch = services, scratch

    def run(self, seed: int, status: str, *, key: str | None = None, forced: bool = False) -> str:
        line = LINE.with_seed(seed)
        tags = {"content_key": key or key_of(line), **({FORCED: "true"} if forced else {})}
        run_id = self.services.tracker.start_run(LINE.line, params=flat_params(line), tags=tags)
        if status == "KILLED":
            OpenRuns(self.services.workspace).close(run_id, "killed")
        elif status == "FINISHED":
            self.services.tracker.finish(run_id, "promoted")
        elif status == "FAILED":
            self.services.tracker.fail(run_id, step="promote", message="no")
        return run_id

    def version(self, run_id: str, seed: int, decision: str | None = None, *, key: str | None = None) -> int:
        folder = self.scratch / run_id
        folder.mkdir(parents=True)
        (folder / "model").write_text(run_id)
        tags: dict[str, Any] = {"content_key": key or key_of(LINE.with_seed(seed)), "seed": seed, "decision": decision}
        picture = io.BytesIO()
        Image.new("RGB", (9, 9)).save(picture, "PNG")
        return self.services.registry.register(
            folder, line=LINE.line, run_id=run_id, tags=tags, example=picture.getvalue()
        )

    def seed(self, *, force: bool = False) -> int | None:
        """The seed of what the next run finishes."""
        versions = self.services.registry.versions(LINE.line)
        found = unfinished(self.services, LINE, versions, key_of, force=force)
        return None if found is None else found.training.seed

    def decisions(self) -> dict[int, str]:
        return {version.version: version.decision for version in self.services.registry.versions(LINE.line)}


@pytest.fixture
def history(home: Path, tmp_path: Path) -> History:
    made = History(Services.of(Workspace(home)), tmp_path / "made")
    made.version(made.run(0, "FINISHED"), 0, "promoted")
    return made


def test_a_forced_run_that_was_killed_is_finished_with_its_seed(history: History) -> None:
    assert history.seed() is None
    history.run(1, "KILLED", forced=True)
    assert history.seed() == history.seed(force=True) == 1
    history.version(history.run(1, "FINISHED", forced=True), 1, "kept_worse")
    assert history.seed() is None, "it has been decided"


def test_a_version_that_was_registered_and_not_decided_is_finished(history: History) -> None:
    history.version(history.run(1, "KILLED", forced=True), 1)
    assert history.seed() == history.seed(force=True) == 1


def test_a_killed_plain_run_is_finished_by_a_plain_one_alone(home: Path, tmp_path: Path) -> None:
    history = History(Services.of(Workspace(home)), tmp_path / "made")
    history.version(history.run(0, "KILLED"), 0)
    assert history.seed() == 0
    assert history.seed(force=True) is None, "another seed is asked for"


@pytest.mark.parametrize("status", ["RUNNING", "FAILED"])
def test_what_may_live_or_failed_by_itself_is_not_taken_up(history: History, status: str) -> None:
    """Else a version that cannot be promoted would keep --force from ever trying another seed."""
    history.version(history.run(1, status, forced=True), 1)
    assert history.seed() is None


def test_a_killed_run_of_other_images_is_not_taken_up_and_its_version_is_abandoned(history: History) -> None:
    old = history.version(history.run(1, "KILLED", key="images of old", forced=True), 1, key="images of old")
    live = history.version(history.run(2, "RUNNING", key="older images"), 2, key="older images")
    assert history.seed() is None
    versions = history.services.registry.versions(LINE.line)
    abandon(history.services, LINE.line, versions, key_of(LINE))
    assert history.decisions() == {1: "promoted", old: "abandoned", live: ""}
    (marked,) = (v for v in history.services.registry.versions(LINE.line) if v.version == old)
    assert "before the gate decided" in marked.tags["decision_reason"]
    assert not is_settled(marked, LINE, None), "a run of the old images would judge it"


def test_the_version_that_the_run_finishes_is_not_abandoned(history: History) -> None:
    waiting = history.version(history.run(1, "KILLED", forced=True), 1)
    versions = history.services.registry.versions(LINE.line)
    abandon(history.services, LINE.line, versions, key_of(LINE.with_seed(1)))
    assert history.decisions()[waiting] == ""
