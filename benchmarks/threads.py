"""Time an epoch with one thread and with all, which spin or sleep while they wait, alone and beside other work.

Every training is a process of its own, because OpenMP reads its variables once. The neighbour is a process that
multiplies matrices on all cores, as another training does.

    python benchmarks/threads.py
    python benchmarks/threads.py --hidden 16 --images 32      # half the time
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import median

import torch

from csflow.config import FlowConfig, TrainingConfig
from csflow.flow.pyramid import Pyramid
from csflow.flow.training import fit_flow
from csflow.system.cores import cores

SIDES = (8, 4, 2)
CHANNELS = 192
PATIENCE = 120
"""Seconds after which a training is given up."""

NEIGHBOUR = """
import torch
matrix = torch.randn(2000, 2000)
while True:
    matrix @ matrix
"""

WAYS: dict[str, Mapping[str, str]] = {
    "one thread": {"OMP_NUM_THREADS": "1"},
    "all, spinning": {"OMP_NUM_THREADS": str(cores()), "OMP_WAIT_POLICY": "active"},
    "all, spinning for a while (OpenMP's default)": {"OMP_NUM_THREADS": str(cores())},
    "all, sleeping (csflow)": {"OMP_NUM_THREADS": str(cores()), "OMP_WAIT_POLICY": "passive"},
}


class Noise:
    """Features that are noise: what is in them does not change the time."""

    def __init__(self, images: int) -> None:
        generator = torch.Generator().manual_seed(0)
        self.levels = [torch.randn(images, CHANNELS, side, side, generator=generator) for side in SIDES]

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.levels[0])

    def batch(self, indices: Sequence[int]) -> Pyramid:
        """Return the features of some images."""
        return [level[list(indices)] for level in self.levels]


def train(images: int, hidden: int) -> dict[str, float]:
    """Train three epochs in this process; the first, which includes what is done once, does not count."""
    seconds: list[float] = []
    training = TrainingConfig(epochs=3, batch_size=16, device="cpu", precision="float32", checkpoint_seconds=3600)
    with tempfile.TemporaryDirectory() as folder:
        fit_flow(
            Noise(images),
            FlowConfig(hidden=hidden),
            training,
            channels=CHANNELS,
            scales=len(SIDES),
            directory=Path(folder),
            on_epoch=lambda result: seconds.append(result.seconds),
        )
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return {"seconds": median(seconds[1:]), "processor_seconds": usage.ru_utime, "waits": usage.ru_nvcsw}


@contextmanager
def neighbour(present: bool) -> Iterator[None]:
    """Keep all cores busy inside of the block."""
    if not present:
        yield
        return
    with subprocess.Popen(
        [sys.executable, "-c", NEIGHBOUR], env=os.environ | WAYS["all, sleeping (csflow)"]
    ) as process:
        try:
            yield
        finally:
            process.kill()


def time_apart(way: Mapping[str, str], images: int, hidden: int) -> dict[str, float] | None:
    """Run :func:`train` in a process with these variables; None if it takes longer than :data:`PATIENCE`."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("OMP_", "GOMP_"))}
    command = [sys.executable, __file__, "--train", "--images", str(images), "--hidden", str(hidden)]
    try:
        done = subprocess.run(
            command, env=environment | way, check=True, stdout=subprocess.PIPE, text=True, timeout=PATIENCE
        )
    except subprocess.TimeoutExpired:
        return None
    result: dict[str, float] = json.loads(done.stdout)
    return result


def main() -> None:
    """Print a table of seconds an epoch."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=96, help="images an epoch (default %(default)s)")
    parser.add_argument("--hidden", type=int, default=64, help="width of the flow (default %(default)s)")
    parser.add_argument("--train", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.train:
        print(json.dumps(train(options.images, options.hidden)))
        return
    print(f"{cores()} cores; {options.images} images, width {options.hidden}, maps of {SIDES}\n")
    print("| threads | alone (s an epoch) | beside a neighbour | processor time, alone | times it slept, alone |")
    print("|---|--:|--:|--:|--:|")
    for name, way in WAYS.items():
        with neighbour(present=False):
            alone = time_apart(way, options.images, options.hidden)
        with neighbour(present=True):
            beside = time_apart(way, options.images, options.hidden)
        print(f"| {name} | {_seconds(alone)} | {_seconds(beside)} | {_rest(alone)} |", flush=True)


def _seconds(result: Mapping[str, float] | None) -> str:
    return f"over {PATIENCE} in all" if result is None else f"{result['seconds']:.1f}"


def _rest(result: Mapping[str, float] | None) -> str:
    return "– | –" if result is None else f"{result['processor_seconds']:.0f} s | {result['waits']:.0f}"


if __name__ == "__main__":
    main()
