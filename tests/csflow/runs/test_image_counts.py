"""Too few images are refused before anything is computed, with the message that the calibration would give."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from csflow.config import LineConfig
from csflow.data.manifest import Manifest, build_manifest
from csflow.detector.calibration import calibrate
from csflow.errors import DataError
from csflow.runs.image_counts import check_enough


def line_of(**sections: object) -> LineConfig:
    return LineConfig.model_validate_json(json.dumps({"line": "bolts", "data": {"path": "x"}} | sections))


def images(root: Path, line: LineConfig, count: int = 40) -> Manifest:
    folder = root / "train/good"
    folder.mkdir(parents=True)
    for number in range(count):
        Image.fromarray(np.full((8, 8), number, np.uint8)).save(folder / f"{number:02d}.png")
    return build_manifest(root, line=line.line, roles=line.roles)


@pytest.mark.parametrize("confidence", [None, 0.95])
def test_the_promise_is_checked_as_the_calibration_checks_it(tmp_path: Path, confidence: float | None) -> None:
    line = line_of(calibration={"alpha": 0.05, "confidence": confidence})
    manifest = images(tmp_path, line)
    held_out = len(manifest.rows(role="calibrate"))
    assert 0 < held_out < 19
    with pytest.raises(DataError, match=f"{held_out} good images are held out.*needs at least") as early:
        check_enough(line, manifest)
    assert line.calibration != "none"
    with pytest.raises(DataError) as late:
        calibrate(np.arange(held_out), np.ones((held_out, 2, 2)), line.calibration)
    assert str(early.value) == str(late.value)
    check_enough(line_of(calibration="none"), manifest)
    check_enough(line_of(calibration={"alpha": 0.5}), manifest)


def test_pictures_of_one_part_count_once(tmp_path: Path) -> None:
    line = line_of(calibration={"alpha": 0.2}, roles={"calibrate": 0.5, "gate": 0.0})
    manifest = images(tmp_path, line)
    check_enough(line, manifest)
    rows = [f"{path},one" for path in manifest.rows(role="calibrate").frame["path"]]
    (tmp_path / "groups.csv").write_text("\n".join(["path,group", *rows]))
    grouped = build_manifest(tmp_path, line="bolts", roles=line.roles)
    with pytest.raises(DataError, match=r"^[01] good images are held out"):
        check_enough(line, grouped)


def test_somebody_has_to_be_fitted(tmp_path: Path) -> None:
    line = line_of(roles={"calibrate": 0.3, "gate": 0.1}, calibration={"alpha": 0.5})
    manifest = images(tmp_path, line, count=20)
    frame = manifest.frame[manifest.frame["role"] != "fit"].reset_index(drop=True)
    with pytest.raises(DataError, match=rf"None of the {len(frame)} images in train is left to fit"):
        check_enough(line, Manifest(frame, tmp_path))
    with pytest.raises(DataError, match="shots asks for 30 images"):
        check_enough(line_of(roles={"calibrate": 0.1, "gate": 0.1, "shots": 30}), manifest)
