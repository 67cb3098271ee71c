"""What decoding takes stays below what the header told, for every format; small files cannot take much."""

from __future__ import annotations

import json
import struct
import subprocess
import sys
import time
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from csflow.data.decoding_cost import decoding_cost, pixels_cost
from csflow.data.image_files import FORMATS, SERVED_FORMATS
from csflow.data.images import image_of_pixels, opened_image, read_image, size_of, to_pyramid_levels
from csflow.errors import DataError
from tests.csflow.data.encodings import encoded, png, tiff
from tests.csflow.data.large_pictures import FAST, HEIGHT, WIDTH, hostile, picture, pictures, turned
from tests.csflow.data.peak_memory import FEATURES

MIB = 2**20


@pytest.fixture(scope="module")
def named() -> list[tuple[str, bytes]]:
    return list(pictures())


def peaks(named: list[tuple[str, bytes]], folder: Path) -> dict[str, tuple[int, int]]:
    """Measure in fresh processes, because memory that was used before hides what is used again."""
    for number, (_, content) in enumerate(named):
        (folder / str(number)).write_bytes(content)
    files = [str(folder / str(number)) for number in range(len(named))]
    command = [sys.executable, "-W", "ignore", "-m", "tests.csflow.data.peak_memory", *files]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=Path(__file__).parents[3])
    assert done.stderr == "", "all are decoded"
    return dict(zip((name for name, _ in named), json.loads(done.stdout), strict=True))


def test_the_peak_stays_below_the_bound_and_near_it(named: list[tuple[str, bytes]], tmp_path: Path) -> None:
    found = peaks(named, tmp_path)
    assert {name: both for name, both in found.items() if both[1] > both[0]} == {}
    common = ("PNG", "JPEG", "BMP", "PPM", "WEBP", "GIF")
    near = {name: both for name, both in found.items() if name.split()[0].strip(",") in common}
    far = {name: both for name, both in near.items() if both[0] > 1.25 * both[1] + 4 * MIB}
    assert far.keys() == {"WEBP lossless", "WEBP RGBA"}, "their codes could take that much"


def test_the_peak_of_hostile_pictures_stays_below_the_bound(tmp_path: Path) -> None:
    found = peaks(list(hostile()), tmp_path)
    assert {name: both for name, both in found.items() if both[1] > both[0]} == {}
    assert found["WEBP of many codes"][1] > 300 * 512 * 512


def test_every_format_is_measured(named: list[tuple[str, bytes]]) -> None:
    opened = set()
    for _, content in named:
        with opened_image(content, "x") as image:
            opened.add(image.format)
    assert opened == set(FORMATS)


def test_the_bound_comes_from_the_header_alone() -> None:
    content = encoded(picture(), "PNG", **FAST)
    assert decoding_cost(content[:200], "cut.png") == decoding_cost(content, "whole.png")
    before = time.process_time()
    for _ in range(50):
        decoding_cost(content, "whole.png")
    assert (time.process_time() - before) / 50 < 0.02, "decoding takes 0.15 s"


def test_the_bound_grows_with_the_size_of_the_levels() -> None:
    content = encoded(picture(), "PNG", **FAST)
    assert decoding_cost(content, "x", image_size=2048) > decoding_cost(content, "x") + 12 * 2048**2


def test_the_bound_is_refused_as_opening_is() -> None:
    with pytest.raises(DataError, match=r"a\.png is not an image"):
        decoding_cost(b"none", "a.png")
    with pytest.raises(DataError, match="expected at most 1000000 in all"):
        decoding_cost(encoded(picture(), "PNG"), "a.png", max_pixels=1_000_000)
    with pytest.raises(DataError, match=r"a\.png is of a format that is closed here\. Expected one of JPEG\."):
        decoding_cost(encoded(picture(9, 9), "PNG"), "a.png", formats=["JPEG"])


