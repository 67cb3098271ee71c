"""``csflow export`` and ``csflow score`` on a real detector directory, as a person at the shell meets them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from PIL import Image
from typer.testing import CliRunner

from csflow.cli.app import app
from csflow.detector.detector import Detector
from csflow.errors import DataError, UsageError

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def directory(make_detector: Callable[..., Path]) -> Path:
    return make_detector("tiles")


@pytest.fixture
def pictures(home: Path) -> list[Path]:
    folder, draw = home / "data" / "tiles" / "digest" / "train", np.random.default_rng(0)
    folder.mkdir(parents=True)
    files = [folder / f"{index:02}.png" for index in range(11)]
    for index, file in enumerate(files):
        Image.fromarray(draw.integers(0, 256, (90 + index, 120, 3), dtype=np.uint8)).save(file)
    mask = folder.parent / "ground_truth" / "mask.png"
    mask.parent.mkdir()
    Image.new("L", (120, 90)).save(mask)
    return files


def test_export_writes_one_file_compared_on_the_lines_images(
    directory: Path, pictures: list[Path], tmp_path: Path
) -> None:
    target = tmp_path / "device" / "tiles.onnx"
    found = CliRunner().invoke(app, ["export", str(directory), "--output", str(target)], catch_exceptions=False)
    assert found.exit_code == 0, found.output
    assert "compared with the detector on 3 images of the line" in " ".join(found.output.split())
    assert "score, map, defective" in found.output
    image = Image.open(pictures[0])
    session = onnxruntime.InferenceSession(target, providers=["CPUExecutionProvider"])
    (score,) = session.run(["score"], {"images": np.asarray(image)[None]})[0]
    assert score == pytest.approx(Detector.load(directory).predict([image])[0].score, rel=1e-4)


def test_export_without_images_and_with_a_wrong_name(
    directory: Path, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    found = CliRunner().invoke(app, ["export", str(directory)], catch_exceptions=False)
    assert "drawn images" in found.output
    assert [path.name for path in tmp_path.glob("*.onnx")] == ["tiles.onnx"]
    with pytest.raises(UsageError):
        CliRunner().invoke(app, ["export", "no/such/directory"], catch_exceptions=False)


def test_score_says_what_the_detector_says(directory: Path, pictures: list[Path], tmp_path: Path) -> None:
    """More images than are computed at once, in their order, each with its overlay."""
    arguments = ["score", str(pictures[0].parent), "--model", str(directory), "--out", str(tmp_path / "out"), "--json"]
    found = json.loads(CliRunner().invoke(app, arguments, catch_exceptions=False).stdout)
    expected = Detector.load(directory).predict([Image.open(file) for file in pictures])
    assert [Path(row["image"]).name for row in found["scores"]] == [file.name for file in pictures]
    for row, prediction, file in zip(found["scores"], expected, pictures, strict=True):
        assert row["score"] == pytest.approx(prediction.score, rel=1e-4)
        assert row["decision"] == prediction.decision
        assert Image.open(row["overlay"]).size == Image.open(file).size


def test_score_leaves_pictures_as_they_are_and_its_own_overlays_out(
    directory: Path, pictures: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Twice in the folder of the pictures, with a second picture of the same stem."""
    folder = pictures[0].parent
    Image.open(pictures[0]).save(folder / "00.bmp")
    before = {file: file.read_bytes() for file in folder.iterdir()}
    monkeypatch.chdir(folder)
    for _ in range(2):
        found = CliRunner().invoke(
            app, ["score", ".", "00.bmp", "--model", str(directory), "--out", ".", "--json"], catch_exceptions=False
        )
        rows = json.loads(found.stdout)["scores"]
        assert len(rows) == len({row["overlay"] for row in rows}) == 12
    assert "score: 12 files of . are left out: 00.bmp-overlay.png (an overlay that csflow drew)" in found.stderr
    assert {file: file.read_bytes() for file in before} == before
    assert len(list(folder.iterdir())) == 24
    with pytest.raises(UsageError, match=r"00\.png-overlay\.png is an overlay"):
        CliRunner().invoke(app, ["score", "00.png-overlay.png", "--model", str(directory)], catch_exceptions=False)


def test_a_damaged_image_costs_only_its_own_score(directory: Path, pictures: list[Path], tmp_path: Path) -> None:
    folder = pictures[0].parent
    (folder / "03.png").write_bytes(pictures[3].read_bytes()[:500])
    (folder / "05.png").write_bytes(b"")
    arguments = ["score", str(folder), "--model", str(directory), "--out", str(tmp_path / "out")]
    found = CliRunner().invoke(app, [*arguments, "--json"])
    said = json.loads(found.stdout)
    assert [Path(row["image"]).name for row in said["scores"]] == [f"{n:02}.png" for n in range(11) if n not in (3, 5)]
    assert [reason.split(" is ")[0] for reason in said["failed"]] == [str(folder / "03.png"), str(folder / "05.png")]
    assert len(list((tmp_path / "out").iterdir())) == 9
    with pytest.raises(
        DataError, match=r"2 of 11 images could not be scored:\n  .*03\.png is damaged.*\n  .*05\.png is empty"
    ):
        CliRunner().invoke(app, arguments, catch_exceptions=False)
    with pytest.raises(DataError, match=r"^[^\n]*03\.png is damaged"):
        CliRunner().invoke(app, ["score", str(folder / "03.png"), *arguments[2:]], catch_exceptions=False)
