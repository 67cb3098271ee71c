"""Overlays have names of their own, replace nothing but overlays, and are recognised."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from csflow.data.overlay_files import is_overlay, overlay_paths, write_overlay
from csflow.errors import UsageError

PICTURE = Image.new("RGB", (9, 7), "grey")


def names(*images: str) -> list[str]:
    return [path.name for path in overlay_paths([Path(image) for image in images], Path("out"))]


@pytest.mark.parametrize(
    ("images", "expected"),
    [
        (["x.png"], ["x-overlay.png"]),
        (["x", "y.tar.png"], ["x-overlay.png", "y.tar-overlay.png"]),
        (["a/x.png", "a/x.bmp"], ["x.png-overlay.png", "x.bmp-overlay.png"]),
        (["a/x.png", "b/x.png"], ["a-x.png-overlay.png", "b-x.png-overlay.png"]),
        (
            ["mon/cam1/top/x.png", "tue/cam1/top/x.png", "y.png"],
            ["mon-cam1-top-x.png-overlay.png", "tue-cam1-top-x.png-overlay.png", "y-overlay.png"],
        ),
        (["a/X.png", "b/x.PNG"], ["a-X.png-overlay.png", "b-x.PNG-overlay.png"]),
        (["/a/x.png", "/A/x.png"], ["a-x.png-overlay.png", "A-x.png-2-overlay.png"]),
    ],
)
def test_names_say_as_much_as_tells_the_images_apart(images: list[str], expected: list[str]) -> None:
    assert names(*images) == expected


def test_names_differ_and_fit_whatever_the_images_are_called() -> None:
    long = "ä" * 80
    folders, stems = ("a", "A", "a-a", long), ("x", "X", "a-x", long)
    images = [f"{a}/{a}/{stem}.{suffix}" for a in folders for stem in stems for suffix in ("png", "bmp")]
    found = names(*images)
    assert len({name.casefold() for name in found}) == len(images)
    assert all(len(name.encode()) <= 255 for name in found)


def test_what_csflow_drew_is_recognised_under_any_name(tmp_path: Path) -> None:
    write_overlay(tmp_path / "x-overlay.png", PICTURE)
    assert Image.open(tmp_path / "x-overlay.png").size == PICTURE.size
    assert is_overlay((tmp_path / "x-overlay.png").rename(tmp_path / "part.png"))
    PICTURE.save(tmp_path / "y-overlay.png")
    (tmp_path / "z.png").write_bytes(b"csflow\0overlay")
    assert not any(is_overlay(tmp_path / name) for name in ("y-overlay.png", "z.png", "none.png", "."))


def test_only_overlays_are_replaced(tmp_path: Path) -> None:
    write_overlay(tmp_path / "x-overlay.png", PICTURE)
    assert overlay_paths([Path("x.png")], tmp_path) == [tmp_path / "x-overlay.png"]
    PICTURE.save(tmp_path / "y-overlay.png")
    (tmp_path / "z-overlay.png").symlink_to("nowhere")
    with pytest.raises(
        UsageError, match=r"y-overlay\.png, .*z-overlay\.png would be replaced.*another folder with --out"
    ):
        overlay_paths([Path("x.png"), Path("y.png"), Path("z.png")], tmp_path)
