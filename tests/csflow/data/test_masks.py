"""A mask says clearly which pixels are defective, or it is refused with the reason."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFilter

from csflow.config import RolesConfig
from csflow.data.importers import import_folder
from csflow.data.manifest import build_manifest
from csflow.data.masks import measure_mask, read_mask
from csflow.errors import DataError

DRAWN = np.zeros((96, 96), bool)
DRAWN[20:35, 40:59] = True


def saved(path: Path, image: Image.Image, **options: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path, **options)
    return path


def grey(marked: int = 255, background: int = 0) -> Image.Image:
    return Image.fromarray(np.where(DRAWN, marked, background).astype(np.uint8))


def coloured(colour: tuple[int, int, int]) -> Image.Image:
    return Image.fromarray(np.where(DRAWN[..., None], np.array(colour), 0).astype(np.uint8))


def palette_mask() -> Image.Image:
    image = Image.fromarray(DRAWN.astype(np.uint8))
    image.putpalette([0, 0, 0, 0, 0, 128])
    return image


def on_transparent() -> Image.Image:
    return Image.fromarray(np.dstack([np.full((96, 96, 3), 200), np.where(DRAWN, 255, 0)]).astype(np.uint8))


@pytest.mark.parametrize(
    "image",
    [
        pytest.param(grey(), id="0 and 255"),
        pytest.param(grey(1), id="0 and 1"),
        pytest.param(Image.fromarray(DRAWN), id="1 bit"),
        pytest.param(Image.fromarray(DRAWN.astype(np.uint16)), id="16 bit, 0 and 1"),
        pytest.param(Image.fromarray(DRAWN.astype(np.uint16) * 65535), id="16 bit, 0 and 65535"),
        pytest.param(coloured((255, 0, 0)), id="red"),
        pytest.param(coloured((0, 0, 1)), id="dark blue"),
        pytest.param(palette_mask(), id="palette"),
        pytest.param(on_transparent(), id="on transparent ground"),
        pytest.param(Image.fromarray(DRAWN * np.arange(1, 97, dtype=np.uint8)), id="numbered defects"),
    ],
)
def test_masks_of_every_kind_mark_what_was_drawn(tmp_path: Path, image: Image.Image) -> None:
    file = saved(tmp_path / "m.png", image)
    np.testing.assert_array_equal(read_mask(file), DRAWN)
    measured = measure_mask(file)
    assert measured.unclear == ""
    assert measured.share == pytest.approx(DRAWN.mean())
    assert (measured.width, measured.height) == (96, 96)


def through_jpeg(image: Image.Image) -> Image.Image:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=70)
    return Image.open(buffer)


@pytest.mark.parametrize(
    ("image", "reason"),
    [
        pytest.param(through_jpeg(grey()), "faint pixels .*lossy", id="through jpeg"),
        pytest.param(through_jpeg(coloured((255, 0, 0))), "faint pixels", id="red through jpeg"),
        pytest.param(grey().filter(ImageFilter.GaussianBlur(2)), "faint pixels", id="smoothed"),
        pytest.param(grey(255, 1), "background is 1 and not 0", id="background of 1"),
        pytest.param(coloured((254, 254, 254)).point(lambda v: v + 1), "background is 1", id="rgb background of 1"),
        pytest.param(grey(0), "marks nothing", id="nothing"),
    ],
)
def test_unclear_masks_are_told(tmp_path: Path, image: Image.Image, reason: str) -> None:
    assert_unclear(saved(tmp_path / "m.png", image), reason)


def assert_unclear(file: Path, reason: str) -> None:
    import re

    assert re.search(reason, measure_mask(file).unclear)


def test_a_jpeg_is_unclear_even_under_another_name(tmp_path: Path) -> None:
    assert_unclear(saved(tmp_path / "m.png", grey(), format="JPEG"), "stored as JPEG")


def test_damaged_and_missing_masks_are_errors(tmp_path: Path) -> None:
    (tmp_path / "m.png").write_bytes(b"no picture")
    with pytest.raises(DataError, match=r"m\.png is not an image"):
        read_mask(tmp_path / "m.png")
    with pytest.raises(DataError, match=r"Cannot read .*none\.png"):
        measure_mask(tmp_path / "none.png")


def line_folders(root: Path) -> dict[str, Path]:
    rng = np.random.default_rng(0)
    for i in range(4):
        saved(root / f"good/{i}.png", Image.fromarray(rng.integers(0, 256, (96, 96), dtype=np.uint8)))
        saved(root / f"bad/{i}.png", Image.fromarray(rng.integers(0, 256, (96, 96), dtype=np.uint8)))
    return {"good": root / "good", "defective": root / "bad", "masks": root / "masks"}


def test_an_import_names_all_unclear_masks_at_once(tmp_path: Path) -> None:
    folders = line_folders(tmp_path)
    saved(tmp_path / "masks/0.png", through_jpeg(grey()))
    saved(tmp_path / "masks/1.png", grey(255, 1))
    (tmp_path / "masks/2.png").write_bytes(b"no picture")
    saved(tmp_path / "masks/3.png", grey())
    with pytest.raises(DataError, match=r"3 of 4 masks .*0\.png has .*1\.png marks every.*2\.png is not an image"):
        import_folder(tmp_path / "out", **folders, test_share=0.0)
    assert not (tmp_path / "out").exists()


def test_an_import_names_all_masks_without_an_image_and_all_second_masks(tmp_path: Path) -> None:
    folders = line_folders(tmp_path)
    for name in ("0.png", "0_mask.png"):
        saved(tmp_path / "masks" / name, grey())
    with pytest.raises(DataError, match=r"another mask for the image of .*0\.png"):
        import_folder(tmp_path / "out", **folders, test_share=0.0)
    (tmp_path / "masks/0_mask.png").unlink()
    for name in ("0.bmp", "7.png", "8.png"):
        saved(tmp_path / "masks" / name, grey())
    with pytest.raises(DataError, match=r"0_mask\.png \(another mask .*7_mask\.png \(0 images.*8_mask\.png \(0 images"):
        import_folder(tmp_path / "out", **folders, test_share=0.0)
    assert not (tmp_path / "out").exists()


def test_links_bring_their_masks_along(tmp_path: Path) -> None:
    folders = line_folders(tmp_path / "real")
    saved(tmp_path / "real/masks/1.png", grey())
    linked = {}
    for name, folder in folders.items():
        (tmp_path / name).symlink_to(folder)
        linked[name] = tmp_path / name
    import_folder(tmp_path / "out", **linked, test_share=0.0)
    frame = build_manifest(tmp_path / "out", line="x", roles=RolesConfig()).frame
    assert len(frame) == 8
    assert (frame["mask"] != "").sum() == 1
