"""Drawn and pasted defects: deterministic, local, varied, in the layout the rest reads."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from csflow.config import RolesConfig
from csflow.data.manifest import build_manifest
from csflow.errors import DataError, UsageError
from csflow.synthetic import DEMO_LINES, demo, draw_demo, paste_defects
from csflow.synthetic.fabric import FABRIC_DEFECTS, draw_fabric
from csflow.synthetic.gear import GEAR_DEFECTS, draw_gear
from csflow.synthetic.noise import blot, curve_distance, smooth_noise
from csflow.system.files import sha256_tree

Draw = Callable[[int, str | None, int], np.ndarray]
DRAWINGS = [(draw_fabric, kind) for kind in FABRIC_DEFECTS] + [(draw_gear, kind) for kind in GEAR_DEFECTS]


def noisy(width: int = 96, height: int = 96, seed: int = 0) -> Image.Image:
    """A stand-in for a photograph: smooth structure with grain."""
    rng = np.random.default_rng(seed)
    colour = np.stack([smooth_noise(rng, height, width, (12, 12)) for _ in range(3)], axis=2) * 25 + 120
    return Image.fromarray(np.clip(colour + rng.normal(0, 4, colour.shape), 0, 255).astype(np.uint8))


@pytest.mark.parametrize(("draw", "defect"), DRAWINGS)
def test_a_defect_changes_its_place_and_nothing_else(draw: Draw, defect: str) -> None:
    for seed in range(3):
        change = np.abs(draw(seed, defect, 128) - draw(seed, None, 128)).max(axis=2)
        assert change.max() > 0.08, "nobody would see this defect"
        assert (change > 0.01).mean() < 0.2, "this is another picture, not a defect"


@pytest.mark.parametrize("draw", [draw_fabric, draw_gear])
def test_a_seed_names_a_piece(draw: Draw) -> None:
    first = draw(1, None, 64)
    assert first.dtype == np.float32
    assert first.shape == (64, 64, 3)
    assert 0 <= first.min() <= first.max() <= 1
    assert np.array_equal(first, draw(1, None, 64))
    assert np.abs(first - draw(2, None, 64)).mean() > 0.005


def test_noise_has_the_promised_moments_and_smoothness() -> None:
    rng = np.random.default_rng(0)
    fine, coarse = smooth_noise(rng, 96, 96, (2, 2)), smooth_noise(rng, 96, 96, (24, 24))
    assert coarse.mean() == pytest.approx(0, abs=1e-5)
    assert coarse.std() == pytest.approx(1, abs=1e-5)
    assert np.abs(np.diff(coarse)).mean() < np.abs(np.diff(fine)).mean() / 4


def test_distance_to_a_curve_is_euclidean() -> None:
    distance = curve_distance(np.array([[2, 3], [8, 3]], dtype=np.float32), 10, 12)
    assert distance[3, 2:9] == pytest.approx(0)
    assert distance[7, 5] == pytest.approx(4)
    assert distance[6, 11] == pytest.approx(np.hypot(3, 3))


def test_a_blot_lies_around_its_centre_at_its_size() -> None:
    for seed in range(10):
        inside = blot(np.random.default_rng(seed), (40.0, 20.0), 8.0, 64, 64) > 0
        assert inside[20, 40]
        assert 0.3 < inside.sum() / (np.pi * 64) < 2.5


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Demo lines of a few small pictures."""
    monkeypatch.setattr(demo, "SIDE", 48)
    for name, line in DEMO_LINES.items():
        monkeypatch.setitem(DEMO_LINES, name, replace(line, train=3, test_good=2, test_defective=len(line.defects) + 1))


@pytest.mark.usefixtures("small")
def test_demo_lines_are_what_the_manifest_reads(tmp_path: Path) -> None:
    texture, part = draw_demo(tmp_path)
    assert [texture.name, part.name] == ["demo-texture", "demo-object"]
    for folder, defects in ((texture, FABRIC_DEFECTS), (part, GEAR_DEFECTS)):
        table = build_manifest(folder, line=folder.name, roles=RolesConfig()).frame
        assert table.groupby(["split", "label"]).size().to_dict() == {
            ("train", "good"): 3, ("test", "good"): 2, ("test", "defective"): len(defects) + 1,
        }  # fmt: skip
        assert set(table["defect"]) - {""} == set(defects)
        assert table["sha256"].is_unique
        defective = table[table["label"] == "defective"]
        for image, mask in zip(defective["path"], defective["mask"], strict=True):
            marked = np.asarray(Image.open(folder / mask))
            assert marked.shape == Image.open(folder / image).size[::-1]
            assert 0 < marked.mean() < 0.3


