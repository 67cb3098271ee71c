"""Test whether faster training costs accuracy, with paired seeds: plain convolutions, csflow's, and bfloat16.

Trains the flow of a line from the same seeds (equal weights at the start, equal batches) in three ways and prints the
image AUROC on its test images and the held-out NLL of good images:

- *plain*: float32, every convolution computed as it is written in the paper's network;
- *float32*: what csflow does in full precision (tiles, taps before enlarging);
- *bfloat16*: what csflow does on machines with bfloat16 matrix units (emulated, and slow, on others).

    python benchmarks/paired_seeds.py lines/mtd.yaml --width 32 --epochs 12 --seeds 3
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from statistics import mean
from unittest.mock import patch

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from csflow.config import LineConfig, load_line
from csflow.data.manifest import Manifest
from csflow.detector.kinds.cross_scale_flow import FlowModel
from csflow.detector.model import score_stored
from csflow.features.backbone import load_backbone
from csflow.features.cache_manifest import CachedFeatures
from csflow.features.store import FeatureStore
from csflow.flow.training import fit_flow
from csflow.metrics import image_auroc
from csflow.runs.checkout import materialise
from csflow.system.workspace import Workspace

WAYS = ("plain", "float32", "bfloat16")


@contextmanager
def plain_convolutions() -> Iterator[None]:
    """Make the flow compute its convolutions as written in the paper's network, inside of the block."""

    def enlarged(x: Tensor, layer: nn.Conv2d) -> Tensor:
        larger = F.interpolate(x, scale_factor=2.0, mode="bilinear", align_corners=False)
        result: Tensor = layer(larger)
        return result

    with (
        patch("csflow.flow.coupling.convolve", lambda x, layer: layer(x)),
        patch("csflow.flow.coupling.convolve_enlarged", enlarged),
    ):
        yield


def train_and_judge(line: LineConfig, features: dict[str, CachedFeatures], defective: list[bool]) -> dict[str, float]:
    """Measure the image AUROC (per cent) on the test images and the NLL a dimension of the held-out good ones."""
    fitted = features["fit"]
    with tempfile.TemporaryDirectory() as folder:
        flow = fit_flow(
            fitted,
            line.flow,
            line.training,
            channels=fitted.shapes[0][0],
            scales=len(fitted.shapes),
            directory=Path(folder),
        )
    scores, _ = score_stored(FlowModel(flow, line.scoring), features["test"])
    pyramid = features["calibrate"].batch(range(len(features["calibrate"])))
    with torch.inference_mode():
        nll = flow.per_dimension(flow.nll(pyramid), pyramid).mean().item()
    return {"image_auroc": 100 * image_auroc(scores, torch.tensor(defective).numpy()), "held_out_nll": nll}


def varied(line: LineConfig, way: str, *, seed: int, width: int, epochs: int) -> LineConfig:
    """Configure the line with the width, length, seed and precision of one training."""
    precision = "bfloat16" if way == "bfloat16" else "float32"
    training = line.training.model_copy(update={"epochs": epochs, "precision": precision, "seed": seed})
    return line.model_copy(update={"training": training, "flow": line.flow.model_copy(update={"hidden": width})})


def features_of(line: LineConfig, manifest: Manifest) -> dict[str, CachedFeatures]:
    """Return the features of the line's images by role."""
    workspace = Workspace.from_environment()
    cached = FeatureStore(workspace.features).extract(manifest, line.features, load_backbone(line.features))
    roles = ("fit", "calibrate", "test")
    return {role: cached.open(list(manifest.rows(role=role).frame["sha256"])) for role in roles}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("line")
    parser.add_argument("--width", type=int, default=32)
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS))
    parser.add_argument("--json", type=Path, help="write the figures to this file as well")
    arguments = parser.parse_args()
    line = load_line(arguments.line)
    manifest, _ = materialise(line, Workspace.from_environment())
    features = features_of(line, manifest)
    defective = list(manifest.rows(role="test").frame["label"] == "defective")
    found: dict[str, list[dict[str, float]]] = {way: [] for way in arguments.ways}
    print("| seed | way | image AUROC | held-out NLL |\n|---|---|---|---|", flush=True)
    for seed in range(arguments.seeds):
        for way in arguments.ways:
            config = varied(line, way, seed=seed, width=arguments.width, epochs=arguments.epochs)
            with plain_convolutions() if way == "plain" else nullcontext():
                result = train_and_judge(config, features, defective)
            found[way].append(result)
            print(f"| {seed} | {way} | {result['image_auroc']:.2f} % | {result['held_out_nll']:.4f} |", flush=True)
    base = arguments.ways[0]
    for way in arguments.ways[1:]:
        pairs = zip(found[way], found[base], strict=True)
        differences = [ours["image_auroc"] - theirs["image_auroc"] for ours, theirs in pairs]
        each = ", ".join(f"{difference:+.2f}" for difference in differences)
        print(f"\n{way} - {base}: {mean(differences):+.3f} points of image AUROC on average ({each})")
    if arguments.json:
        settings = {"line": line.line, "width": arguments.width, "epochs": arguments.epochs}
        arguments.json.write_text(json.dumps({"settings": settings, "found": found}, indent=2) + "\n")


if __name__ == "__main__":
    main()
