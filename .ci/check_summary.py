"""Check .csflow/summary.json after `make demo`: python check_summary.py OUTCOME..."""

import json
import sys
from pathlib import Path

KEYS = [
    "line", "outcome", "data_md5", "git_rev", "image_auroc", "pixel_auroc", "threshold", "alpha",
    "model_name", "model_version", "alias", "endpoint", "scores", "report", "seconds",
]  # fmt: skip

summary = json.loads(Path(".csflow/summary.json").read_text())
assert set(KEYS) <= set(summary), f"missing: {set(KEYS) - set(summary)}"
assert summary["outcome"] in sys.argv[1:], f"outcome {summary['outcome']}, expected one of {sys.argv[1:]}"
assert 0.85 <= summary["image_auroc"] <= 1.0, f"image AUROC {summary['image_auroc']}"
assert Path(summary["report"]).is_file(), summary["report"]
labels = {row["label"] for row in summary["scores"]}
assert labels == {"good", "defective"}, labels
right = sum(row["label"] == row["decision"] for row in summary["scores"])
assert right > len(summary["scores"]) / 2, f"{right} of {len(summary['scores'])} demo images judged right"
print("summary.json:", {key: summary[key] for key in KEYS if key not in {"scores", "seconds"}})
