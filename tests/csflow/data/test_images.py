"""Every kind of image becomes the same 8-bit RGB, or a DataError that names the file."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F

from csflow.config import FeatureConfig
from csflow.data.images import read_image, to_pyramid_inputs, to_pyramid_levels
from csflow.errors import DataError

HALF = (0.5, 0.5, 0.5)


def encoded(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def pixels(content: bytes) -> np.ndarray:
    image = read_image(content)
    assert image.mode == "RGB"
    return np.asarray(image)


def noise(size: tuple[int, int] = (24, 16), seed: int = 0) -> Image.Image:
    values = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(values)


def png_header(width: int, height: int) -> bytes:
    """A PNG that claims a size and holds next to nothing."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"0")) + chunk(b"IEND", b"")


class TestModes:
    def test_rgb_is_unchanged(self) -> None:
        image = noise()
        np.testing.assert_array_equal(pixels(encoded(image)), np.asarray(image))

    @pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF", "WEBP", "JPEG"])
    def test_formats(self, kind: str) -> None:
        assert read_image(encoded(Image.new("RGB", (8, 6), (200, 100, 50)), kind)).size == (8, 6)

    def test_gray_is_repeated(self) -> None:
        gray = noise().convert("L")
        np.testing.assert_array_equal(pixels(encoded(gray)), np.repeat(np.asarray(gray)[..., None], 3, axis=2))

    def test_one_bit_is_black_and_white(self) -> None:
        bits = Image.fromarray(np.array([[0, 255], [255, 0]], np.uint8)).convert("1")
        np.testing.assert_array_equal(pixels(encoded(bits))[..., 0], [[0, 255], [255, 0]])

    def test_palette_gives_its_colours(self) -> None:
        palette = Image.new("P", (2, 1))
        palette.putpalette([10, 20, 30, 200, 100, 0])
        palette.putdata([0, 1])
        np.testing.assert_array_equal(pixels(encoded(palette)), [[[10, 20, 30], [200, 100, 0]]])

    def test_transparent_palette_entry_is_black(self) -> None:
        palette = Image.new("P", (2, 1))
        palette.putpalette([10, 20, 30, 200, 100, 0])
        palette.putdata([0, 1])
        np.testing.assert_array_equal(pixels(encoded(palette, transparency=1)), [[[10, 20, 30], [0, 0, 0]]])

    def test_alpha_is_composited_on_black(self) -> None:
        colour = Image.new("RGBA", (2, 1))
        colour.putdata([(200, 100, 50, 255), (200, 100, 50, 51)])
        np.testing.assert_allclose(pixels(encoded(colour)), [[[200, 100, 50], [40, 20, 10]]], atol=1)
        gray = Image.new("LA", (2, 1))
        gray.putdata([(200, 255), (200, 51)])
        np.testing.assert_allclose(pixels(encoded(gray))[..., 0], [[200, 40]], atol=1)

    def test_cmyk(self) -> None:
        image = Image.new("CMYK", (8, 8), (0, 255, 255, 0))
        np.testing.assert_allclose(pixels(encoded(image, "TIFF"))[0, 0], [255, 0, 0])
        np.testing.assert_allclose(pixels(encoded(image, "JPEG", quality=95))[0, 0], [255, 0, 0], atol=4)

    @pytest.mark.parametrize("kind", ["PNG", "TIFF"])
    def test_16_bit_gray_has_a_fixed_scale(self, kind: str) -> None:
        values = np.array([[0, 128, 129, 257], [1000, 32768, 65406, 65535]], np.uint16)
        expected = values // 256
        np.testing.assert_array_equal(pixels(encoded(Image.fromarray(values), kind))[..., 1], expected)

    def test_16_bit_gray_does_not_depend_on_the_images_own_range(self) -> None:
        dark = np.full((4, 4), 2570, np.uint16)
        with_defect = dark.copy()
        with_defect[0, 0] = 60000
        before, after = (np.asarray(read_image(encoded(Image.fromarray(values)), 16)) for values in (dark, with_defect))
        assert (before == 10).all()
        np.testing.assert_array_equal(before[1:], after[1:])

    def test_32_bit_gray_beyond_16_bit_is_refused(self) -> None:
        values = np.array([[0, 70000]], np.int32)
        with pytest.raises(DataError, match="values from 0 to 70000, expected 16 bit"):
            read_image(encoded(Image.fromarray(values), "TIFF"))

    def test_floating_point_is_refused(self) -> None:
        with pytest.raises(DataError, match="floating-point"):
            read_image(encoded(Image.fromarray(np.zeros((2, 2), np.float32)), "TIFF"))

    @pytest.mark.parametrize("orientation", range(1, 9))
    def test_exif_orientation_is_undone(self, orientation: int) -> None:
        """Oracle: the corner that EXIF calls the top left of the scene is the one marked."""
        upright = np.zeros((6, 10), np.uint8)
        upright[0, 0] = 255
        stored = {
            1: lambda a: a, 2: np.fliplr, 3: lambda a: np.rot90(a, 2), 4: np.flipud,
            5: np.transpose, 6: lambda a: np.rot90(a, 1), 7: lambda a: np.rot90(a, 2).T, 8: lambda a: np.rot90(a, -1),
        }[orientation](upright)  # fmt: skip
        exif = Image.Exif()
        exif[0x0112] = orientation
        content = encoded(Image.fromarray(np.ascontiguousarray(stored)), exif=exif)
        np.testing.assert_array_equal(pixels(content)[..., 0], upright)

    def test_first_of_several_frames(self) -> None:
        first, second = noise(seed=1), noise(seed=2)
        content = encoded(first, "TIFF", save_all=True, append_images=[second])
        np.testing.assert_array_equal(pixels(content), np.asarray(first))

    def test_stereo_jpeg_of_a_phone(self) -> None:
        content = encoded(Image.new("RGB", (8, 8), (9, 9, 9)), "MPO", save_all=True, append_images=[noise((8, 8))])
        np.testing.assert_allclose(pixels(content), 9, atol=1)