@pytest.mark.parametrize("kind", sorted(set(FORMATS) - set(SERVED_FORMATS)))
def test_servers_keep_parsers_closed_that_they_do_not_need(kind: str) -> None:
    content = encoded(picture(64, 64), kind)
    assert read_image(content).size == (64, 64)
    with pytest.raises(DataError, match="is of a format that is closed here. Expected one of PNG, JPEG"):
        read_image(content, formats=SERVED_FORMATS)


@pytest.mark.parametrize("content", [b"P3 9 9 255\n" + b"7 " * 243, b"P1 9 9\n" + b"1" * 81])
def test_servers_do_not_decode_in_python(content: bytes) -> None:
    assert read_image(content).size == (9, 9)
    with pytest.raises(DataError, match="takes long to decode. Export it as PNG"):
        read_image(content, formats=SERVED_FORMATS)


class TestSize:
    @pytest.mark.parametrize("size", [(65_535, 66), (66, 65_535), (1, 1000), (1000, 1), (1, 1)])
    def test_long_pictures_of_line_scan_cameras_are_taken(self, size: tuple[int, int]) -> None:
        assert read_image(encoded(Image.new("L", size), "PNG")).size == size

    @pytest.mark.parametrize(
        ("size", "words"),
        [
            ((65_536, 70), "is 65536 x 70 pixels, expected sides of at most 65535. Cut it into parts"),
            ((70, 65_536), "is 70 x 65536 pixels, expected sides of at most 65535"),
            ((1, 1001), "is 1 x 1001 pixels, expected a long side of at most 1000 times the short one"),
            ((2002, 2), "is 2002 x 2 pixels, expected a long side of at most 1000 times"),
        ],
    )
    @pytest.mark.parametrize("read", [read_image, lambda content: decoding_cost(content, "x")])
    def test_what_is_too_long_is_refused(
        self, size: tuple[int, int], words: str, read: Callable[[bytes], object]
    ) -> None:
        with pytest.raises(DataError, match=words):
            read(encoded(Image.new("L", size), "PNG"))

    def test_a_file_on_disk_is_refused_by_its_header(self, tmp_path: Path) -> None:
        file = tmp_path / "strip.png"
        file.write_bytes(encoded(Image.new("L", (1, 5000)), "PNG")[:60])
        for read in (read_image, size_of):
            with pytest.raises(DataError, match=r"strip\.png is 1 x 5000 pixels"):
                read(file)

    def test_a_lower_limit_of_pixels(self) -> None:
        content = encoded(picture(100, 60), "JPEG")
        assert read_image(content, max_pixels=6000).size == (100, 60)
        with pytest.raises(DataError, match="is 100 x 60 pixels, expected at most 5999 in all. Crop or shrink it"):
            read_image(content, max_pixels=5999)


