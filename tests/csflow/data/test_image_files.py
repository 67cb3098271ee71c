"""Image files are found whatever links lead to them and whatever their names are; what is left out is named."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from PIL import Image

from csflow.data.image_files import FORMATS, SUFFIXES, find_images, is_image, say_left_out
from csflow.data.overlay_files import write_overlay
from csflow.errors import DataError
from tests.csflow.data.encodings import same_picture

PICTURE = Image.new("RGB", (8, 6), (200, 100, 50))


def draw(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    PICTURE.save(path, "PNG")
    return path


def names(folder: Path) -> list[str]:
    return [path.as_posix() for path in find_images(folder).images]


def test_suffixes_are_those_that_pillow_knows_for_the_formats() -> None:
    Image.init()
    assert {suffix for suffix, name in Image.registered_extensions().items() if name in {*FORMATS, "MPO"}} == SUFFIXES
    assert set(FORMATS) <= set(Image.OPEN)


def test_links_to_folders_and_files_are_followed(tmp_path: Path) -> None:
    draw(tmp_path / "elsewhere/monday/1.png")
    draw(tmp_path / "elsewhere/2.png")
    folder = tmp_path / "G"
    draw(folder / "0.png")
    (folder / "monday").symlink_to(tmp_path / "elsewhere/monday")
    (folder / "2.png").symlink_to(tmp_path / "elsewhere/2.png")
    (folder / "chain").symlink_to(folder / "monday")
    assert names(folder) == ["0.png", "2.png", "chain/1.png", "monday/1.png"]
    (tmp_path / "G2").symlink_to(folder)
    assert names(tmp_path / "G2") == names(folder)


def test_loops_of_links_end(tmp_path: Path) -> None:
    folder = tmp_path / "G"
    draw(folder / "a/1.png")
    (folder / "a/up").symlink_to(folder)
    (folder / "self").symlink_to(folder / "self")
    (folder / "b").mkdir()
    (folder / "b/to_c").symlink_to(folder / "c")
    (folder / "c").mkdir()
    (folder / "c/to_b").symlink_to(folder / "b")
    found = find_images(folder)
    assert [path.as_posix() for path in found.images] == ["a/1.png"]
    assert found.left_out == {
        "a/up": "a link to a folder that holds it",
        "self": "a link to nothing",
        "b/to_c/to_b": "a link to a folder that holds it",
        "c/to_b/to_c": "a link to a folder that holds it",
    }


def test_the_content_of_a_file_with_an_unknown_suffix_decides(tmp_path: Path) -> None:
    for number, encoding in enumerate(same_picture()):
        if encoding.suffix != ".tga":  # has no signature
            (tmp_path / f"{number}").write_bytes(encoding.content)
            (tmp_path / f"{number}.cam").write_bytes(encoding.content)
    count = len(list(tmp_path.iterdir()))
    assert count > 100
    assert len(names(tmp_path)) == count


def test_what_is_left_out_is_counted_and_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    draw(tmp_path / "1.png")
    (tmp_path / "notes.md").write_text("# Notes")
    (tmp_path / "bitmap.doc").write_text("BM is how a bitmap starts")
    (tmp_path / "raw").write_bytes(bytes(5000))
    (tmp_path / "empty").touch()
    (tmp_path / "gone.png").symlink_to(tmp_path / "nothing")
    os.mkfifo(tmp_path / "pipe.png")
    draw(tmp_path / "._1.png")
    draw(tmp_path / ".trash/2.png")
    for quiet in (".DS_Store", "groups.csv", "LICENSE.txt"):
        (tmp_path / quiet).write_text("x")
    write_overlay(tmp_path / "1-overlay.png", PICTURE)
    found = find_images(tmp_path)
    assert [path.as_posix() for path in found.images] == ["1.png"]
    assert found.left_out == {
        "notes.md": "not an image",
        "bitmap.doc": "not an image",
        "raw": "not an image",
        "empty": "not an image",
        "gone.png": "a link to nothing",
        "pipe.png": "not a plain file",
        "._1.png": "hidden",
        ".trash": "hidden",
        "1-overlay.png": "an overlay that csflow drew",
    }
    say_left_out(found.left_out, "import", tmp_path)
    said = capsys.readouterr().err
    assert f"import: 9 files of {tmp_path} are left out: " in said
    assert "._1.png (hidden)" in said
    assert "and 4 more" in said
    say_left_out({}, "import", tmp_path)
    assert capsys.readouterr().err == ""


def test_an_empty_file_with_the_suffix_of_an_image_counts(tmp_path: Path) -> None:
    """The data gate names it; leaving it out here would hide it."""
    (tmp_path / "x.png").touch()
    assert names(tmp_path) == ["x.png"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read every folder")
def test_a_folder_that_cannot_be_read_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "closed").mkdir(mode=0)
    with pytest.raises(DataError, match="Cannot read .*closed"):
        find_images(tmp_path)


def test_a_missing_folder_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="Cannot read .*none"):
        find_images(tmp_path / "none")


def test_names_that_no_table_can_hold_are_refused(tmp_path: Path) -> None:
    draw(tmp_path / "a\nb.png")
    with pytest.raises(DataError, match=r"'a\\nb\.png'"):
        find_images(tmp_path)


def test_names_decide_by_their_suffix() -> None:
    assert is_image(Path("x.JFIF"))
    assert is_image(Path("x.jp2"))
    assert not is_image(Path(".x.png"))
    assert not is_image(Path("x.psd"))
