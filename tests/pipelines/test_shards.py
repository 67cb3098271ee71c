"""Extraction in shards through kfp's local runner, as a loop in a nested pipeline, with the whole graph around it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from csflow.adapters.deployment.local import LocalEndpoints
from csflow.adapters.versioning import add_and_push, create_data_repository
from csflow.config import load_line
from csflow.data.manifest import build_manifest
from csflow.features.backbone import load_backbone
from csflow.features.cache_manifest import CacheManifest
from csflow.features.store import FeatureStore
from csflow.system.workspace import Workspace

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
ROOT = Path(__file__).resolve().parents[2]
YAML = """
line: plates
detector: mahalanobis
data: {repo: ../repo, rev: HEAD, path: data}
features: {image_size: 128}
roles: {calibrate: 0.3, gate: 0.1}
calibration: {alpha: 0.2}
"""
RUN = """
import sys
from kfp import local
from pipelines.retrain import retrain
local.init(local.SubprocessRunner(use_venv=False), pipeline_root=sys.argv[2])
print("outcome:", retrain(line=sys.argv[1], force=False, shards=3).output)
"""


@pytest.fixture
def plates(tmp_path: Path) -> Iterator[Path]:
    """A factory with one line."""
    create_data_repository(tmp_path / "repo")
    rng = np.random.default_rng(0)
    for split, kind, count in (("train", "good", 30), ("test", "good", 6), ("test", "blotch", 6)):
        folder = tmp_path / "repo" / "data" / split / kind
        folder.mkdir(parents=True)
        for number in range(count):
            plate = rng.normal(120, 12, (96, 96)) + (90 if kind == "blotch" else 0)
            Image.fromarray(np.clip(plate, 0, 255).astype(np.uint8)).save(folder / f"{number}.png")
    add_and_push(tmp_path / "repo", "data", "Plates")
    (tmp_path / "lines").mkdir()
    (tmp_path / "lines" / "plates.yaml").write_text(YAML)
    yield tmp_path
    LocalEndpoints(Workspace(tmp_path / "home")).stop("plates")


def test_three_shards_come_to_the_same_features_as_one(plates: Path) -> None:
    line = load_line(plates / "lines" / "plates.yaml")
    environment = os.environ | {"CSFLOW_HOME": str(plates / "home"), "DVC_NO_ANALYTICS": "1"}
    command = [sys.executable, "-c", RUN, line.model_dump_json(), str(plates / "kfp")]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert "outcome: promoted" in done.stdout
    assert len(list(plates.glob("kfp/*/csflow-extract/for-loop-*/extract-shard"))) == 3
    (features,) = plates.glob("kfp/*/cache-features/features")
    (root,) = {json.loads(file.read_text())["data_root"] for file in plates.glob("kfp/*/ingest/context")}

    manifest = build_manifest(Path(root), line="plates", roles=line.roles)
    whole = FeatureStore(plates / "other").extract(manifest, line.features, load_backbone(line.features))
    sharded = CacheManifest.load(features)
    assert sharded.digest == whole.digest
    mine, theirs = sharded.open(sharded.entries), whole.open(whole.entries)
    for one, other in zip(mine[0] + mine[len(mine) - 1], theirs[0] + theirs[len(theirs) - 1], strict=True):
        np.testing.assert_array_equal(one.numpy(), other.numpy())
