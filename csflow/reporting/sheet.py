"""Draw judged parts on one labelled sheet: what the camera sees, what csflow marks, what it decides."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

import numpy as np
from PIL import Image, ImageDraw, ImageFont, ImageOps

from csflow.detector.calibration import Calibration
from csflow.detector.heatmap import MARK_POSITION, colours, overlay
from csflow.detector.prediction import Prediction
from csflow.errors import DataError

if TYPE_CHECKING:
    from csflow.detector.engine import Engine

Font: TypeAlias = ImageFont.ImageFont | ImageFont.FreeTypeFont
Point: TypeAlias = tuple[int, int]

GOOD_KIND = "good"
"""Kind of a part without a defect."""

# Pixels. Shown 800 pixels wide, a sheet of six parts across has text of 12 pixels; at 400 pixels, so has one of three.
_CELL, _GAP, _EDGE, _LABELS = 256, 14, 20, 144
_TEXT, _LINE = 28, 38
_SYMBOL = 52
_PAPER, _INK, _FAINT, _RIGHT, _WRONG = "#ffffff", "#1c2430", "#4d5866", "#136f2d", "#c01f1f"

_TITLE_LABEL = "what it is"
_PICTURE_LABELS = (("as the", "camera", "sees it"), ("what", "csflow", "marks"))
_DECISION_LABEL = ("what", "csflow", "decides")


@dataclass(frozen=True)
class Part:
    """One part of a sheet.

    Attributes:
        image: The picture of the part, RGB.
        kind: ``"good"``, or the type of its defect.
        prediction: What the detector says about it.
    """

    image: Image.Image
    kind: str
    prediction: Prediction

    @property
    def title(self) -> str:
        """Return what the part is, in words."""
        return "good part" if self.kind == GOOD_KIND else self.kind.replace("_", " ")

    @property
    def verdict(self) -> tuple[bool, str] | None:
        """Return the correctness of the decision and the words for it; ``None`` without a decision."""
        decision = self.prediction.decision
        if decision is None:
            return None
        if (decision == GOOD_KIND) == (self.kind == GOOD_KIND):
            return True, "correct"
        return False, "wrong: false alarm" if self.kind == GOOD_KIND else "wrong: missed"


class _LegendItem(NamedTuple):
    symbol: str
    text: str

    @property
    def width(self) -> int:
        return round(_font().getlength(self.text)) + (_SYMBOL + _GAP if self.symbol else 0)


def judged_sheet(detector: Engine, files: Sequence[Path], *, across: int = 6) -> Image.Image:
    """Judge image files with a detector and draw them on a labelled sheet.

    Args:
        detector: Judges the images; its calibration fixes colours, frames and decisions.
        files: Image files. The name of a file's folder says what the part is: ``good``, or the type of its defect.
        across: Number of parts next to each other; further parts go into further bands.

    Returns:
        An RGB picture.

    Raises:
        DataError: If there are no files, or if a file is not an image.
    """
    images = [detector.read(file) for file in files]
    parts = [
        Part(image, file.parent.name, prediction)
        for image, file, prediction in zip(images, files, detector.predict(images), strict=True)
    ]
    return labelled_sheet(parts, detector.calibration, across=across)


def labelled_sheet(parts: Sequence[Part], calibration: Calibration, *, across: int = 6) -> Image.Image:
    """Draw parts with captions: what they are, what csflow marks in them, and what it decides.

    Args:
        parts: At least one, in the order in which they are shown.
        calibration: Of the detector that judged them: fixes colours, frames and the stated threshold.
        across: Number of parts next to each other; further parts go into further bands.

    Returns:
        An RGB picture. It is readable at a width of 800 pixels with six parts across, and at 400 pixels with three.

    Raises:
        DataError: If there are no parts.
    """
    if not parts:
        raise DataError("A sheet needs at least one part, got none. Pass the images that it should show.")
    columns = min(across, len(parts))
    height = max(_fitted(part.image).height for part in parts)
    band = _LINE + 2 * (height + _GAP) + len(_DECISION_LABEL) * _LINE + 2 * _GAP
    legend = _legend(calibration)
    across_all = _LABELS + columns * (_CELL + _GAP)
    width = 2 * _EDGE + max(across_all, *(item.width for item in legend))
    lines = _arranged(legend, width - 2 * _EDGE)
    bands = math.ceil(len(parts) / columns)
    sheet = Image.new("RGB", (width, 2 * _EDGE + bands * band + len(lines) * (_LINE + _GAP)), _PAPER)
    for index, part in enumerate(parts):
        row, column = divmod(index, columns)
        corner = (_EDGE + _LABELS + column * (_CELL + _GAP), _EDGE + row * band)
        _draw_part(sheet, part, calibration, corner, height)
    for row in range(bands):
        _draw_row_labels(sheet, _EDGE + row * band, height)
    _draw_legend(sheet, lines, _EDGE + bands * band)
    return sheet


def _draw_part(sheet: Image.Image, part: Part, calibration: Calibration, corner: Point, height: int) -> None:
    """Draw one column: title, picture, marked picture, decision, score, verdict."""
    pen = ImageDraw.Draw(sheet)
    x, y = corner
    _write(pen, (x, y), part.title, bold=True)
    y += _LINE
    marked = overlay(part.image, part.prediction.anomaly_map, calibration.scale, calibration.region_threshold)
    for picture in (_fitted(part.image), _fitted(marked)):
        sheet.paste(picture, (x + (_CELL - picture.width) // 2, y + (height - picture.height) // 2))
        y += height + _GAP
    decision = part.prediction.decision
    _write(pen, (x, y), decision or "no decision", bold=True)
    _write(pen, (x, y + _LINE), f"score {part.prediction.score:.2f}", colour=_FAINT)
    if part.verdict is not None:
        right, words = part.verdict
        colour = _RIGHT if right else _WRONG
        _draw_check(pen, (x, y + 2 * _LINE), right, colour)
        _write(pen, (x + _TEXT + 6, y + 2 * _LINE), words, colour=colour, bold=True, width=_CELL - _TEXT - 6)


def _draw_row_labels(sheet: Image.Image, top: int, height: int) -> None:
    pen = ImageDraw.Draw(sheet)
    _write(pen, (_EDGE, top), _TITLE_LABEL, colour=_FAINT)
    y = top + _LINE
    for words in _PICTURE_LABELS:
        _write_lines(pen, (_EDGE, y + (height - len(words) * _LINE) // 2), words)
        y += height + _GAP
    _write_lines(pen, (_EDGE, y), _DECISION_LABEL)


def _write_lines(pen: ImageDraw.ImageDraw, corner: Point, words: Sequence[str]) -> None:
    for line, word in enumerate(words):
        _write(pen, (corner[0], corner[1] + line * _LINE), word, colour=_FAINT)


def _draw_check(pen: ImageDraw.ImageDraw, corner: Point, right: bool, colour: str) -> None:
    """Draw a tick or a cross, so that the verdict does not depend on seeing its colour."""
    x, y, side = corner[0] + 2, corner[1] + 8, _TEXT - 8
    if right:
        pen.line(
            [(x, y + side * 0.55), (x + side * 0.38, y + side * 0.92), (x + side, y + side * 0.1)],
            fill=colour,
            width=5,
            joint="curve",
        )
    else:
        pen.line([(x, y), (x + side, y + side)], fill=colour, width=5)
        pen.line([(x, y + side), (x + side, y)], fill=colour, width=5)


def _legend(calibration: Calibration) -> list[_LegendItem]:
    items = [_LegendItem("colour", "colour: red is unusual, yellow more so")]
    if calibration.region_threshold is not None:
        items.insert(0, _LegendItem("frame", "a frame marks a region above the region threshold"))
    if calibration.threshold is not None:
        items.append(_LegendItem("", f"a score above {calibration.threshold:.2f} means defective"))
    return items


def _arranged(items: Sequence[_LegendItem], width: int) -> list[list[_LegendItem]]:
    """Return the items in lines that are at most ``width`` pixels wide."""
    lines: list[list[_LegendItem]] = []
    free = 0
    for item in items:
        if not lines or item.width > free:
            lines.append([])
            free = width
        lines[-1].append(item)
        free -= item.width + 3 * _GAP
    return lines


def _draw_legend(sheet: Image.Image, lines: Sequence[Sequence[_LegendItem]], top: int) -> None:
    pen = ImageDraw.Draw(sheet)
    for row, line in enumerate(lines):
        x, y = _EDGE, top + _GAP + row * (_LINE + _GAP)
        for item in line:
            indent = _SYMBOL + _GAP if item.symbol else 0
            area = (x, y + 2, x + _SYMBOL, y + _LINE - 2)
            if item.symbol == "frame":
                pen.rectangle(area, fill="#5d6f86")
                pen.rectangle((area[0] + 8, area[1] + 6, area[2] - 8, area[3] - 6), outline="#ffffff", width=3)
            elif item.symbol == "colour":
                ramp = colours(np.linspace(MARK_POSITION, 1.0, _SYMBOL)[None, :].repeat(_LINE - 4, axis=0))
                sheet.paste(Image.fromarray(ramp), area[:2])
            _write(pen, (x + indent, y), item.text, width=None)
            x += item.width + 3 * _GAP


def _write(
    pen: ImageDraw.ImageDraw,
    corner: Point,
    text: str,
    *,
    colour: str = _INK,
    bold: bool = False,
    width: int | None = _CELL,
) -> None:
    """Write one line of text; what is wider than ``width`` pixels ends in an ellipsis."""
    font = _font()
    if width is not None and font.getlength(text) > width:
        while text and font.getlength(text + "…") > width:
            text = text[:-1]
        text = text.rstrip() + "…"
    # Pillow's own font has one weight; a hair of stroke makes the other.
    pen.text(corner, text, fill=colour, font=font, stroke_width=0.4 if bold else 0, stroke_fill=colour)


def _fitted(picture: Image.Image) -> Image.Image:
    return ImageOps.contain(picture.convert("RGB"), (_CELL, _CELL), Image.Resampling.LANCZOS)


@cache
def _font() -> Font:
    return ImageFont.load_default(_TEXT)
