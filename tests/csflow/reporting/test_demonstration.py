"""The parts of a demonstration: good ones first, then some of every defect."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from csflow.config import DataConfig, LineConfig
from csflow.errors import DataError
from csflow.reporting.demonstration import choose_parts

LINE = LineConfig(line="bolts", data=DataConfig(path="."))


def picture(path: Path, shade: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L", (40, 40), shade).save(path)


def test_the_demo_shows_good_parts_first_and_some_of_every_defect(tmp_path: Path) -> None:
    for shade, name in enumerate(["train/good/a", "test/good/b", *(f"test/crack/{n}" for n in "cde"), "test/bent/f"]):
        picture(tmp_path / f"{name}.png", shade)
    (tmp_path / "test" / "crack" / "notes.txt").write_text("no image")
    assert [f"{f.parent.name}/{f.stem}" for f in choose_parts(LINE, tmp_path)] == [
        "good/b",
        "bent/f",
        "crack/c",
        "crack/d",
    ]


def test_a_line_without_test_images_is_refused(tmp_path: Path) -> None:
    picture(tmp_path / "train" / "good" / "a.png", 1)
    with pytest.raises(DataError, match="no test images"):
        choose_parts(LINE, tmp_path)
