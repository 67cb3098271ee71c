"""Files that commands write never replace one that csflow did not make."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from csflow.cli.options import require_replaceable, require_report_folder
from csflow.errors import UsageError


def test_a_file_may_be_replaced_if_csflow_made_it(tmp_path: Path) -> None:
    target = tmp_path / "x.onnx"
    require_replaceable(target, b"csflow_format")
    target.write_bytes(b"... csflow_format ...")
    require_replaceable(target, b"csflow_format")


@pytest.mark.parametrize("kind", ["file", "empty", "folder", "broken link"])
def test_anything_else_in_the_way_is_refused(tmp_path: Path, kind: str) -> None:
    target = tmp_path / "photo.png"
    match kind:
        case "file":
            target.write_bytes(b"\x89PNG")
        case "empty":
            target.touch()
        case "folder":
            target.mkdir()
        case _:
            target.symlink_to(tmp_path / "nothing")
    with pytest.raises(UsageError, match=r"photo\.png would be replaced, but csflow did not make it"):
        require_replaceable(target, b"csflow_format")


@pytest.mark.parametrize("name", ["report.html", "roc.png", "samples/1.png", "report.json"])
def test_a_report_goes_into_a_folder_without_foreign_files_of_its_names(tmp_path: Path, name: str) -> None:
    require_report_folder(tmp_path / "new")
    (tmp_path / "photo.png").touch()
    require_report_folder(tmp_path)
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text("mine")
    with pytest.raises(UsageError, match=f"{name.split('/')[0]} would be replaced"):
        require_report_folder(tmp_path)


def test_an_earlier_report_may_be_replaced(tmp_path: Path) -> None:
    (tmp_path / "report.json").write_text(json.dumps({"calibration": {}}))
    (tmp_path / "report.html").write_text("<html>")
    require_report_folder(tmp_path)
