"""Test whether the threshold keeps its promise, by comparing many random calibration draws with the exact result.

    python benchmarks/thresholds.py --quick                          # simulated lines only, small; what CI runs
    python benchmarks/thresholds.py --line mtd --lighting '(exp[0-9])' --json result.json --plot thresholds.png

Nothing is chosen here, so the good test images of a line are judged, too. The exit status is 1 if a test says that the
rule does not do what it promises; cases that break its assumption are shown and not judged.
"""

from __future__ import annotations

import argparse
import json
import platform
import shlex
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from time import perf_counter
from typing import Any, NamedTuple

import torch
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]
from threshold_breaks import Break, counted_twice, simulated_breaks
from threshold_study import (
    P_VALUE_GRID,
    Population,
    Row,
    Source,
    Split,
    Uniformity,
    families,
    judged,
    smallest_p,
    uniformity,
)

from csflow import __version__
from csflow.config import CalibrationConfig
from csflow.detector.calibration import required_images
from csflow.system.progress import say

LEVEL = 0.01
"""Probability that a sound rule fails any of all the tests."""

CONFIDENCE, SHOWN_ALPHA = 0.95, 0.05
"""Confidence of the tolerance rule, and alpha of the broken cases."""

PACKAGES = ("numpy", "scipy", "scikit-learn", "torch")


class Size(NamedTuple):
    """The size of the study.

    Attributes:
        alphas: Promised rates.
        n: Calibration images of a draw on simulated lines.
        fresh: Fresh images of a draw on simulated lines.
        draws: Number of draws.
        breaks: Number of draws of a simulated broken case, each of which fits a detector.
    """

    alphas: tuple[float, ...]
    n: int
    fresh: int
    draws: int
    breaks: int


FULL = Size((0.01, 0.02, 0.05, 0.1, 0.2), n=300, fresh=1000, draws=200, breaks=200)
QUICK = Size((0.02, 0.05, 0.2), n=150, fresh=150, draws=200, breaks=5)


class Study(NamedTuple):
    """All results, and the configuration of each detector that was fitted to a line."""

    rows: list[Row]
    uniformity: list[Uniformity]
    one_shot: list[Any]
    breaks: list[Break]
    detectors: dict[str, Any]


def studied(sources: Sequence[tuple[Source, int, int]], size: Size, seed: int) -> tuple[list[Row], list[Uniformity]]:
    """Run both rules at every alpha, and the p-values, on every source (with its n and fresh images)."""
    rows, uniform = [], []
    for index, (source, n, fresh) in enumerate(sources):
        for alpha in size.alphas:
            for confidence in (None, CONFIDENCE):
                if n >= required_images(alpha, confidence):
                    rule = CalibrationConfig(alpha=alpha, confidence=confidence)
                    rows.append(judged(source, rule, n=n, fresh=fresh, draws=size.draws, seed=seed + 10 * index))
        uniform.append(uniformity(source, n=n, draws=size.draws, seed=seed + 10 * index + 1))
        say(f"thresholds: {source.name}: {size.draws} draws of {n} calibration and {fresh} fresh images")
    return rows, uniform


def study(arguments: argparse.Namespace) -> Study:
    """Run everything that the arguments ask for."""
    size: Size = QUICK if arguments.quick else FULL
    sources: list[tuple[Source, int, int]] = [(family, size.n, size.fresh) for family in families()]
    conformal = CalibrationConfig(alpha=SHOWN_ALPHA)
    tolerance = CalibrationConfig(alpha=SHOWN_ALPHA, confidence=CONFIDENCE)
    with one_thread():
        breaks = simulated_breaks(conformal, draws=size.breaks, seed=arguments.seed)
        for pictures in (1, 4):
            case = counted_twice(tolerance, n=120, pictures_a_part=pictures, draws=size.draws, seed=arguments.seed)
            breaks.append(case)
    say(f"thresholds: broken assumptions on simulated lines, {size.breaks} draws each")
    one_shot: list[Any] = []
    detectors: dict[str, Any] = {}
    if arguments.line:
        pools, one_shot, broken, detectors = of_line(arguments, conformal)
        breaks += broken
        for pool in pools:
            fresh = len(pool.pool) // 3
            whole = Population(f"{pool.name}, pool as population", pool.pool)
            sources += [(pool, len(pool.pool) - fresh, fresh), (whole, len(pool.pool) - fresh, fresh)]
    rows, uniform = studied(sources, size, arguments.seed)
    return Study(rows, uniform, one_shot, breaks, detectors)


