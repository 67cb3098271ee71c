"""Calculate what many lines cost, in disk space, core hours, GPU hours and servers, from measured figures.

    python benchmarks/scale.py                                       # the tables of docs/guides/scale.md
    python benchmarks/scale.py --lines 250 --images 4000 --new 50 --inspected 20000 --gpus 4
    python benchmarks/scale.py --write docs/guides/scale.md          # put them into the page

Sizes come from csflow's own code (entries of the store, parameters of the flow), times from
``benchmarks/results/scale.json``, arithmetic from what torch counts in the plain form of the flow.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from functools import cache
from pathlib import Path
from typing import Any

from csflow.config import FlowConfig
from csflow.features.entries import FeatureSpace

RESULTS = Path(__file__).parent / "results" / "scale.json"
DAY = 86400.0
MARKS = ("<!-- tables: python benchmarks/scale.py -->\n", "<!-- end of tables -->\n")


@dataclass(frozen=True)
class Profile:
    """A configuration of features and flow.

    Attributes:
        name: For the tables.
        shapes: ``(C, h, w)`` of every scale.
        flow: Shape of the flow.
        epochs: Of a training.
    """

    name: str
    shapes: tuple[tuple[int, int, int], ...]
    flow: FlowConfig
    epochs: int

    @property
    def entry_bytes(self) -> int:
        """Return the bytes of one image in the feature store."""
        return FeatureSpace(Path(), self.shapes).entry_bytes

    @property
    def parameters(self) -> int:
        """Return the number of parameters of the flow."""
        return _counted(self)[0]

    @property
    def training_flops(self) -> int:
        """Return the FLOPs of one image and epoch: forward and backward, plain form, 2 for a multiply-add."""
        return _counted(self)[1]


EMBEDDED = Profile(
    "embedded: Lite0, 384 px, width 256",
    tuple((192, side, side) for side in (12, 6, 3)),
    FlowConfig(hidden=256),
    epochs=12,
)
"""As lines/mtd.yaml."""

PAPER = Profile(
    "paper: EfficientNet-B5, 768 px, width 1024",
    tuple((304, side, side) for side in (24, 12, 6)),
    FlowConfig(hidden=1024),
    epochs=240,
)
"""As csflow/config/presets/paper-mvtec.yaml."""


@dataclass(frozen=True)
class Inputs:
    """The inputs of the calculation; every field is an option of the command line."""

    lines: int = 0  # 0: the three sizes of the page
    images: int = 1000  # kept of a line, all roles and the test set
    fitted: float = 0.7  # share of them that the flow is fitted to
    new: int = 20  # images added to a line a day
    retrains: float = 1.0  # of a line a day
    inspected: int = 10000  # parts of a line inspected a day
    peak: float = 3.0  # busiest rate of inspection over the mean of the day
    versions: int = 5  # detectors of a line that are kept
    node_cores: int = 16
    node_gib: float = 64.0
    usable: float = 0.8  # share of a node's cores and memory that servers may fill
    gpus: int = 1  # resources.gpus of a training
    gpu_tflops: float = 312.0  # bfloat16 with float32 sums: one A100
    utilisation: float = 0.3  # share of that which training reaches: assumed, not measured
    shard_cores: int = 4  # of a pod that extracts
    shard_start: float = 60.0  # seconds until it computes
    deadline: float = 600.0  # seconds that a first extraction may take


@cache
def _counted(profile: Profile) -> tuple[int, int]:
    """Count the parameters and the training FLOPs of an image, without allocating anything."""
    import torch
    from sidebyside.plain import training_flops

    from csflow.flow.cross_scale import CrossScaleFlow

    with torch.device("meta"):
        flow = CrossScaleFlow(profile.flow, channels=profile.shapes[0][0], scales=len(profile.shapes))
    parameters = sum(parameter.numel() for parameter in flow.parameters())
    return parameters, training_flops(flow.state_dict(), [(1, *shape) for shape in profile.shapes])


def measured() -> dict[str, Any]:
    """Read the file that ``scale_measured.py`` wrote."""
    found: dict[str, Any] = json.loads(RESULTS.read_text())
    return found


def unit_costs() -> list[list[str]]:
    """Make the table of one image and one line, by profile."""
    rows: list[tuple[str, Callable[[Profile], str]]] = [
        ("features of one image", lambda p: f"{p.entry_bytes:,} B"),
        ("parameters of the flow", lambda p: f"{p.parameters / 1e6:.1f} M"),
        ("model file (2 B a parameter)", lambda p: _size(2 * p.parameters)),
        ("checkpoint while training (12 B a parameter; 16 with averaging)", lambda p: _size(12 * p.parameters)),
        ("gradients a GPU sends a step (4 B a parameter)", lambda p: _size(4 * p.parameters)),
        ("training arithmetic an image and epoch", lambda p: f"{p.training_flops / 1e9:.1f} GFLOP"),
        ("epochs", lambda p: str(p.epochs)),
    ]
    return [["", EMBEDDED.name, PAPER.name], *([name, of(EMBEDDED), of(PAPER)] for name, of in rows)]


def gpu_hours(profile: Profile, inputs: Inputs) -> float:
    """Return the GPU hours of one training, summed over its GPUs."""
    flops = profile.training_flops * profile.epochs * inputs.images * inputs.fitted
    return flops / (inputs.gpu_tflops * 1e12 * inputs.utilisation) / 3600


def core_hours(inputs: Inputs) -> float:
    """Return the core hours of one training of the embedded profile without a GPU."""
    each = measured()["training"]["core_seconds_an_image_and_epoch"]
    return float(each) * EMBEDDED.epochs * inputs.images * inputs.fitted / 3600


def lines_a_node(inputs: Inputs) -> tuple[int, int]:
    """Return how many lines a server on one node can hold in memory, and how many its cores can score at peak."""
    serving = measured()["serving"]
    memory = inputs.node_gib * 2**30 * inputs.usable - serving["bytes_of_one_line_and_server"]
    held = 1 + int(memory / serving["bytes_a_further_line"])
    rate = inputs.inspected / DAY * inputs.peak
    scored = int(inputs.node_cores * inputs.usable / (rate * serving["core_seconds_a_request"]))
    return held, scored


def shards(images: int, inputs: Inputs) -> int | None:
    """Return the number of pods that share a first extraction; None if a pod does not even start in time."""
    left = inputs.deadline - inputs.shard_start
    if left <= 0:
        return None
    seconds = images * float(measured()["extraction"]["core_seconds_an_image"])
    return max(1, math.ceil(seconds / (inputs.shard_cores * left)))


def fleet(inputs: Inputs) -> list[list[str]]:
    """Make the table of what a number of lines costs in all."""
    found = measured()
    counts = [inputs.lines] if inputs.lines else [10, 100, 10_000]
    held, scored = lines_a_node(inputs)
    each = found["extraction"]["core_seconds_an_image"]

    def row(name: str, of: Callable[[int], str]) -> list[str]:
        return [name, *(of(lines) for lines in counts)]

    def nodes(lines: int) -> str:
        return f"{math.ceil(lines / max(1, min(held, scored))):,}"

    detector, alone = found["serving"]["detector_bytes"], found["serving"]["bytes_of_one_line_and_server"]
    training = inputs.retrains * core_hours(inputs)
    return [
        ["", *(f"{lines:,} lines" for lines in counts)],
        row("images inspected a day", lambda n: f"{n * inputs.inspected:,}"),
        row("images kept", lambda n: f"{n * inputs.images:,}"),
        row("features, embedded", lambda n: _size(n * inputs.images * EMBEDDED.entry_bytes)),
        row("features, paper", lambda n: _size(n * inputs.images * PAPER.entry_bytes)),
        row("features that come in a year, embedded", lambda n: _size(365 * n * inputs.new * EMBEDDED.entry_bytes)),
        row("detectors kept, embedded", lambda n: _size(n * inputs.versions * detector)),
        row("extraction of new images a day, core hours", lambda n: _few(n * inputs.new * each / 3600)),
        row("first extraction of all, core hours", lambda n: _few(n * inputs.images * each / 3600)),
        row("retraining a day, embedded on CPU, core hours", lambda n: _few(n * training)),
        row("the same in cores that are never idle", lambda n: _few(n * training / 24)),
        row(
            "retraining a day, embedded on GPU, GPU hours*",
            lambda n: _few(n * inputs.retrains * gpu_hours(EMBEDDED, inputs)),
        ),
        row(
            "retraining a day, paper on GPU, GPU hours*",
            lambda n: _few(n * inputs.retrains * gpu_hours(PAPER, inputs)),
        ),
        row("scoring at the busiest hour, cores", lambda n: _few(n * _scoring_cores(inputs))),
        row("serving nodes, many lines in one server", nodes),
        row(
            "serving memory, a server for each line",
            lambda n: _size(n * found["serving"]["bytes_of_one_line_and_server"]),
        ),
        row(
            "serving memory, many lines in one server",
            lambda n: _size(
                math.ceil(n / held) * alone + (n - math.ceil(n / held)) * found["serving"]["bytes_a_further_line"]
            ),
        ),
    ]


def one_line(inputs: Inputs) -> list[list[str]]:
    """Make the table of what one training, one node and one extraction take."""
    held, scored = lines_a_node(inputs)
    found = measured()
    rate = inputs.node_cores * inputs.usable / found["serving"]["core_seconds_a_request"]
    rows = [
        ["", "value"],
        ["one training, embedded on CPU", f"{_few(core_hours(inputs) * 60)} core minutes"],
        ["one training, embedded on GPU*", f"{_few(gpu_hours(EMBEDDED, inputs) * 3600)} GPU seconds"],
        ["one training, paper on GPU*", f"{_few(gpu_hours(PAPER, inputs) * 60)} GPU minutes"],
        [
            f"the same by the clock on resources.gpus: {inputs.gpus}*",
            f"{_few(gpu_hours(PAPER, inputs) * 60 / inputs.gpus)} minutes",
        ],
        ["images a second a serving node scores", _few(rate)],
        ["lines in one server, by memory", f"{held:,}"],
        ["lines on a serving node, by cores", f"{scored:,}"],
    ]
    for images in (1_000, 100_000, 10_000_000):
        count = shards(images, inputs)
        told = "none: a pod does not start in time" if count is None else f"{count:,}"
        rows.append([f"shards to extract {images:,} images in {_few(inputs.deadline / 60)} minutes", told])
    return rows


def _scoring_cores(inputs: Inputs) -> float:
    return float(inputs.inspected / DAY * inputs.peak * measured()["serving"]["core_seconds_a_request"])


def measurements() -> list[list[str]]:
    """Make the table of the measured figures."""
    found = measured()
    serving = found["serving"]
    return [
        ["measured, embedded profile", "value"],
        ["extraction, file to stored features", f"{found['extraction']['core_seconds_an_image']:.4f} core s an image"],
        [
            f"training in {found['machine']['training_precision']}",
            f"{found['training']['core_seconds_an_image_and_epoch']:.4f} core s an image and epoch",
        ],
        ["scoring through HTTP", f"{serving['core_seconds_a_request']:.4f} core s a request"],
        ["server with one line", _size(serving["bytes_of_one_line_and_server"])],
        ["every further line in it", _size(serving["bytes_a_further_line"])],
        ["detector directory", _size(serving["detector_bytes"])],
    ]


def tables(inputs: Inputs) -> str:
    """Return all tables as Markdown."""
    assumed = ", ".join(f"`--{f.name.replace('_', '-')} {getattr(inputs, f.name):g}`" for f in fields(inputs)[1:])
    parts = [
        "### Measured",
        _markdown(measurements()),
        "### One image, one model",
        _markdown(unit_costs()),
        "### One training, one node, one extraction",
        _markdown(one_line(inputs)),
        "### Many lines",
        _markdown(fleet(inputs)),
        f"Assumed (every one is an option of the script): {assumed}.",
        "\\* No GPU was at hand: reckoned from arithmetic and the assumed share of a GPU's peak, not measured.",
    ]
    return "\n\n".join(parts) + "\n"


def _markdown(rows: Sequence[Sequence[str]]) -> str:
    head, *body = ("| " + " | ".join(row) + " |" for row in rows)
    return "\n".join([head, "|---" + "|--:" * (len(rows[0]) - 1) + "|", *body])


def _size(count: float) -> str:
    for unit, size in (("PB", 1e15), ("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= size:
            return f"{_few(count / size)} {unit}"
    return f"{count:g} B"


def _few(value: float) -> str:
    """Format a figure with two or three digits, because none of them is known more precisely."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}" if value >= 10 else f"{value:.2g}"


def _options(arguments: Sequence[str] | None) -> tuple[Inputs, Path | None]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for item in fields(Inputs):
        kind = type(item.default)
        parser.add_argument(f"--{item.name.replace('_', '-')}", type=kind, default=item.default, help="(%(default)s)")
    parser.add_argument("--write", type=Path, help="page in which to replace the tables")
    options = vars(parser.parse_args(arguments))
    page = options.pop("write")
    return replace(Inputs(), **options), page


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the tables, or write them into a page."""
    inputs, page = _options(arguments)
    if page is None:
        print(tables(inputs), end="")
        return 0
    before, rest = page.read_text().split(MARKS[0])
    page.write_text(f"{before}{MARKS[0]}\n{tables(inputs)}\n{MARKS[1]}{rest.split(MARKS[1])[1]}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