@pytest.mark.usefixtures("small")
def test_the_same_seed_draws_the_same_files(tmp_path: Path) -> None:
    draws = {
        name: sha256_tree(draw_demo(tmp_path / name, lines=["demo-object"], seed=seed)[0])
        for name, seed in (("a", 3), ("b", 3), ("c", 4))
    }
    assert draws["a"] == draws["b"] != draws["c"]


@pytest.mark.usefixtures("small")
def test_drawing_keeps_what_is_there(tmp_path: Path) -> None:
    (tmp_path / "demo-object").mkdir()
    (tmp_path / "demo-object" / "mine.txt").write_text("precious")
    with pytest.raises(DataError, match="demo-object is not empty"):
        draw_demo(tmp_path)
    with pytest.raises(UsageError, match=r"no demo line 'demo-objekt'.*demo-texture, demo-object"):
        draw_demo(tmp_path, lines=["demo-texture", "demo-objekt"])
    assert [path.name for path in tmp_path.rglob("*")] == ["demo-object", "mine.txt"]


def test_pasted_defects_lie_where_the_mask_says() -> None:
    images = [noisy(seed=seed) for seed in range(24)]
    before = [image.tobytes() for image in images]
    bad, masks = paste_defects(images, seed=0)
    assert [image.tobytes() for image in images] == before
    shares = []
    for image, defective, mask in zip(images, bad, masks, strict=True):
        assert (defective.mode, mask.mode) == ("RGB", "L")
        assert defective.size == mask.size == image.size
        marked = np.asarray(mask) == 255
        assert set(np.unique(mask)) <= {0, 255}
        change = np.abs(np.asarray(defective, dtype=int) - np.asarray(image, dtype=int)).max(axis=2)
        assert change[marked].max() >= 6
        assert change[~marked].max() < 6
        shares.append(marked.mean())
    assert 0 < min(shares) < max(shares) / 3, "sizes do not vary"
    assert max(shares) < 0.25


def test_pasting_is_deterministic_and_follows_seed_and_position() -> None:
    images = [noisy(seed=1), noisy(seed=1)]
    first, _ = paste_defects(images, seed=5)
    again, _ = paste_defects(images, seed=5)
    other, _ = paste_defects(images, seed=6)
    assert [image.tobytes() for image in first] == [image.tobytes() for image in again]
    assert first[0].tobytes() != other[0].tobytes()
    assert first[0].tobytes() != first[1].tobytes()


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGBA", "CMYK"])
def test_pasting_takes_any_mode_and_shape(mode: str) -> None:
    images = [noisy(16, 120).convert(mode), noisy(200, 17).convert(mode)]
    bad, masks = paste_defects(images, seed=0)
    assert [image.size for image in bad] == [(16, 120), (200, 17)]
    assert all(mask.getbbox() for mask in masks)


@pytest.mark.parametrize("shade", [0, 127, 255])
def test_a_constant_image_gets_a_visible_defect(shade: int) -> None:
    _, masks = paste_defects([Image.new("L", (64, 64), shade)] * 12, seed=0)
    assert all(np.asarray(mask).any() for mask in masks)


def test_defects_fall_on_the_part_rather_than_on_the_tray() -> None:
    canvas = np.full((128, 128, 3), 60, dtype=np.uint8)
    canvas[40:90, 40:90] = np.asarray(noisy(50, 50))
    _, masks = paste_defects([Image.fromarray(canvas)] * 40, seed=0)
    on_part = sum(np.asarray(mask)[32:98, 32:98].any() for mask in masks)
    assert on_part >= 34


def test_an_image_too_small_for_a_defect_is_refused() -> None:
    with pytest.raises(DataError, match="at least 16 x 16 pixels, got 40 x 12"):
        paste_defects([noisy(40, 12)], seed=0)