def of_line(
    arguments: argparse.Namespace, rule: CalibrationConfig
) -> tuple[list[Split], list[Any], list[Break], dict[str, Any]]:
    """Study a line: pools of scores not fitted, the line itself, its broken cases, each detector's configuration."""
    from threshold_lines import Line, fitted_images, one_shot, pool, unknown_lighting

    own = Line.load(arguments.line)
    pools, shots, breaks, made = [], [], [], {}
    for kind in arguments.kinds.split(","):
        line, name = own.with_detector(kind), f"{arguments.line} ({kind})"
        model = line.fitted(line.in_role("fit"))
        pools.append(pool(name, line, model))
        shots.append(one_shot(name, line, model, rule.alpha))
        breaks += fitted_images(name, line, model, rule)
        made[name] = line.config.model_dump(mode="json", exclude={"data", "description", "quality", "gate", "serving"})
        if arguments.lighting and kind == arguments.kinds.split(",")[0]:
            breaks += unknown_lighting(line, arguments.lighting, rule)
    return pools, shots, breaks, made


@contextmanager
def one_thread() -> Iterator[None]:
    """Run on one thread inside the block, because detectors as small as the simulated ones lose time to threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    with threadpool_limits(1):
        yield
    torch.set_num_threads(before)


def required() -> list[dict[str, float | int | None]]:
    """Return the fewest calibration images of each promise."""
    return [
        {"alpha": alpha, "confidence": confidence, "images": required_images(alpha, confidence)}
        for alpha in FULL.alphas
        for confidence in (None, 0.9, CONFIDENCE, 0.99)
    ]


def as_json(found: Study, arguments: argparse.Namespace, seconds: float) -> dict[str, Any]:
    """Return the results as JSON values."""
    size = QUICK if arguments.quick else FULL
    smallest, count = smallest_p(found.rows, found.uniformity)
    return {
        "command": shlex.join(["python", "benchmarks/thresholds.py", *sys.argv[1:]]),
        "date": datetime.now(UTC).date().isoformat(),
        "seconds": round(seconds, 1),
        "versions": {
            "python": platform.python_version(),
            "csflow": __version__,
            **{name: metadata.version(name) for name in PACKAGES},
        },
        "settings": {**size._asdict(), "seed": arguments.seed, "line": arguments.line},
        "detectors": found.detectors,
        "tests": {"count": count, "smallest_p": smallest, "fails_below": LEVEL / count},
        "required_images": required(),
        "rows": [row._asdict() for row in found.rows],
        "p_value_grid": list(P_VALUE_GRID),
        "uniformity": [test._asdict() for test in found.uniformity],
        "one_shot": [shot._asdict() for shot in found.one_shot],
        "breaks": [case._asdict() for case in found.breaks],
    }


def table(found: Study) -> str:
    """Format the results as Markdown tables, with rates in per cent."""
    lines = [
        "| source | rule | alpha | mean rate | exact | draws that keep it | exact |",
        "|---|---|--:|--:|--:|--:|--:|",
    ]
    for row in found.rows:
        rule = "conformal" if row.confidence is None else f"tolerance {row.confidence:g}"
        cells = (row.alpha, row.observed_rate, row.expected_rate, row.observed_kept, row.expected_kept)
        lines.append(f"| {row.source} | {rule} | {' | '.join(map(_percent, cells))} |")
    lines += ["", "| line as it is | calibration | good test images | false alarms | p | p, same scores |"]
    lines.append("|---|--:|--:|--:|--:|--:|")
    for s in found.one_shot:
        lines.append(f"| {s.source} | {s.n} | {s.images} | {s.false_alarms} | {s.p_surprise:.3f} | {s.p_same:.3f} |")
    lines += ["", "| source | case | calibration | judged | rate | draws that keep it | p |"]
    lines.append("|---|---|--:|--:|--:|--:|--:|")
    for case in found.breaks:
        sizes, p = f"{case.n:.0f} | {case.images}", "" if case.p_surprise is None else f"{case.p_surprise:.2g}"
        rates = f"{_percent(case.observed_rate)} | {_percent(case.observed_kept)} | {p}"
        lines.append(f"| {case.source} | {case.case}{' (broken)' * case.broken} | {sizes} | {rates} |")
    return "\n".join(lines)


def _percent(value: float | None) -> str:
    return "" if value is None else f"{100 * value:.2f}"


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="smaller draws; takes seconds")
    parser.add_argument("--line", help="also study a real line; by default simulated ones only")
    parser.add_argument("--kinds", default="mahalanobis", help="detectors fitted to the line (default: %(default)s)")
    parser.add_argument("--lighting", help="regular expression whose group names the lighting in a path; first kind")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="write every figure to this file")
    parser.add_argument("--plot", type=Path, help="write the picture to this file (PNG)")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    arguments = parse(argv)
    start = perf_counter()
    found = study(arguments)
    result = as_json(found, arguments, perf_counter() - start)
    print(table(found))
    tests = result["tests"]
    print(f"\n{tests['count']} tests, smallest p {tests['smallest_p']:.2g}, fails below {tests['fails_below']:.2g}")
    if arguments.json:
        arguments.json.write_text(json.dumps(result, indent=1, allow_nan=False) + "\n")
    if arguments.plot:
        from threshold_figure import threshold_figure

        threshold_figure(result).savefig(arguments.plot, dpi=90, metadata={"Software": None})
    return int(tests["smallest_p"] < tests["fails_below"])


if __name__ == "__main__":
    raise SystemExit(main())
