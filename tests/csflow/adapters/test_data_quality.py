"""The data gate: every kind of bad data is refused, named and explained."""

from __future__ import annotations

import json
import re
import socket
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from csflow.adapters.data_quality import BrokenExpectation, QualityReport, run_data_gate
from csflow.config import QualityConfig, RolesConfig
from csflow.data.inspection import inspect_images
from csflow.data.manifest import build_manifest

BOUNDS = QualityConfig(min_train=3, min_test_good=1, min_test_defective=1, min_side=32, max_side=200)


def save(path: Path, seed: int, size: tuple[int, int] = (48, 40), mode: str = "RGB", **options: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(pixels).convert(mode).save(path, **options)
    return path


def save_mask(path: Path, size: tuple[int, int] = (48, 40), value: int = 255) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    mask = Image.new("L", size)
    mask.putpixel((5, 5), value)
    mask.save(path)
    return path


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A small line with nothing wrong."""
    for number in range(4):
        save(tmp_path / f"train/good/{number}.png", number)
    save(tmp_path / "test/good/0.png", 10)
    save(tmp_path / "test/cut/0.png", 20)
    save(tmp_path / "test/cut/1.png", 21)
    save_mask(tmp_path / "ground_truth/cut/0_mask.png")
    return tmp_path


def check(root: Path, bounds: QualityConfig = BOUNDS) -> QualityReport:
    return run_data_gate(build_manifest(root, line="bolts", roles=RolesConfig()), bounds)


def only_failure(report: QualityReport) -> BrokenExpectation:
    assert [failure.expectation for failure in report.failures] == [report.failures[0].expectation]
    assert not report.success
    return report.failures[0]


def truncate(root: Path) -> None:
    file = save(root / "train/good/9.jpg", 9, quality=95)
    file.write_bytes(file.read_bytes()[:900])


def two_labels(root: Path) -> None:
    (root / "test/cut/5.png").write_bytes((root / "test/good/0.png").read_bytes())


def leak(root: Path) -> None:
    (root / "test/good/5.png").write_bytes((root / "train/good/2.png").read_bytes())


def leak_resaved(root: Path) -> None:
    Image.open(root / "train/good/2.png").save(root / "test/good/5.bmp")


def white(root: Path) -> None:
    Image.new("RGB", (48, 40), "white").save(root / "train/good/w.png")


def turned_mask(root: Path) -> None:
    """The image is stored lying and shown upright; its mask is stored as the image is."""
    exif = Image.Exif()
    exif[0x0112] = 6
    save(root / "test/cut/7.jpg", 7, exif=exif)
    save_mask(root / "ground_truth/cut/7_mask.png", (48, 40))


BAD: list[tuple[Callable[[Path], object], str, list[str], str]] = [
    (truncate, "readable", ["train/good/9.jpg"], "damaged"),
    (lambda r: (r / "train/good/n.png").write_text("not an image"), "readable", ["train/good/n.png"], "not an image"),
    (lambda r: (r / "test/good/e.png").touch(), "readable", ["test/good/e.png"], "empty"),
    (lambda r: save(r / "train/scratch/1.png", 30), "only_good_in_train", ["train/scratch/1.png"], "scratch"),
    (leak, "no_leak", ["test/good/5.png"], "train/good/2.png"),
    (leak_resaved, "no_leak", ["test/good/5.bmp"], "train/good/2.png"),
    (two_labels, "one_label", ["test/cut/5.png", "test/good/0.png"], "test/good/0.png"),
    (lambda r: save(r / "train/good/s.png", 31, (90, 31)), "large_enough", ["train/good/s.png"], "90 x 31"),
    (lambda r: save(r / "train/good/l.png", 32, (40, 201)), "small_enough", ["train/good/l.png"], "40 x 201"),
    (white, "not_constant", ["train/good/w.png"], "48 x 40"),
    (lambda r: (r / "ground_truth/cut/1_mask.png").write_text("?"), "mask_readable", ["test/cut/1.png"], "not an im"),
    (lambda r: save_mask(r / "ground_truth/cut/1_mask.png", (40, 48)), "mask_fits", ["test/cut/1.png"], "40 x 48"),
    (lambda r: save_mask(r / "ground_truth/cut/1_mask.png", value=0), "mask_marks", ["test/cut/1.png"], "48 x 40"),
    (turned_mask, "mask_fits", ["test/cut/7.jpg"], "48 x 40"),
]  # fmt: skip


@pytest.mark.parametrize(("spoil", "expectation", "files", "found"), BAD)
def test_each_kind_of_bad_data_is_named(
    root: Path, spoil: Callable[[Path], object], expectation: str, files: list[str], found: str
) -> None:
    spoil(root)
    report = check(root)
    failure = only_failure(report)
    assert (failure.expectation, list(failure.files)) == (expectation, files)
    assert found in failure.found[0]
    assert all(part in report.explanation("bolts") for part in (files[0], found, failure.explanation))
    assert all(part in report.html() for part in (files[0], found, "Refused."))


def test_a_good_line_passes_and_is_described(root: Path) -> None:
    report = check(root)
    assert report.success
    assert (report.failures, report.warnings) == ((), ())
    assert report.statistics == {
        "images": 7,
        "good images in train": 4,
        "good images in test": 1,
        "defective images in test": 2,
        "masks": 1,
        "defects": "cut (2)",
        "sizes": "48 x 40 (7)",
        "modes": "RGB (7)",
    }
    assert "Passed." in report.html()


def test_a_mode_outside_the_bounds_is_refused(root: Path) -> None:
    save(root / "test/good/gray.png", 40, mode="L")
    assert check(root).success
    failure = only_failure(check(root, BOUNDS.model_copy(update={"modes": ("RGB",)})))
    assert (failure.expectation, failure.files, failure.found) == ("mode", ("test/good/gray.png",), ("L",))


@pytest.mark.parametrize(
    ("key", "found", "what"),
    [("min_train", 4, "good images in train"), ("min_test_good", 1, "good images in test"),
     ("min_test_defective", 2, "defective images in test")],
)  # fmt: skip
def test_counts_are_held_against_their_bounds(root: Path, key: str, found: int, what: str) -> None:
    assert check(root, BOUNDS.model_copy(update={key: found})).success
    failure = only_failure(check(root, BOUNDS.model_copy(update={key: found + 1})))
    assert failure.files == ()
    assert f"at least {found + 1} {what}: found {found}." in failure.explanation
    assert f"quality.{key}" in failure.explanation


def test_a_copy_inside_train_is_a_warning(root: Path) -> None:
    Image.open(root / "train/good/1.png").save(root / "train/good/1 again.bmp")
    report = check(root)
    assert report.success
    (warning,) = report.warnings
    assert (warning.expectation, warning.files, warning.found) == (
        "no_copies", ("train/good/1.png",), ("train/good/1 again.bmp",),
    )  # fmt: skip
    assert "Warnings" in report.html()


def test_an_empty_manifest_fails_clearly(root: Path) -> None:
    nothing = build_manifest(root, line="bolts", roles=RolesConfig()).rows(label="none of these")
    report = run_data_gate(nothing, BOUNDS)
    failure = only_failure(report)
    assert failure.expectation == "not_empty"
    assert "There are images: found 0." in failure.explanation
    json.dumps(report.to_json())
    assert "Refused." in report.html()


def test_all_images_unreadable_is_one_clear_failure(root: Path) -> None:
    for file in [*root.rglob("t*/*/*.png")]:
        file.write_text("gone")
    failure = only_failure(check(root))
    assert (failure.expectation, len(failure.files)) == ("readable", 7)


def test_a_file_that_vanished_is_unreadable(root: Path) -> None:
    manifest = build_manifest(root, line="bolts", roles=RolesConfig())
    (root / "train/good/0.png").unlink()
    failure = only_failure(run_data_gate(manifest, BOUNDS))
    assert failure.files == ("train/good/0.png",)
    assert "No such file" in failure.found[0]


def test_several_problems_are_all_reported(root: Path) -> None:
    truncate(root)
    leak(root)
    white(root)
    report = check(root)
    assert [failure.expectation for failure in report.failures] == ["readable", "no_leak", "not_constant"]
    parsed = json.loads(json.dumps(report.to_json()))
    assert parsed["success"] is False
    assert parsed["failures"][1]["files"] == [{"path": "test/good/5.png", "found": "train/good/2.png"}]
    assert len(parsed["validation"]["results"]) == len(report.checks)


def test_the_page_needs_nothing_from_outside_and_escapes_names(root: Path) -> None:
    (root / "train/good/<b>&.png").write_text("not an image")
    page = check(root).html()
    assert not re.search(r"https?://|src=|href=|@import|url\(", page)
    assert "&lt;b&gt;&amp;.png" in page
    assert "<b>&.png" not in page


def test_nothing_is_sent_anywhere(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("the data gate opened a connection")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    assert check(root).success


def test_measurements_are_of_the_upright_image_and_the_raw_mode(root: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 8
    save(root / "test/good/lying.jpg", 50, (60, 33), exif=exif)
    Image.fromarray(np.arange(48 * 40, dtype=np.uint16).reshape(40, 48) * 30).save(root / "test/good/deep.png")
    table = inspect_images(build_manifest(root, line="bolts", roles=RolesConfig())).set_index("path")
    assert (table.loc["test/good/lying.jpg", "size"], table.loc["test/good/lying.jpg", "mode"]) == ("33 x 60", "RGB")
    assert table.loc["test/good/deep.png", "mode"] == "I;16"
    assert table.loc["test/cut/1.png", "mask_fits"] is None
    assert table.loc["test/cut/0.png", "mask_fits"] is True
