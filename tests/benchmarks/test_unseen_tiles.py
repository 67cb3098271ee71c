"""Pictures of one tile stay together, whatever the split says."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest
from unseen_tiles import folds_by_tile, known_tiles, tiles_of

from csflow.data.manifest import COLUMNS, Manifest
from csflow.errors import DataError


def manifest_of(*images: tuple[str, str, int]) -> Manifest:
    """Manifest of (split, label, running number)."""
    rows = []
    for split, label, number in images:
        path = f"{split}/{label}/exp{number % 6 + 1}_num_{number}.jpg"
        row = dict.fromkeys(COLUMNS, "") | {"path": path, "split": split, "label": label, "sha256": f"{number:064d}"}
        rows.append(row)
    return Manifest(pd.DataFrame(rows, columns=list(COLUMNS)).sort_values("path", ignore_index=True), Path())


def test_a_wide_gap_between_running_numbers_begins_a_new_tile() -> None:
    numbers = [5000, 120, 270, 100, 421, 5030]
    assert tiles_of([f"exp1_num_{number}.jpg" for number in numbers]) == [2, 0, 0, 0, 1, 2]


def test_a_name_without_a_number_is_refused() -> None:
    with pytest.raises(DataError, match=r"IMG_7\.jpg is not named like an image of Magnetic Tile Defects"):
        tiles_of(["exp1_num_1.jpg", "IMG_7.jpg"])


def test_no_tile_is_fitted_and_judged_and_every_good_picture_is_judged_once() -> None:
    good = [
        ("test" if shot == 0 else "train", "good", tile * 1000 + shot * 20) for tile in range(7) for shot in range(6)
    ]
    manifest = manifest_of(*good, ("test", "defective", 90_000))
    judged: list[str] = []
    for fit, test in folds_by_tile(manifest, 3):
        numbers = [int(path.split("_")[2][:-4]) for path in test.frame["path"][test.frame["label"] == "good"]]
        assert {number // 1000 for number in numbers}.isdisjoint(
            int(path.split("_")[2][:-4]) // 1000 for path in fit.frame["path"]
        )
        assert list(test.frame["label"]).count("defective") == 1
        assert set(fit.frame["label"]) == {"good"}
        judged += list(test.frame["path"][test.frame["label"] == "good"])
    assert sorted(judged) == sorted(manifest.rows(label="good").frame["path"])


def test_share_of_test_pictures_whose_tile_was_trained_on() -> None:
    manifest = manifest_of(
        ("train", "good", 100),
        ("test", "good", 130),
        ("test", "good", 160),
        ("test", "good", 9000),
        ("test", "good", 9020),
    )
    assert known_tiles(manifest) == 0.5
