"""Imports: complete and checked, or nothing."""

from __future__ import annotations

import io
import stat
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from csflow.config import RolesConfig
from csflow.data.importers import import_folder, import_mtd, import_mvtec
from csflow.data.manifest import Manifest, build_manifest
from csflow.errors import DataError


def draw(path: Path, value: int = 0, size: tuple[int, int] = (8, 6)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L", size, value).save(path)
    return path


def read(root: Path) -> Manifest:
    return build_manifest(root, line="x", roles=RolesConfig())


def mvtec_class(root: Path) -> Path:
    for i in range(3):
        draw(root / f"train/good/{i:03}.png", i)
    draw(root / "test/good/000.png", 100)
    draw(root / "test/bent/000.png", 200)
    draw(root / "ground_truth/bent/000_mask.png", 255)
    (root / "license.txt").write_text("CC BY-NC-SA")
    return root


@pytest.fixture
def mtd_like(tmp_path: Path) -> Path:
    source = tmp_path / "mtd"
    for i, kind in enumerate(["Free", "Free", "Free", "Blowhole", "Break", "Crack", "Fray", "Uneven"]):
        draw(source / f"MT_{kind}/Imgs/exp1_num_{i}.jpg", i)
        draw(source / f"MT_{kind}/Imgs/exp1_num_{i}.png", 0)
    marked = np.zeros((6, 8), np.uint8)
    marked[1, 2:5] = (3, 130, 255)
    Image.fromarray(marked).save(source / "MT_Crack/Imgs/exp1_num_5.png")
    (source / "train_filenames.txt").write_text("exp1_num_0.jpg\nexp1_num_2.jpg\n")
    return source


def nothing_left(folder: Path) -> bool:
    return not any(folder.iterdir()) if folder.exists() else True


def test_mtd_split_defects_and_masks(mtd_like: Path, tmp_path: Path) -> None:
    dest = tmp_path / "out" / "tiles"
    import_mtd(mtd_like, dest)
    frame = read(dest).frame
    assert frame[frame["split"] == "train"]["path"].tolist() == [f"train/good/exp1_num_{i}.jpg" for i in (0, 2)]
    assert frame[frame["split"] == "test"]["defect"].tolist() == ["blowhole", "break", "crack", "fray", "", "uneven"]
    assert [mask for mask in frame["mask"] if mask] == ["ground_truth/crack/exp1_num_5_mask.png"]
    mask = np.asarray(Image.open(dest / "ground_truth/crack/exp1_num_5_mask.png"))
    assert np.argwhere(mask == 255).tolist() == [[1, 3], [1, 4]]
    assert set(np.unique(mask)) == {0, 255}
    assert [path.name for path in dest.parent.iterdir()] == ["tiles"]


@pytest.mark.parametrize(
    ("remove", "message"),
    [
        ("train_filenames.txt", "train_filenames.txt is missing"),
        ("MT_Free/Imgs/exp1_num_2.jpg", r"names images that are not in MT_Free/Imgs: exp1_num_2\.jpg"),
        ("MT_Fray/Imgs/exp1_num_6.jpg", r"No .jpg images in .*MT_Fray"),
        ("MT_Break/Imgs/exp1_num_4.png", r"MT_Break.*no mask .* exp1_num_4\.jpg"),
    ],
)
def test_mtd_incomplete_is_named_and_leaves_nothing(mtd_like: Path, tmp_path: Path, remove: str, message: str) -> None:
    (mtd_like / remove).unlink()
    with pytest.raises(DataError, match=message):
        import_mtd(mtd_like, tmp_path / "out" / "tiles")
    assert nothing_left(tmp_path / "out")


def test_used_destination_is_left_alone(mtd_like: Path, tmp_path: Path) -> None:
    mine = draw(tmp_path / "dest/mine.png")
    with pytest.raises(DataError, match="already exists and is not empty"):
        import_mtd(mtd_like, mine.parent)
    assert [path.name for path in mine.parent.iterdir()] == ["mine.png"]


@pytest.mark.parametrize("kind", ["folder of classes", "one class", "tar.xz", "zip"])
def test_mvtec_from_folder_and_archive(tmp_path: Path, kind: str) -> None:
    source = tmp_path / "mvtec"
    mvtec_class(source / "metal_nut")
    mvtec_class(source / "bottle")
    expected = ["bottle", "metal-nut"]
    if kind == "one class":
        source, expected = source / "metal_nut", ["metal-nut"]
    elif kind == "tar.xz":
        with tarfile.open(tmp_path / "mvtec.tar.xz", "w:xz") as bundle:
            bundle.add(source, "./mvtec")
        source = tmp_path / "mvtec.tar.xz"
    elif kind == "zip":
        with zipfile.ZipFile(tmp_path / "m.zip", "w") as package:
            for path in sorted(source.rglob("*.*")):
                package.write(path, path.relative_to(source))
                package.writestr(f"__MACOSX/{path.relative_to(source).parent}/._{path.name}", b"resource fork")
        source = tmp_path / "m.zip"
    dest = tmp_path / "lines"
    draw(dest / "other/train/good/0.png")
    assert import_mvtec(source, dest) == expected
    for line in expected:
        frame = read(dest / line).frame
        assert frame["defect"].tolist() == ["bent", "", "", "", ""]
        assert frame["mask"].iloc[0] == "ground_truth/bent/000_mask.png"
        assert (dest / line / "license.txt").read_text() == "CC BY-NC-SA"
    assert sorted(path.name for path in dest.iterdir()) == sorted([*expected, "other"])
    with pytest.raises(DataError, match=rf"{expected[0]} already exists"):
        import_mvtec(source, dest)


def test_mvtec_wrong_layout_is_named_and_leaves_nothing(tmp_path: Path) -> None:
    source = tmp_path / "mvtec"
    mvtec_class(source / "bottle")
    broken = mvtec_class(source / "cable")
    (broken / "ground_truth/bent/000_mask.png").rename(broken / "ground_truth/bent/777_mask.png")
    with pytest.raises(DataError, match=r"cable: mask ground_truth/bent/777_mask\.png"):
        import_mvtec(source, tmp_path / "lines")
    assert nothing_left(tmp_path / "lines")
    draw(source / "notes/x.png")
    with pytest.raises(DataError, match="no train or test folder in notes"):
        import_mvtec(source, tmp_path / "lines")
    with pytest.raises(DataError, match="holds no class folder"):
        import_mvtec(source / "notes", tmp_path / "lines")
    with pytest.raises(DataError, match="is a line itself"):
        import_mvtec(source, source / "bottle")


def archive_with(path: Path, name: str, link: str = "") -> Path:
    """A zip or tar with one member of a dangerous kind."""
    if path.suffix == ".zip":
        with zipfile.ZipFile(path, "w") as package:
            entry = zipfile.ZipInfo(name)
            if link:
                entry.external_attr = (stat.S_IFLNK | 0o777) << 16
            package.writestr(entry, link or "bytes")
        return path
    with tarfile.open(path, "w") as bundle:
        member = tarfile.TarInfo(name)
        member.size = 0 if link else 5
        if link:
            member.type, member.linkname = tarfile.SYMTYPE, link
        bundle.addfile(member, None if link else io.BytesIO(b"bytes"))
    return path


@pytest.mark.parametrize("suffix", [".zip", ".tar"])
@pytest.mark.parametrize(("name", "link"), [("../evil.png", ""), ("/abs/evil.png", ""), ("a/evil.png", "/etc/passwd")])
def test_unsafe_archives_are_refused(tmp_path: Path, suffix: str, name: str, link: str) -> None:
    source = archive_with(tmp_path / f"bad{suffix}", name, link)
    with pytest.raises(DataError, match=r"unsafe path|a link"):
        import_mvtec(source, tmp_path / "deep/down/lines")
    assert not list(tmp_path.rglob("evil.png"))
    assert nothing_left(tmp_path / "deep/down")


def test_damaged_archive_is_named(tmp_path: Path) -> None:
    for name in ("cut.tar.xz", "cut.zip"):
        (tmp_path / name).write_bytes(b"\xfd7zXZ\x00\x00\x04 and then nothing of it")
        with pytest.raises(DataError, match=rf"{name} cannot be unpacked"):
            import_mvtec(tmp_path / name, tmp_path / "lines")
    (tmp_path / "images.rar").write_bytes(b"")
    with pytest.raises(DataError, match="neither a folder nor an archive"):
        import_mvtec(tmp_path / "images.rar", tmp_path / "lines")
    with pytest.raises(DataError, match="does not exist"):
        import_mvtec(tmp_path / "none", tmp_path / "lines")


def test_own_folders_split_by_content(tmp_path: Path) -> None:
    for i in range(100):
        draw(tmp_path / f"good/day{i % 2}/{i}.png", i)
    draw(tmp_path / "bad/scratch/1.png", 200)
    draw(tmp_path / "bad/dent/1.png", 201)
    draw(tmp_path / "masks/scratch/1.png", 255)
    arguments = {"good": tmp_path / "good", "defective": tmp_path / "bad", "masks": tmp_path / "masks"}
    import_folder(tmp_path / "a", **arguments)
    frame = read(tmp_path / "a").frame
    good = frame[frame["label"] == "good"]
    assert len(good) == 100
    assert 8 <= (good["split"] == "test").sum() <= 32
    assert good["path"].str.contains("good/day0_42.png").sum() == 1
    assert dict(zip(frame["defect"], frame["mask"], strict=True)) | {"": ""} == {
        "": "", "dent": "", "scratch": "ground_truth/scratch/1_mask.png",
    }  # fmt: skip
    (tmp_path / "good/day0/42.png").rename(tmp_path / "good/day1/renamed.png")
    draw(tmp_path / "good/day1/new.png", 150)
    import_folder(tmp_path / "b", **arguments)
    before, after = (read(tmp_path / name).frame.set_index("sha256")["split"] for name in "ab")
    assert after[before.index].equals(before)


def test_share_of_tests_is_independent_of_roles(tmp_path: Path) -> None:
    for i in range(400):
        draw(tmp_path / f"good/{i}.png", i % 256, (8 + i // 256, 6))
    import_folder(tmp_path / "out", good=tmp_path / "good", test_share=0.5)
    train = read(tmp_path / "out").rows(split="train")
    assert len(train.rows(role="calibrate")) / len(train) == pytest.approx(0.2, abs=0.1)


@pytest.mark.parametrize(
    ("files", "arguments", "message"),
    [
        ([], {"good": "none"}, "none is not a folder"),
        (["good/notes.txt"], {"good": "good"}, "good holds no images"),
        (["good/a/1.png", "good/a_1.png"], {"good": "good"}, r"both be named a_1\.png"),
        (
            ["good/1.png", "bad/x/1.png", "bad/2.png"],
            {"good": "good", "defective": "bad"},
            r"both folders and images \(2\.png\)",
        ),
        (["good/1.png", "bad/good/1.png"], {"good": "good", "defective": "bad"}, "cannot be a type of defect"),
        (["good/1.png", "m/1.png"], {"good": "good", "masks": "m"}, "belong to defective images"),
        (["good/1.png", "bad/1.png", "m/7.png"], {"good": "good", "defective": "bad", "masks": "m"}, "7_mask"),
        (["good/1.png", "bad/1.png", "m/1.jpg"], {"good": "good", "defective": "bad", "masks": "m"}, "lossy"),
        (["good/1.png", "bad/x/1.png", "m/y/1.png"], {"good": "good", "defective": "bad", "masks": "m"}, "holds y"),
    ],
)
def test_own_folders_contradictions(tmp_path: Path, files: list[str], arguments: dict[str, str], message: str) -> None:
    for name in files:
        draw(tmp_path / name, 1) if not name.endswith(".txt") else (tmp_path / "good").mkdir()
    folders = {key: tmp_path / value for key, value in arguments.items()}
    with pytest.raises(DataError, match=message):
        import_folder(tmp_path / "out" / "line", test_share=0.0, **folders)
    assert nothing_left(tmp_path / "out")


@pytest.mark.real
def test_mtd_has_the_authors_counts(mtd: Path, tmp_path: Path) -> None:
    import_mtd(mtd, tmp_path / "mtd")
    manifest = read(tmp_path / "mtd")
    counts = [len(manifest.rows(split="train")), len(manifest.rows(split="test", label="good"))]
    assert counts == [761, 191]
    defective = manifest.rows(label="defective").frame
    assert defective["defect"].value_counts().to_dict() == {
        "blowhole": 115, "uneven": 103, "break": 85, "crack": 57, "fray": 32,
    }  # fmt: skip
    # Four masks of the data set mark no pixel at all.
    assert (defective["mask"] == "").sum() == 4
    assert manifest.frame["sha256"].is_unique


def test_too_few_good_images_are_counted_whatever_their_content(tmp_path: Path) -> None:
    """The split is by content, so a single image falls into the test split by chance."""
    refused = []
    for value in range(30):
        draw(tmp_path / f"one-{value}/a.png", value)
        try:
            import_folder(tmp_path / f"out-{value}", good=tmp_path / f"one-{value}")
        except DataError as error:
            refused.append(str(error))
    assert 0 < len(refused) < 30
    assert len(list(tmp_path.glob("out-*"))) == 30 - len(refused)
    assert all("holds 1 good image," in each and "import about 25 good images" in each for each in refused)
