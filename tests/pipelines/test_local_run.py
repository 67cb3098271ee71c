"""The whole pipeline of a small line on this machine: every real part, through the command a person types."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]
ROOT = Path(__file__).resolve().parents[2]
YAML = """
line: plates
data: {repo: REPO, rev: HEAD, path: data}
features: {image_size: 128}
flow: {blocks: 2, hidden: 16}
training: {epochs: 3, batch_size: 8, learning_rate: 1.0e-3, checkpoint_seconds: 0.1}
roles: {calibrate: 0.3, gate: 0.1}
calibration: {alpha: 0.2}
quality: {min_train: 20, min_test_good: 5, min_test_defective: 5}
"""


def draw_plates(folder: Path, *, good: int = 40, seed: int = 0) -> None:
    """Grained plates, the defective ones with a bright blotch and a mask."""
    rng = np.random.default_rng(seed)
    for split, kind, count in (("train", "good", good), ("test", "good", 12), ("test", "blotch", 12)):
        (folder / split / kind).mkdir(parents=True)
        for number in range(count):
            plate = np.clip(rng.normal(120, 12, (96, 96)), 0, 255)
            if kind == "blotch":
                x, y = rng.integers(10, 60, 2)
                mask = np.zeros((96, 96), np.uint8)
                mask[y : y + 26, x : x + 26] = 255
                plate[mask > 0] += 90
                (folder / "ground_truth" / kind).mkdir(parents=True, exist_ok=True)
                Image.fromarray(mask).save(folder / "ground_truth" / kind / f"{number:03d}_mask.png")
            picture = Image.fromarray(np.clip(plate, 0, 255).astype(np.uint8))
            picture.save(folder / split / kind / f"{number:03d}.png")


class Factory:
    """A line of its own: data repository, YAML, workspace."""

    def __init__(self, root: Path) -> None:
        from csflow.adapters.versioning import add_and_push, create_data_repository

        self.root, self.home, self.repo = root, root / "home", root / "repo"
        create_data_repository(self.repo)
        draw_plates(self.repo / "data")
        add_and_push(self.repo, "data", "Plates")
        self.yaml = root / "lines" / "plates.yaml"
        self.yaml.parent.mkdir()
        self.write_yaml()

    def write_yaml(self, old: str = "", new: str = "") -> None:
        self.yaml.write_text(YAML.replace("REPO", str(self.repo)).replace(old, new))

    @property
    def environment(self) -> dict[str, str]:
        return os.environ | {
            "CSFLOW_HOME": str(self.home),
            "CSFLOW_LINES": str(self.yaml.parent),
            "DVC_NO_ANALYTICS": "1",
        }

    def run(self, *words: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", *words]
        return subprocess.run(command, cwd=ROOT, env=self.environment, capture_output=True, text=True, check=False)

    def csflow(self, *words: str) -> subprocess.CompletedProcess[str]:
        return self.run("csflow.cli", *words)

    def pipeline(self, *words: str) -> dict[str, Any]:
        done = self.run("pipelines", "run", str(self.yaml), *words)
        assert done.returncode == 0, done.stdout + done.stderr
        return json.loads((self.home / "summary.json").read_text())  # type: ignore[no-any-return]


@pytest.fixture(scope="module")
def factory(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Factory]:
    from csflow.adapters.deployment.local import LocalEndpoints
    from csflow.system.workspace import Workspace

    made = Factory(tmp_path_factory.mktemp("factory"))
    yield made
    LocalEndpoints(Workspace(made.home)).stop("plates")


def test_a_line_from_images_to_champion_to_challenger(factory: Factory) -> None:
    first = factory.pipeline()
    assert (first["outcome"], first["model_version"], first["alias"]) == ("promoted", 1, "champion")
    assert first["image_auroc"] > 0.9
    assert first["pixel_auroc"] > 0.6
    assert first["data_md5"].endswith(".dir")
    assert Path(first["report"]).read_text().count("http://") == 0
    assert set(first["seconds"]) >= {"ingest", "validate", "cache_features", "train", "evaluate", "register", "promote"}

    again = factory.pipeline()
    assert (again["outcome"], again["model_version"]) == ("unchanged", 1)
    assert again["endpoint"] == first["endpoint"], "an unchanged champion goes on serving where it was"

    forced = factory.pipeline("--force")
    assert (forced["model_version"], forced["data_md5"]) == (2, first["data_md5"])
    assert forced["outcome"] in {"promoted", "kept_worse", "kept_insufficient"}
    assert forced["reason"]
    assert forced["champion_version"] == (2 if forced["outcome"] == "promoted" else 1)


def test_commands_tell_the_story(factory: Factory, tmp_path: Path) -> None:
    image = factory.repo / "data" / "test" / "blotch" / "000.png"
    scored = factory.csflow("score", str(image), "--model", "plates@1", "--out", str(tmp_path), "--json")
    assert scored.returncode == 0, scored.stderr
    (row,) = json.loads(scored.stdout)["scores"]
    assert row["decision"] == "defective"
    assert Image.open(row["overlay"]).size == (96, 96)
    evaluated = factory.csflow("evaluate", "plates", "--model", "plates@1", "--out", str(tmp_path / "report"))
    assert "image AUROC" in evaluated.stdout, evaluated.stderr
    assert (tmp_path / "report" / "report.html").exists()
    why = factory.csflow("why", "plates@1")
    assert "promoted" in why.stdout, why.stderr
    compared = factory.csflow("compare", "plates")
    assert "image AUROC" in compared.stdout, compared.stderr
    assert "seed" in compared.stdout, "the parameter that differs"


def test_a_failing_step_has_the_last_word(factory: Factory) -> None:
    factory.write_yaml("min_train: 20", "min_train: 500")
    try:
        done = factory.run("pipelines", "run", str(factory.yaml), "--force")
    finally:
        factory.write_yaml()
    assert done.returncode == 1
    assert "Traceback" not in done.stderr + done.stdout
    assert "500" in done.stderr.strip().splitlines()[-1]
    assert "Step validate failed" in done.stderr
    from csflow.adapters.mlflow.tracking import Tracker
    from csflow.system.workspace import Workspace

    (last, *_) = Tracker(Workspace(factory.home)).list_runs("plates", limit=1)
    assert (last.status, last.tags["failed_step"]) == ("FAILED", "validate")


def test_an_impossible_size_is_a_usage_error_before_any_work(factory: Factory) -> None:
    factory.write_yaml("image_size: 128", "image_size: 200")
    try:
        done = factory.run("pipelines", "run", str(factory.yaml))
    finally:
        factory.write_yaml()
    assert done.returncode == 2, done.stderr
    assert "Step ingest failed" in done.stderr
    assert "image_size 200" in done.stderr
    assert "128 or 256" in done.stderr


def test_a_terminated_training_resumes(factory: Factory) -> None:
    factory.write_yaml("epochs: 3", "epochs: 40")
    command = [sys.executable, "-m", "pipelines", "run", str(factory.yaml)]
    try:
        first = subprocess.Popen(command, cwd=ROOT, env=factory.environment, stderr=subprocess.PIPE, text=True)
        assert first.stderr is not None
        assert next((line for line in first.stderr if "epoch 3/40" in line), None), "training never began"
        first.send_signal(signal.SIGTERM)
        first.stderr.read()
        assert first.wait(timeout=120) != 0
        assert list((factory.home / "models").glob("*.work/checkpoint*")), "no checkpoint was written"
        start = time.monotonic()
        second = subprocess.run(command, cwd=ROOT, env=factory.environment, capture_output=True, text=True, check=False)
    finally:
        factory.write_yaml()
    assert second.returncode == 0, second.stdout + second.stderr
    assert "epoch 1/40" not in second.stderr, "training began anew"
    assert "epoch 40/40" in second.stderr
    assert time.monotonic() - start < 600
    run = json.loads((factory.home / "summary.json").read_text())
    from mlflow import MlflowClient

    curve = MlflowClient(f"sqlite:///{factory.home}/mlflow.db").get_metric_history(run["run_id"], "curves/nll")
    assert sorted({point.step for point in curve}) == list(range(1, 41)), "the run shows the whole curve"


def test_new_images_are_seen_and_only_they_are_extracted(factory: Factory, tmp_path: Path) -> None:
    draw_plates(tmp_path / "more", good=44, seed=1)
    new = tmp_path / "new"
    new.mkdir()
    for number in range(40, 44):
        shutil.copy(tmp_path / "more" / "train" / "good" / f"{number:03d}.png", new / f"new-{number}.png")
    added = factory.csflow("data", "add", "plates", str(new))
    assert added.returncode == 0, added.stdout + added.stderr
    done = factory.run("pipelines", "run", str(factory.yaml))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "extract features: 4/4" in done.stderr, done.stderr
    summary = json.loads((factory.home / "summary.json").read_text())
    assert summary["outcome"] != "unchanged"


def test_another_kind_of_detector_is_trained_registered_gated_and_served(factory: Factory, tmp_path: Path) -> None:
    factory.write_yaml("line: plates", "line: plates\ndetector: patchcore")
    try:
        summary = factory.pipeline()
        assert summary["outcome"] in {"promoted", "kept_worse", "kept_insufficient"}, "gated against a CS-Flow champion"
        name = f"plates@{summary['model_version']}"
        promoted = factory.csflow("promote", name)
        assert promoted.returncode == 0, promoted.stdout + promoted.stderr
    finally:
        factory.write_yaml()
    from csflow.adapters.deployment.local import LocalEndpoints
    from csflow.system.workspace import Workspace

    status = LocalEndpoints(Workspace(factory.home)).status("plates")
    assert status is not None
    assert status.version == str(summary["model_version"])
    blotch, good = (factory.repo / "data" / "test" / kind / "000.png" for kind in ("blotch", "good"))
    found = LocalEndpoints(Workspace(factory.home)).score(status, [blotch.read_bytes(), good.read_bytes()])
    assert found[0]["score"] > found[1]["score"]
    assert found[0]["decision"] == "defective"
    again = factory.csflow("score", str(blotch), "--model", name, "--out", str(tmp_path), "--json")
    (row,) = json.loads(again.stdout)["scores"]
    assert row["score"] == pytest.approx(found[0]["score"], rel=1e-4)