class TestHeadersThatLie:
    """A header that says less than the data would fill, and headers that cost more than pixels."""

    def refused(self, content: bytes, words: str) -> None:
        before = time.process_time()
        with pytest.raises(DataError, match=words):
            read_image(content)
        with pytest.raises(DataError, match=words):
            decoding_cost(content, "x")
        assert time.process_time() - before < 2

    @pytest.mark.parametrize("boxes", [True, False])
    def test_jpeg_2000(self, boxes: bool) -> None:
        content = bytearray(encoded(picture(96, 64), "JPEG2000", no_jp2=not boxes))
        at = content.index(b"\xff\x4f\xff\x51") + 8
        if boxes:
            content[at : at + 4] = struct.pack(">I", 30_000)
            self.refused(bytes(content), "its header says 96 x 64 pixels, its data 30000 x 64 of 3 components")
        else:  # the header is that of the data
            content[at : at + 4] = struct.pack(">I", 300_000)
            self.refused(bytes(content), "is 300000 x 64 pixels")

    def test_jpeg_2000_of_many_tiles(self) -> None:
        content = encoded(picture(96, 64), "JPEG2000", tile_size=(64, 64))
        more = bytearray(content)
        at = more.index(b"\xff\x4f\xff\x51") + 24
        more[at : at + 8] = struct.pack(">II", 1, 1)
        assert decoding_cost(bytes(more), "x") > decoding_cost(content, "x") + 96 * 64 * 10_000

    def test_webp_whose_canvas_is_smaller_than_its_picture(self) -> None:
        content = bytearray(encoded(picture(640, 480), "WEBP", exif=turned()))
        at = content.index(b"VP8X") + 12
        content[at : at + 6] = struct.pack("<I", 9)[:3] + struct.pack("<I", 9)[:3]
        self.refused(bytes(content), "is damaged")

    @pytest.mark.parametrize("tags", [{"t322": 48_000, "t323": 48_000}, {"t322": 16_000, "t323": 16_000}])
    def test_tiff_of_tiles_larger_than_any_picture(self, tags: dict[str, int]) -> None:
        self.refused(tiff(bytes(96 * 96), 96, 96, t258=8, **tags), "expected at most 89478485 in all")

    def test_tiff_of_large_tiles_costs_what_its_tiles_do(self) -> None:
        content = tiff(bytes(96 * 96), 96, 96, t258=8, t259=5, t322=8192, t323=8192)
        assert decoding_cost(content, "x") > 8192 * 8192

    def test_tiff_that_states_its_size_twice(self) -> None:
        content = bytearray(tiff(bytes(96 * 96), 96, 96, t258=8, t315=48_000))
        at = content.index(struct.pack("<HHI", 315, 3, 1))
        content[at : at + 2] = struct.pack("<H", 278)
        self.refused(bytes(content), "states its size twice")

    def test_tiff_of_millions_of_strips(self) -> None:
        content = bytearray(tiff(bytes(96 * 96), 96, 96, t258=8))
        at = content.index(struct.pack("<HHI", 273, 4, 1))
        content[at + 4 : at + 8] = struct.pack("<I", 2**22)
        self.refused(bytes(content) + bytes(2**24), "has tables of 4194.* numbers, expected at most 524288")

    def test_a_directory_at_the_end_of_a_tiff_hides_no_table(self) -> None:
        content = bytearray(tiff(bytes(96 * 96), 96, 96, t258=8, t34665=1) + bytes(2**24))
        for tag, change in ((273, (4, 2**22)), (34665, (4, 1, len(content) - 1))):
            at = content.index(struct.pack("<HH", tag, 4 if tag == 273 else 3))
            struct.pack_into("<" + "HII"[: len(change)], content, at + 2, *change)
        self.refused(bytes(content), "has tables of 4194.* numbers")

    def test_tiff_of_many_entries(self) -> None:
        entries = b"".join(struct.pack("<HHII", 65_000, 3, 1, 0) for _ in range(60_000))
        self.refused(
            b"II*\0\x08\0\0\0" + struct.pack("<H", 60_000) + entries + bytes(4), "entries, expected at most 1000"
        )

    def test_png_of_many_compressed_texts(self) -> None:
        text = b"Comment\0\0" + zlib.compress(bytes(2**20))
        content = png(9, 9, 8, 0, bytes(81), *[(b"zTXt", text)] * 17)
        self.refused(content, "has 17 compressed texts, expected at most 16")

    def test_a_header_of_a_million_blocks(self) -> None:
        self.refused(png(9, 9, 8, 0, bytes(81), *[(b"prVt", b"")] * 100_000), "too many small blocks")
        self.refused(b"\xff\xd8" + b"\xff\xe5\0\2" * 100_000, "too many small blocks")
        self.refused(b"\xff\xd8\xff" + b"\0" * 200_000, "too many small blocks")
        self.refused(b"GIF89a\1\0\1\0\0\0\0" + b"!\xfe\1a\0" * 100_000, "too many small blocks")

    def test_pixels_in_a_million_blocks(self) -> None:
        whole = png(96, 96, 8, 0, bytes(96 * 96))
        behind = struct.pack(">I", 0) + b"prVt" + struct.pack(">I", zlib.crc32(b"prVt"))
        with pytest.raises(DataError, match="too many small blocks"):
            read_image(whole[:-12] + behind * 100_000 + whole[-12:])

    @pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
    def test_gif_whose_frame_is_larger_than_its_canvas(self) -> None:
        content = bytearray(encoded(Image.new("L", (8, 8)), "GIF"))
        at = content.index(b",") + 5
        content[at : at + 4] = struct.pack("<HH", 10_000, 10_000)
        self.refused(bytes(content), "is 10000 x 10000 pixels")

    def test_what_png_says_behind_its_pixels(self) -> None:
        """Pillow takes transparency, profile and orientation there, too, and needs the memory for it."""
        content = encoded(picture(2000, 1500), "PNG", **FAST)
        for name, data in ((b"tRNS", bytes(6)), (b"eXIf", turned().tobytes()[6:])):
            chunk = struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
            assert decoding_cost(content[:-12] + chunk + content[-12:], "x") > decoding_cost(content, "x") + 3_000_000

    def test_jpeg_of_several_scans(self) -> None:
        content = encoded(picture(2000, 1500), "JPEG", subsampling=0)
        at = content.index(b"\xff\xda")
        one = content[:at] + b"\xff\xda\0\x08\1\1\0\0\x3f\0" + content[at + 14 :]
        assert decoding_cost(one, "x") > decoding_cost(content, "x") + 5_000_000