class TestBadFiles:
    def test_file_is_named(self, tmp_path: Path) -> None:
        path = tmp_path / "part_7.png"
        path.write_text("not an image")
        with pytest.raises(DataError, match=r"part_7\.png is not an image\. Expected one of PNG, JPEG"):
            read_image(path)

    def test_missing_file(self, tmp_path: Path) -> None:
        with pytest.raises(DataError, match=r"gone\.png: No such file"):
            read_image(tmp_path / "gone.png")

    def test_empty_file(self) -> None:
        with pytest.raises(DataError, match="is empty"):
            read_image(b"")

    @pytest.mark.parametrize("kind", ["PNG", "JPEG", "TIFF", "WEBP", "BMP"])
    def test_truncated(self, kind: str) -> None:
        content = encoded(noise((64, 64)), kind)
        with pytest.raises(DataError, match=f"image of {len(content) // 2} bytes is damaged"):
            read_image(content[: len(content) // 2])

    @pytest.mark.parametrize("kind", ["EPS", "ICO", "PDF"])
    def test_other_formats_are_refused(self, kind: str) -> None:
        with pytest.raises(DataError, match="is not an image"):
            read_image(encoded(noise(), kind))

    @pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
    @pytest.mark.parametrize("side", [10_000, 60_000])
    def test_decompression_bomb(self, side: int) -> None:
        with pytest.raises(DataError, match="Crop or shrink it"):
            read_image(png_header(side, side))

    @pytest.mark.filterwarnings("ignore::UserWarning")
    @pytest.mark.parametrize("kind", ["PNG", "JPEG", "TIFF", "WEBP", "BMP"])
    def test_damaged_bytes_raise_nothing_else(self, kind: str) -> None:
        random = np.random.default_rng(0)
        content = encoded(noise((32, 32)), kind)
        for _ in range(60):
            damaged = bytearray(content)
            for place in random.integers(0, min(len(content), 300), 4):
                damaged[place] = random.integers(256)
            try:
                image = read_image(bytes(damaged))
            except DataError:
                continue
            assert image.mode == "RGB"


class TestPyramidInputs:
    @pytest.mark.parametrize("downscale", ["antialias", "nearest"])
    def test_sizes_and_normalisation(self, downscale: str) -> None:
        features = FeatureConfig(image_size=64, scales=3, downscale=downscale)
        levels = to_pyramid_inputs(Image.new("RGB", (50, 90), (255, 0, 51)), features, (0.5, 0.1, 0.2), (0.5, 0.2, 0.1))
        assert [level.shape for level in levels] == [(3, 64, 64), (3, 32, 32), (3, 16, 16)]
        for level in levels:
            assert level.dtype == np.float32
            expected = np.broadcast_to(np.array([1.0, -0.5, 0.0])[:, None, None], level.shape)
            np.testing.assert_allclose(level, expected, rtol=1e-5, atol=1e-5)

    def test_antialias_agrees_with_torch(self) -> None:
        """Oracle: torch's antialiased bilinear filter on floats; Pillow rounds to 8 bit in between."""
        image = noise((200, 120))
        levels = to_pyramid_inputs(image, FeatureConfig(image_size=64, scales=3), HALF, HALF)
        whole = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None].float()
        for level in levels:
            size = level.shape[1:]
            expected = F.interpolate(whole, size=size, mode="bilinear", antialias=True)[0] / 127.5 - 1
            assert np.abs(level - expected.numpy()).max() < 1.6 / 127.5

    def test_nearest_is_the_authors_downscaling(self) -> None:
        image = noise((200, 120))
        largest, *smaller = to_pyramid_inputs(
            image, FeatureConfig(image_size=64, scales=3, downscale="nearest"), HALF, HALF
        )
        for scale, level in enumerate(smaller, start=1):
            np.testing.assert_array_equal(level, largest[:, :: 2**scale, :: 2**scale])

    def test_ways_differ_on_fine_structure(self) -> None:
        board = Image.fromarray(((np.indices((64, 64)).sum(0) % 2) * 255).astype(np.uint8)).convert("RGB")
        smooth = to_pyramid_inputs(board, FeatureConfig(image_size=64, scales=2), HALF, HALF)[1]
        nearest = to_pyramid_inputs(board, FeatureConfig(image_size=64, scales=2, downscale="nearest"), HALF, HALF)[1]
        assert np.abs(smooth).max() < 0.02
        assert nearest.std() == 0
        assert np.abs(nearest).min() == 1

    def test_levels_are_what_is_normalised(self) -> None:
        features = FeatureConfig(image_size=64, scales=2)
        levels = to_pyramid_levels(noise((70, 60)), features)
        assert [(level.shape, level.dtype) for level in levels] == [((64, 64, 3), np.uint8), ((32, 32, 3), np.uint8)]
        inputs = to_pyramid_inputs(noise((70, 60)), features, HALF, HALF)
        for level, normalised in zip(levels, inputs, strict=True):
            np.testing.assert_allclose(normalised, level.transpose(2, 0, 1) / 127.5 - 1, atol=1e-6)

    def test_small_images_are_enlarged(self) -> None:
        levels = to_pyramid_inputs(noise((3, 2)), FeatureConfig(image_size=128, scales=3), HALF, HALF)
        assert [level.shape[1] for level in levels] == [128, 64, 32]
