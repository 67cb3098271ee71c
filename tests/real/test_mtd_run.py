"""A shortened run of the real line: fewer pixels, channels and epochs, every real part and image."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.real, pytest.mark.slow, pytest.mark.timeout(2400)]
ROOT = Path(__file__).resolve().parents[2]
YAML = """
line: mtd
data: {repo: REPO, rev: HEAD, path: data}
features: {image_size: 256}
flow: {hidden: 32}
training: {epochs: 8, learning_rate: 1.0e-3}
calibration: {alpha: 0.05}
quality: {min_train: 761, min_test_good: 191, min_test_defective: 392}
"""


def test_magnetic_tiles_from_import_to_champion(mtd: Path, tmp_path: Path) -> None:
    environment = os.environ | {"CSFLOW_HOME": str(tmp_path / "home"), "DVC_NO_ANALYTICS": "1"}

    def run(*words: str) -> str:
        command = [sys.executable, "-m", *words]
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    run("csflow.cli", "import", "mtd", str(mtd), str(tmp_path / "repo"), "--track")
    yaml = tmp_path / "mtd.yaml"
    yaml.write_text(YAML.replace("REPO", str(tmp_path / "repo")))
    try:
        run("pipelines", "run", str(yaml))
    finally:
        from csflow.adapters.deployment.local import LocalEndpoints
        from csflow.system.workspace import Workspace

        LocalEndpoints(Workspace(tmp_path / "home")).stop("mtd")
    summary = json.loads((tmp_path / "home" / "summary.json").read_text())
    print("\nMTD, shortened:", {k: summary[k] for k in ("image_auroc", "pixel_auroc", "threshold", "seconds")})
    assert summary["outcome"] == "promoted"
    assert summary["image_auroc"] > 0.9
    assert summary["pixel_auroc"] > 0.6
    report = json.loads((Path(summary["report"]).parent / "report.json").read_text())
    assert len(report["images"]) == 191 + 392