class TestPixels:
    def test_they_are_the_picture(self) -> None:
        pixels = np.asarray(picture(60, 40))
        image = image_of_pixels(pixels, "image[0]")
        np.testing.assert_array_equal(np.asarray(image), pixels)
        for of_pixels, of_file in zip(
            to_pyramid_levels(image, FEATURES),
            to_pyramid_levels(read_image(encoded(picture(60, 40), "PNG")), FEATURES),
            strict=True,
        ):
            np.testing.assert_array_equal(of_pixels, of_file)
        turned_view = pixels[::-1, ::2]
        np.testing.assert_array_equal(np.asarray(image_of_pixels(turned_view, "x")), turned_view)

    @pytest.mark.parametrize(
        ("pixels", "words"),
        [
            (np.zeros((4, 4, 4), np.uint8), r"image\[0\] has shape \[4, 4, 4\] and type uint8, expected \[height, wid"),
            (np.zeros((3, 4, 4), np.uint8), r"shape \[3, 4, 4\]"),
            (np.zeros((4, 4), np.uint8), r"shape \[4, 4\]"),
            (np.zeros((1, 4, 4, 3), np.uint8), r"shape \[1, 4, 4, 3\]"),
            (np.zeros((4, 4, 3), np.uint16), "type uint16"),
            (np.zeros((4, 4, 3), np.int8), "type int8"),
            (np.zeros((4, 4, 3), np.float32), "type float32"),
            (np.zeros((0, 4, 3), np.uint8), "is 4 x 0 pixels, expected at least one"),
            (np.zeros((5000, 4, 3), np.uint8), "is 4 x 5000 pixels, expected a long side of"),
            (np.broadcast_to(np.uint8(0), (9460, 9460, 3)), "is 9460 x 9460 pixels, expected at most 89478485"),
        ],
    )
    def test_others_are_refused(self, pixels: np.ndarray, words: str) -> None:
        with pytest.raises(DataError, match=words):
            image_of_pixels(pixels, "image[0]")

    def test_their_cost(self) -> None:
        assert 4 * WIDTH * HEIGHT < pixels_cost(WIDTH, HEIGHT) < 9 * WIDTH * HEIGHT
        with pytest.raises(DataError, match="at most 99 in all"):
            image_of_pixels(np.zeros((10, 10, 3), np.uint8), "x", max_pixels=99)
