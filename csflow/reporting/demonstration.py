"""Choose the parts that a demonstration shows, and draw how a detector judges them."""

from __future__ import annotations

from pathlib import Path

from csflow.config import LineConfig
from csflow.errors import DataError
from csflow.reporting.sheet import GOOD_KIND, judged_sheet

_GOOD_SHOWN, _SHOWN_PER_DEFECT = 4, 2


def choose_parts(line: LineConfig, root: Path) -> list[Path]:
    """Choose some good test images, and some of every type of defect.

    Args:
        line: The product line.
        root: Folder of its images.

    Returns:
        Image files, the good ones first, then the types of defect by name.

    Raises:
        DataError: If the line has no test images.
    """
    from csflow.data.manifest import build_manifest

    test = build_manifest(root, line=line.line, roles=line.roles).rows(role="test")
    kinds: dict[str, list[Path]] = {}
    for file in sorted(test.files, key=lambda f: (f.parent.name != GOOD_KIND, f.parent.name, f.name)):
        shown = kinds.setdefault(file.parent.name, [])
        if len(shown) < (_GOOD_SHOWN if file.parent.name == GOOD_KIND else _SHOWN_PER_DEFECT):
            shown.append(file)
    if not kinds:
        raise DataError(f"Line {line.line} has no test images to show. Add some: csflow data add {line.line} FOLDER")
    return [file for shown in kinds.values() for file in shown]


def write_overview(directory: Path, files: list[Path], target: Path) -> None:
    """Write one picture of a good part and one of each type of defect, as the camera sees them and as judged.

    Args:
        directory: The detector that judges.
        files: Image files; of each type the first one is drawn.
        target: Picture to write.

    Raises:
        ModelError: If ``directory`` is not a detector directory.
        DataError: If a file is not an image.
    """
    from csflow.detector.engine import Engine

    first: dict[str, Path] = {}
    for file in files:
        first.setdefault(file.parent.name, file)
    sheet = judged_sheet(Engine.load(directory), list(first.values()))
    target.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(target)
