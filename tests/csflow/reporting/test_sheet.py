"""A sheet says of every part what it is, what was decided and how right that is, and explains its own marks."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image, ImageChops

from csflow.config import CalibrationConfig
from csflow.detector.calibration import Calibration, calibrate
from csflow.detector.engine import Engine
from csflow.detector.prediction import judged
from csflow.errors import DataError
from csflow.reporting.sheet import Part, judged_sheet, labelled_sheet
from tests.csflow.conftest import MakeDetector

HELD_OUT = np.linspace(0.1, 1.0, 40)
MAPS = HELD_OUT[:, None, None] * np.ones((2, 2))
CALIBRATION = calibrate(HELD_OUT, MAPS, CalibrationConfig(alpha=0.1))
UNCALIBRATED = calibrate(HELD_OUT, MAPS, "none")
BELOW, ABOVE = 0.5, 2.0
GREEN, RED, PART = (0x13, 0x6F, 0x2D), (0xC0, 0x1F, 0x1F), (90, 90, 200)


def part(kind: str, score: float, *, size: tuple[int, int] = (64, 64), calibration: Calibration = CALIBRATION) -> Part:
    map2d = np.full((4, 4), 0.2, np.float32)
    map2d[1, 1] = score
    return Part(Image.new("RGB", size, PART), kind, judged(score, map2d, size, calibration))


def sheet(*parts: Part, across: int = 6, calibration: Calibration = CALIBRATION) -> Image.Image:
    return labelled_sheet(parts, calibration, across=across)


def changed(one: Image.Image, other: Image.Image) -> tuple[int, int, int, int]:
    """The box in which two sheets of equal size differ."""
    assert one.size == other.size
    box = ImageChops.difference(one, other).getbbox()
    assert box is not None
    return box


def of_colour(picture: Image.Image, colour: tuple[int, int, int]) -> npt.NDArray[np.bool_]:
    pixels: npt.NDArray[np.uint8] = np.asarray(picture)
    return np.asarray((pixels == colour).all(axis=-1))


def test_the_title_says_what_a_part_is_and_stands_above_its_picture() -> None:
    whole = sheet(part("good", ABOVE), part("hole", ABOVE))
    left, top, right, bottom = changed(whole, sheet(part("good", ABOVE), part("cut", ABOVE)))
    assert whole.width // 2 < left < right < whole.width
    assert top < bottom < whole.height // 8


def test_score_and_decision_stand_below_the_pictures() -> None:
    one, other = sheet(part("hole", 2.0)), sheet(part("hole", 2.25))
    _, top, _, bottom = changed(one.crop((0, 580, *one.size)), other.crop((0, 580, *other.size)))
    assert bottom - top < 40, "the line of the score changes, and none of the others"


def test_a_right_and_a_wrong_decision_differ_in_colour_and_in_shape() -> None:
    for right in (part("good", BELOW), part("hole", ABOVE)):
        assert of_colour(sheet(right), GREEN).sum() > 100
        assert not of_colour(sheet(right), RED).any()
    for wrong in (part("good", ABOVE), part("hole", BELOW)):
        assert of_colour(sheet(wrong), RED).sum() > 100
        assert not of_colour(sheet(wrong), GREEN).any()
    tick, cross = (
        of_colour(sheet(part("hole", score)), colour)[:, 164:190] for score, colour in ((ABOVE, GREEN), (BELOW, RED))
    )
    assert (tick != cross).any()


@pytest.mark.parametrize(
    ("kind", "score", "verdict"),
    [
        ("good", BELOW, (True, "correct")),
        ("good", ABOVE, (False, "wrong: false alarm")),
        ("broken_thread", ABOVE, (True, "correct")),
        ("broken_thread", BELOW, (False, "wrong: missed")),
    ],
)
def test_a_verdict_compares_the_decision_with_what_the_part_is(
    kind: str, score: float, verdict: tuple[bool, str]
) -> None:
    assert part(kind, score).verdict == verdict
    assert part(kind, score).title == ("good part" if kind == "good" else "broken thread")


def test_without_a_threshold_nothing_is_called_right_or_wrong() -> None:
    alone = part("hole", ABOVE, calibration=UNCALIBRATED)
    assert alone.verdict is None
    drawn = sheet(alone, calibration=UNCALIBRATED)
    assert not of_colour(drawn, RED).any()
    assert not of_colour(drawn, GREEN).any()
    assert drawn.height < sheet(part("hole", ABOVE)).height, "no legend line for frames and threshold"


def test_the_sheet_grows_with_its_parts_and_wraps_into_bands() -> None:
    parts = [part("good", BELOW) for _ in range(6)]
    wide, narrower, wrapped = sheet(*parts[:4]), sheet(*parts[:3]), sheet(*parts, across=3)
    assert wide.width - narrower.width == 270
    assert narrower.height > wide.height, "the legend needs a second line"
    assert wrapped.width == narrower.width
    assert wrapped.height > 1.8 * wide.height
    assert sheet(*parts[:4], across=3).size == wrapped.size, "a band is drawn for one part, too"


def test_every_part_is_shown_as_seen_and_as_marked() -> None:
    drawn = sheet(part("hole", 50.0, size=(100, 50)))
    seen, marked = drawn.crop((164, 58, 420, 186)), drawn.crop((164, 200, 420, 328))
    assert of_colour(seen, PART).all(), "shown whole, in its own shape"
    unmarked = of_colour(marked, PART)
    assert unmarked.any(), "only a region is painted"
    assert not unmarked.all(), "a region is painted"


def test_a_long_name_keeps_to_its_column() -> None:
    *_, right, _ = changed(sheet(part("a" * 60, ABOVE), part("b", ABOVE)), sheet(part("a", ABOVE), part("b", ABOVE)))
    assert right <= 20 + 144 + 256


def test_a_sheet_without_parts_is_refused() -> None:
    with pytest.raises(DataError, match="at least one part"):
        sheet()


def test_files_are_judged_and_named_after_their_folder(make_detector: MakeDetector, tmp_path: Path) -> None:
    files = [tmp_path / "good" / "1.png", tmp_path / "hole" / "2.png"]
    for file in files:
        file.parent.mkdir()
        Image.linear_gradient("L").save(file)
    engine = Engine.load(make_detector("sheet"))
    images = [Image.open(file).convert("RGB") for file in files]
    parts = [
        Part(image, kind, engine.predict([image])[0]) for image, kind in zip(images, ("good", "hole"), strict=True)
    ]
    expected = labelled_sheet(parts, engine.calibration)
    assert ImageChops.difference(judged_sheet(engine, files), expected).getbbox() is None
