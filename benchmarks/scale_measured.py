"""Measure the figures behind docs/guides/scale.md: core seconds per image, and memory per line of a server with many.

    python benchmarks/scale_measured.py --json benchmarks/results/scale.json

Times are processor time on one thread, which other work on the machine distorts less than wall-clock time.
The detector has random weights: the cost of a step, of a score and of a line in memory does not depend on their values.
"""

from __future__ import annotations

import argparse
import base64
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from csflow.config import CalibrationConfig, DataConfig, FeatureConfig, FlowConfig, LineConfig, TrainingConfig
from csflow.system.files import write_json

IMAGES, EPOCHS, REQUESTS = 48, 3, 20
LINES = (1, 8)
LINE = LineConfig(
    line="line",
    data=DataConfig(path="data"),
    features=FeatureConfig(),  # EfficientNet-Lite0, 384, 192 and 96 px
    flow=FlowConfig(hidden=256),  # as lines/mtd.yaml
)


def main() -> None:
    """Measure everything and write the file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, required=True)
    path = parser.parse_args().json
    import torch

    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        measured: dict[str, Any] = {"machine": machine()}
        for what, work in (("extraction", extraction), ("training", training), ("serving", serving)):
            measured[what] = work(Path(name))
            print(what, measured[what], file=sys.stderr)
    write_json(path, measured)


def machine() -> dict[str, Any]:
    """Describe the machine."""
    from csflow.flow.device import choose_device, choose_precision

    cpu = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
    training = TrainingConfig(device="cpu")
    return {
        "cpu": cpu.group(1) if cpu else "unknown",
        "cores": os.cpu_count(),
        "load_before": round(os.getloadavg()[0], 1),
        "training_precision": choose_precision(training, choose_device(training)),
    }


def extraction(folder: Path) -> dict[str, float]:
    """Measure the core seconds an image from file to stored features, and the bytes of an entry."""
    from sidebyside.images import draw_images
    from sidebyside.materials import Listing

    from csflow.features.backbone import load_backbone
    from csflow.features.store import FeatureStore

    files = draw_images(folder / "images", IMAGES, 0)
    backbone, store = load_backbone(LINE.features), FeatureStore(folder / "features")
    store.extract(Listing(files[:4]).manifest, LINE.features, backbone)  # pays for what is done once
    began = time.process_time()
    cached = store.extract(Listing(files).manifest, LINE.features, backbone)
    seconds = (time.process_time() - began) / cached.extracted
    entry = next(file for file in (store.root / cached.space).rglob("*") if len(file.name) == 64)
    return {"core_seconds_an_image": seconds, "entry_bytes": entry.stat().st_size}


def training(folder: Path) -> dict[str, float]:
    """Measure the core seconds an image and epoch."""
    import torch

    from csflow.flow.training import fit_flow

    levels = [torch.randn(IMAGES, 192, side, side) for side in (12, 6, 3)]

    class Images:
        def __len__(self) -> int:
            return IMAGES

        def batch(self, indices: Any) -> list[torch.Tensor]:
            return [level[list(indices)] for level in levels]

    ends: list[float] = []
    config = TrainingConfig(epochs=EPOCHS, device="cpu", checkpoint_seconds=1e6)
    fit_flow(
        Images(),
        LINE.flow,
        config,
        channels=192,
        scales=3,
        directory=folder / "fit",
        on_epoch=lambda _: ends.append(time.process_time()),
    )
    return {"core_seconds_an_image_and_epoch": min(np.diff(ends)) / IMAGES}


def serving(folder: Path) -> dict[str, float]:
    """Measure the resident memory of one server with one line and with several, and the core seconds a request."""
    first = detector(folder / "line-0")
    # A copy for each line, because pages of one mapped file would be shared.
    directories = [first, *(shutil.copytree(first, folder / f"line-{n}") for n in range(1, LINES[-1]))]
    from sidebyside.images import draw_images

    picture = draw_images(folder / "asked", 1, 1)[0].read_bytes()
    resident: dict[int, float] = {}
    seconds = 0.0
    for lines in LINES:
        with server(directories[:lines]) as (url, process):
            for number in range(lines):
                ask(url, f"line-{number}", picture)
            resident[lines] = sum(_resident(pid) for pid in _tree(process))
            began = sum(_processor_seconds(pid) for pid in _tree(process))
            for _ in range(REQUESTS):
                ask(url, "line-0", picture)
            seconds = (sum(_processor_seconds(pid) for pid in _tree(process)) - began) / REQUESTS
    few, many = LINES
    each = (resident[many] - resident[few]) / (many - few)
    files = sum(file.stat().st_size for file in first.rglob("*") if file.is_file())
    return {
        "bytes_of_one_line_and_server": resident[few],
        f"bytes_with_{many}_lines": resident[many],
        "bytes_a_further_line": each,
        "core_seconds_a_request": seconds,
        "detector_bytes": files,
    }


def detector(directory: Path) -> Path:
    """Save a detector of the size of a trained one."""
    import torch

    from csflow.detector.calibration import calibrate
    from csflow.detector.detector import Detector
    from csflow.detector.kinds.cross_scale_flow import FlowModel
    from csflow.features.backbone import load_backbone
    from csflow.flow.cross_scale import CrossScaleFlow

    backbone = load_backbone(LINE.features)
    model = FlowModel(CrossScaleFlow(LINE.flow, channels=backbone.channels, scales=3), LINE.scoring)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("gamma"):
                parameter.fill_(0.01)
    draw = np.random.default_rng(0)
    maps = draw.uniform(0.0, 2000.0, (40, 12, 12))
    calibration = calibrate(draw.uniform(5.0, 10.0, 40), maps, CalibrationConfig())
    Detector(LINE, backbone, model, calibration, {}).save(directory)
    return directory


@contextmanager
def server(directories: Sequence[Path]) -> Iterator[tuple[str, int]]:
    """Start a csflow server with several detectors; yield its address and process."""
    import socket

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    models = [argument for directory in directories for argument in ("--model", f"{directory.name}={directory}")]
    command = [sys.executable, "-m", "csflow.adapters.serving", "--port", str(port), *models]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    url = f"http://127.0.0.1:{port}"
    try:
        _wait(f"{url}/v2/health/ready", process)
        yield url, process.pid
    finally:
        process.terminate()
        process.wait(timeout=120)


def ask(url: str, name: str, picture: bytes) -> None:
    """Request the score of one image."""
    body = json.dumps({"instances": [{"image": {"b64": base64.b64encode(picture).decode()}}]}).encode()
    request = urllib.request.Request(f"{url}/v1/models/{name}:predict", body, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=300) as answer:
        assert "predictions" in json.load(answer)


def _wait(url: str, process: subprocess.Popen[bytes]) -> None:
    last = time.monotonic() + 600
    while time.monotonic() < last and process.poll() is None:
        try:
            urllib.request.urlopen(url, timeout=5).close()
        except OSError:
            time.sleep(0.5)
        else:
            return
    raise SystemExit(f"{url} does not answer.")


def _tree(pid: int) -> list[int]:
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [pid, *(process for child in children for process in _tree(int(child)))]


def _resident(pid: int) -> float:
    """Return the proportional set size, in which a page that several processes share counts once."""
    found = re.search(r"Pss:\s+(\d+) kB", Path(f"/proc/{pid}/smaps_rollup").read_text())
    assert found is not None
    return 1024.0 * int(found.group(1))


def _processor_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


if __name__ == "__main__":
    main()
