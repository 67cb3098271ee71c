"""Test whether a per-channel standardisation of the features trains better, and with which eps of Adam.

Trains the flow of a line (never MTD: nothing may be chosen on its test images) with and without it, over several
seeds, on the same stored features, and prints the held-out NLL of good images (nats a dimension, images not fitted)
and the image AUROC on the line's test images.

    python benchmarks/standardization.py demo-texture demo-object --json benchmarks/results/standardization.json
"""

from __future__ import annotations

import argparse
import tempfile
from datetime import UTC, datetime
from itertools import product
from pathlib import Path
from statistics import mean

import torch

from csflow import __version__
from csflow.config import LineConfig, load_line
from csflow.data.manifest import Manifest
from csflow.detector.kinds.cross_scale_flow import FlowModel
from csflow.detector.model import score_stored
from csflow.features.backbone import load_backbone
from csflow.features.cache_manifest import CachedFeatures, CacheManifest
from csflow.features.store import FeatureStore
from csflow.flow.training import fit_flow
from csflow.metrics import image_auroc
from csflow.runs.checkout import materialise
from csflow.system.files import write_json
from csflow.system.workspace import Workspace


def measure(line: LineConfig, manifest: Manifest, cached: CacheManifest) -> tuple[float, float]:
    """Measure the held-out NLL per dimension and the image AUROC of one training."""

    def features(role: str) -> CachedFeatures:
        return cached.open(list(manifest.rows(role=role).frame["sha256"]))

    with tempfile.TemporaryDirectory() as folder:
        flow = fit_flow(
            features("fit"),
            line.flow,
            line.training,
            channels=cached.channels,
            scales=line.features.scales,
            directory=Path(folder),
        )
    held_out = features("calibrate")
    pyramid = held_out.batch(range(len(held_out)))
    with torch.inference_mode():
        nll = flow.per_dimension(flow.eval().nll(pyramid), pyramid).mean().item()
    scores, _ = score_stored(FlowModel(flow, line.scoring), features("test"))
    return nll, image_auroc(scores, (manifest.rows(role="test").frame["label"] == "defective").to_numpy())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("lines", nargs="+")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--json", type=Path, help="result file")
    arguments = parser.parse_args()
    workspace = Workspace.from_environment()
    print("| line | standardised | Adam eps | held-out NLL | image AUROC | each seed |\n|---|---|---|---|---|---|")
    rows = []
    for name, (standardize, eps) in product(arguments.lines, ((True, 1e-8), (False, 1e-8), (True, 1e-4))):
        line = load_line(name)
        manifest, _ = materialise(line, workspace)
        cached = FeatureStore(workspace.features).extract(manifest, line.features, load_backbone(line.features))
        results = []
        for seed in range(arguments.seeds):
            changed = line.with_seed(seed)
            changed = changed.model_copy(
                update={
                    "flow": line.flow.model_copy(update={"standardize": standardize}),
                    "training": changed.training.model_copy(update={"eps": eps}),
                }
            )
            results.append(measure(changed, manifest, cached))
        each = ", ".join(f"{100 * auroc:.1f}" for _, auroc in results)
        nll, auroc = mean(r[0] for r in results), 100 * mean(r[1] for r in results)
        print(f"| {name} | {'yes' if standardize else 'no'} | {eps:g} | {nll:.3f} | {auroc:.1f} | {each} |", flush=True)
        rows.append(
            {
                "line": name,
                "standardized": standardize,
                "eps": eps,
                "held_out_nll": [round(value, 4) for value, _ in results],
                "image_auroc": [round(value, 5) for _, value in results],
            }
        )
    if arguments.json:
        write_json(arguments.json, {"date": datetime.now(UTC).date().isoformat(), "csflow": __version__, "rows": rows})


if __name__ == "__main__":
    main()
