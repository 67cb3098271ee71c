"""Every encoding of a picture passes through the commands that take images; what cannot be known is named."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest
from typer.testing import CliRunner

from csflow.adapters.data_quality import run_data_gate
from csflow.cli.app import app
from csflow.config import QualityConfig, RolesConfig
from csflow.data.manifest import build_manifest
from csflow.detector.detector import Detector
from tests.csflow.data.encodings import Encoding, deep_grey, refused, same_picture

pytestmark = pytest.mark.slow

SAME = list(same_picture())
REFUSED = [encoding for encoding, _ in refused()]


def written(folder: Path, encodings: Iterable[Encoding]) -> dict[str, Encoding]:
    """Write pictures as files and list them by name."""
    folder.mkdir(parents=True)
    named = {f"{number:03}{encoding.suffix}": encoding for number, encoding in enumerate(encodings)}
    for name, encoding in named.items():
        (folder / name).write_bytes(encoding.content)
    return named


def test_score_gives_one_score_for_one_picture(make_detector: Callable[..., Path], tmp_path: Path) -> None:
    named = written(tmp_path / "in", [*SAME, *REFUSED])
    directory = make_detector("tiles")
    arguments = ["score", str(tmp_path / "in"), "--model", str(directory), "--out", str(tmp_path / "out"), "--json"]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 1, "some images are refused"
    said = json.loads(result.stdout)
    scores = {Path(row["image"]).name: row["score"] for row in said["scores"]}
    exact = {True: set[float](), False: set[float]()}
    for name, encoding in named.items():
        if encoding not in REFUSED and encoding.tolerance == 0:
            exact[encoding.colour].add(scores[name])
    assert [len(each) for each in exact.values()] == [1, 1], "the same pixels have the same score"
    for name, encoding in named.items():
        if encoding not in REFUSED:
            assert scores[name] == pytest.approx(next(iter(exact[encoding.colour])), rel=0.05), encoding.name
    failed = {Path(reason.split(" ")[0]).name for reason in said["failed"]}
    assert failed == {name for name, encoding in named.items() if encoding in REFUSED}


def test_score_reads_the_camera_of_the_line(make_detector: Callable[..., Path], tmp_path: Path) -> None:
    plain = Detector.load(make_detector("tiles"))
    deep = Detector(
        plain.line.model_copy(update={"features": plain.line.features.model_copy(update={"bit_depth": 12})}),
        plain.backbone, plain.model, plain.calibration, plain.lineage,
    )  # fmt: skip
    deep.save(tmp_path / "deep")
    grey = next(encoding for encoding in SAME if encoding.name == "PNG L")
    written(tmp_path / "in", [grey, *deep_grey(12)])
    arguments = ["score", str(tmp_path / "in"), "-m", str(tmp_path / "deep"), "--out", str(tmp_path / "out"), "--json"]
    result = CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert len({row["score"] for row in json.loads(result.stdout)["scores"]}) == 1


def test_import_takes_every_encoding_and_the_gate_reads_it(tmp_path: Path) -> None:
    written(tmp_path / "good", SAME)
    arguments = ["import", "folder", str(tmp_path / "line"), "--good", str(tmp_path / "good"), "--test-share", "0"]
    assert CliRunner().invoke(app, arguments, catch_exceptions=False).exit_code == 0
    manifest = build_manifest(tmp_path / "line", line="line", roles=RolesConfig())
    assert len(manifest) == len(SAME)
    assert manifest.left_out == {}
    report = run_data_gate(manifest, QualityConfig(min_test_good=0))
    assert report.success, report.explanation("line")
    assert {warning.expectation for warning in report.warnings} == {"no_copies", "one_picture"}


def test_the_gate_names_every_picture_that_is_unknown(tmp_path: Path) -> None:
    named = written(tmp_path / "good", [SAME[0], *REFUSED])
    arguments = ["import", "folder", str(tmp_path / "line"), "--good", str(tmp_path / "good"), "--test-share", "0"]
    assert CliRunner().invoke(app, arguments, catch_exceptions=False).exit_code == 0
    manifest = build_manifest(tmp_path / "line", line="line", roles=RolesConfig())
    report = run_data_gate(manifest, QualityConfig(min_train=1, min_test_good=0))
    (failure,) = report.failures
    assert failure.expectation == "readable"
    assert {Path(path).name for path in failure.files} == set(named) - {"000.png"}
