"""Measure how much of the accuracy on Magnetic Tile Defects comes from knowing the tile.

Every tile was photographed under six lights (``exp1`` to ``exp6`` in the file names), one right after the other: the
running numbers (``num_…``) of one tile are close together, and a wide gap separates it from the next. The authors'
split distributes images, so nearly every good test image shows a tile that was also fitted, under another light (96 %
of them if numbers more than 50 apart count as two tiles, all of them for gaps of 150 and more). A factory judges parts
that it has never seen. This study splits the good images by tile instead: five folds, each judged, together with all
defective images, by a model fitted to the other four. The number of fitted images stays about the same.

    python benchmarks/unseen_tiles.py --line mtd --json benchmarks/results/unseen-tiles-mtd.json
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import pandas as pd
from published.protocol import FOLDER, Protocol, RowSpec, load_protocol
from published.runs import Material, gather, measure

from csflow.config import load_line
from csflow.data.manifest import Manifest
from csflow.errors import DataError
from csflow.runs.checkout import materialise
from csflow.system.files import write_json
from csflow.system.progress import say
from csflow.system.workspace import Workspace

GAP = 150
"""Numbers further apart than this belong to two tiles. Of the gaps between neighbours 83 % are below 100 and 16 % above
150; with 150, 129 of the 155 tiles have exactly six pictures, one under each light."""
METHODS = ("1-NN", "Mahalanobis", "CS-Flow (width 64)")


def tiles_of(paths: Sequence[str]) -> list[int]:
    """Assign images to tiles by the gaps between their running numbers.

    Raises:
        DataError: If a name holds no number.
    """
    found = [re.search(r"num_(\d+)", path) for path in paths]
    if not all(found):
        nameless = next(path for path, match in zip(paths, found, strict=True) if not match)
        raise DataError(f"{nameless} is not named like an image of Magnetic Tile Defects (exp1_num_1234.jpg).")
    numbers = pd.Series([int(match[1]) for match in found if match]).sort_values()
    return list((numbers.diff() > GAP).cumsum().sort_index())


def folds_by_tile(manifest: Manifest, folds: int) -> Iterator[tuple[Manifest, Manifest]]:
    """Yield the images to fit and to judge, fold by fold; no tile is in both."""
    good = manifest.rows(label="good").frame
    tiles = pd.Series(tiles_of(list(good["path"])), index=good.index)
    for fold in range(folds):
        judged = tiles % folds == fold
        test = pd.concat([good[judged], manifest.rows(label="defective").frame]).sort_values("path")
        yield _part(manifest, good[~judged]), _part(manifest, test)


def known_tiles(manifest: Manifest) -> float:
    """Return the share of good test images whose tile is also in training."""
    good = manifest.rows(label="good").frame
    tiles = pd.Series(tiles_of(list(good["path"])), index=good.index)
    test = good["split"] == "test"
    return float(tiles[test].isin(set(tiles[~test])).mean())


def _part(manifest: Manifest, frame: pd.DataFrame) -> Manifest:
    return replace(manifest, frame=frame.reset_index(drop=True))


def study(protocol: Protocol, row: RowSpec, name: str, folds: int) -> Iterator[dict[str, Any]]:
    """Yield the results of a method after each fold."""
    workspace = Workspace.from_environment()
    line = protocol.line(row, 0, name=name, data=load_line(name).data)
    manifest, _ = materialise(line, workspace)
    results = workspace.root / "paper" / name
    material = gather(line, manifest, workspace)
    authors = measure(line, material, workspace, results)["metrics"]["image_auroc"][0]
    unseen: list[float] = []
    fitted: list[int] = []
    for fit, test in folds_by_tile(manifest, folds):
        say(f"{row.method}, fold {len(unseen) + 1}/{folds}: {len(fit)} to fit, {len(test)} to judge")
        measured = measure(line, Material(fit, test, material.cached), workspace, results)
        unseen.append(measured["metrics"]["image_auroc"][0])
        fitted.append(len(fit))
        yield {
            "method": row.method,
            "authors_split": round(authors, 5),
            "unseen_tiles": {
                "mean": round(mean(unseen), 5),
                "sd": round(stdev(unseen), 5) if len(unseen) > 1 else 0.0,
                "folds": [round(value, 5) for value in unseen],
            },
            "images": list(fitted),
        }


def main() -> None:
    """Measure, and write the result file after every fold."""
    parser = argparse.ArgumentParser(description="Image AUROC on tiles that were never fitted.")
    parser.add_argument("--line", default="mtd")
    parser.add_argument("--folds", type=int, default=5)
    parser.add_argument("--method", action="append", help=f"row of table 2; by default {', '.join(METHODS)}")
    parser.add_argument("--json", type=Path, help="result file")
    given = parser.parse_args()
    protocol = load_protocol(FOLDER / "table2.yaml")
    manifest, _ = materialise(load_line(given.line), Workspace.from_environment())
    about = {
        "line": given.line,
        "seed": 0,
        "folds": given.folds,
        "known_tiles_of_test": round(known_tiles(manifest), 5),
    }
    done: dict[str, Any] = {}
    for row in (row for row in protocol.rows if row.method in (given.method or METHODS)):
        for found in study(protocol, row, given.line, given.folds):
            done[row.method] = found
            if given.json:
                write_json(given.json, about | {"rows": list(done.values())})
    print(json.dumps(about | {"rows": list(done.values())}, indent=2))


if __name__ == "__main__":
    main()
