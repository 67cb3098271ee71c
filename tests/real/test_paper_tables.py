"""Rows of the committed Table 2 that two cores make again in a minute."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.real, pytest.mark.slow, pytest.mark.timeout(1200)]
ROOT = Path(__file__).resolve().parents[2]
METHODS = ("1-NN", "Mahalanobis")


def test_the_committed_figures_of_table_2_come_out_again(mtd: Path, tmp_path: Path) -> None:
    repository = tmp_path / "repo"
    lines = tmp_path / "lines"
    lines.mkdir()
    (lines / "mtd.yaml").write_text(f"line: mtd\ndata: {{repo: {repository}, rev: HEAD, path: data}}\n")
    environment = os.environ | {
        "CSFLOW_HOME": str(tmp_path / "home"),
        "CSFLOW_LINES": str(lines),
        "DVC_NO_ANALYTICS": "1",
    }

    def run(*words: str) -> None:
        done = subprocess.run(
            [sys.executable, *words], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr

    run("-m", "csflow.cli", "import", "mtd", str(mtd), str(repository), "--track")
    chosen = [word for method in METHODS for word in ("--method", method)]
    result = tmp_path / "table2.json"
    run("benchmarks/paper.py", "--table", "2", "--line", "mtd", *chosen, "--json", str(result))
    committed = json.loads((ROOT / "benchmarks/results/table2-mtd.json").read_text())
    published = {row["method"]: row for row in committed["rows"]}
    made = {row["method"]: row for row in json.loads(result.read_text())["rows"]}
    assert set(made) == set(METHODS)
    for method, row in made.items():
        for metric in ("image_auroc", "average_precision", "f1_max", "pixel_auroc", "aupro"):
            assert row[metric]["mean"] == pytest.approx(published[method][metric]["mean"], abs=1e-3), (method, metric)
        assert row["images"] == 761
