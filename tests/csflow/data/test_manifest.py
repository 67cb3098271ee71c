"""The image table: layout, roles that stick, digest."""

from __future__ import annotations

from pathlib import Path

import pytest

from csflow.config import RolesConfig
from csflow.data.manifest import COLUMNS, Manifest, build_manifest, role_of
from csflow.errors import DataError

ROLES = RolesConfig(calibrate=0.2, gate=0.1)


def write(root: Path, files: dict[str, str]) -> Path:
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(content)
    return root


@pytest.fixture
def root(tmp_path: Path) -> Path:
    files = {f"train/good/{i:03}.png": f"train {i}" for i in range(40)}
    files |= {"test/good/000.JPG": "ok", "test/crack/a.png": "a", "test/crack/b.png": "b"}
    return write(tmp_path / "images", {**files, "ground_truth/crack/a_mask.png": "mask of a"})


def build(root: Path, roles: RolesConfig = ROLES) -> Manifest:
    return build_manifest(root, line="tile", roles=roles)


def test_rows_say_what_each_image_is(root: Path) -> None:
    write(root, {"train/good/.hidden.png": "x", "train/good/Thumbs.db": "x", ".cache/x.png": "x", "readme.txt": "x"})
    manifest = build(root)
    assert tuple(manifest.frame.columns) == COLUMNS
    assert list(manifest.frame["path"]) == sorted(manifest.frame["path"])
    assert set(manifest.frame["line"]) == {"tile"}
    rows = manifest.frame.set_index("path")
    defective = rows.loc["test/crack/a.png"]
    assert (defective["split"], defective["role"], defective["label"]) == ("test", "test", "defective")
    assert (defective["defect"], defective["mask"]) == ("crack", "ground_truth/crack/a_mask.png")
    assert defective["sha256"] == "ca978112ca1bbdcafac231b39a23dc4da786eff8147c4e72b9807785afee48bb"
    assert rows.loc["test/crack/b.png", ["mask", "mask_sha256"]].tolist() == ["", ""]
    assert rows.loc["test/good/000.JPG", ["label", "defect", "role"]].tolist() == ["good", "", "test"]
    assert (len(manifest), len(manifest.rows(split="train")), len(manifest.rows(label="defective"))) == (43, 40, 2)
    assert sum(len(manifest.rows(role=role)) for role in ("fit", "calibrate", "gate")) == 40
    assert manifest.rows(label="defective").files == [root / "test/crack/a.png", root / "test/crack/b.png"]


def test_roles_have_their_shares_and_only_grow() -> None:
    keys = [f"key {i}" for i in range(20000)]
    first = {key: role_of(key, ROLES) for key in keys}
    for role, share in (("calibrate", 0.2), ("gate", 0.1), ("fit", 0.7)):
        assert list(first.values()).count(role) / len(keys) == pytest.approx(share, abs=0.01)
    grown = RolesConfig(calibrate=0.25, gate=0.1)
    assert all(role_of(key, grown) == "calibrate" for key, role in first.items() if role == "calibrate")


def test_role_of_an_image_survives_renaming_and_new_neighbours(root: Path) -> None:
    before = build(root).frame.set_index("sha256")["role"].to_dict()
    (root / "train/good/000.png").rename(root / "train/good/zzz.png")
    write(root, {f"train/good/new{i}.png": f"new {i}" for i in range(30)})
    after = build(root).frame.set_index("sha256")["role"].to_dict()
    assert {sha: after[sha] for sha in before} == before
    assert set(before.values()) == {"fit", "calibrate", "gate", "test"}


def test_a_group_never_straddles_roles(root: Path) -> None:
    lines = [f"train/good/{i:03}.png,part {i // 10}" for i in range(30)]
    write(root, {"groups.csv": "\n".join(["path,group", *lines])})
    frame = build(root).rows(split="train").frame
    grouped = frame[frame["group"] != ""].groupby("group")["role"].nunique()
    assert len(grouped) == 3
    assert set(grouped) == {1}
    assert frame[frame["group"] == "part 0"]["role"].iloc[0] == role_of("part 0", ROLES)


def test_digest_follows_content_and_nothing_else(root: Path, tmp_path: Path) -> None:
    digest = build(root).digest
    moved = root.rename(tmp_path / "elsewhere")
    manifest = build(moved, RolesConfig(calibrate=0.5, gate=0.3))
    assert manifest.digest == digest
    assert Manifest(manifest.frame.sample(frac=1, random_state=1), moved).digest == digest
    changes = {
        "test/crack/b.png": "other picture", "ground_truth/crack/b_mask.png": "new mask",
        "train/good/more.png": "one more", "groups.csv": "path,group\ntrain/good/000.png,g",
    }  # fmt: skip
    seen = {digest}
    for name, content in changes.items():
        write(moved, {name: content})
        seen.add(build(moved).digest)
    assert len(seen) == 5


def test_saved_table_comes_back_as_it_was(root: Path, tmp_path: Path) -> None:
    write(root, {"train/good/NA.png": "na", 'train/good/a, "b".png': "quoted", "train/good/部品\u3000一.png": "wide"})
    manifest = build(root)
    manifest.save(tmp_path / "manifest.csv")
    loaded = Manifest.load(tmp_path / "manifest.csv", root)
    assert loaded.frame.equals(manifest.frame)
    assert loaded.digest == manifest.digest
    (tmp_path / "other.csv").write_text("a,b\n1,2\n")
    with pytest.raises(DataError, match="a, b; expected path,line"):
        Manifest.load(tmp_path / "other.csv", root)
    with pytest.raises(DataError, match="Cannot read"):
        Manifest.load(tmp_path / "none.csv", root)


def test_defective_image_in_train_is_listed_without_role(root: Path) -> None:
    row = build(write(root, {"train/scratch/x.png": "x"})).rows(split="train", label="defective").frame
    assert row[["path", "role", "defect"]].values.tolist() == [["train/scratch/x.png", "", "scratch"]]


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"train/x.png": ""}, r"outside of the layout: train/x\.png"),
        ({"test/Good/x.png": ""}, r"outside of the layout: test/Good/x\.png"),
        ({"val/good/x.png": ""}, r"outside of the layout: val/good/x\.png"),
        ({"ground_truth/crack/z_mask.png": ""}, r"z_mask\.png \(0 images test/crack/z\.\*\)"),
        ({"ground_truth/crack/b.png": ""}, r"crack/b\.png \(0 images"),
        ({"ground_truth/crack/a_mask.bmp": ""}, r"another mask"),
        ({"test/crack/a.jpg": ""}, r"a_mask\.png \(2 images"),
        ({"train/good/a\nb.png": ""}, r"control characters"),
        ({"groups.csv": "image,part\n"}, r"expected path,group"),
        ({"groups.csv": "path,group\ntrain/good/none.png,g\n"}, r"names 'train/good/none\.png', which is not"),
        ({"groups.csv": "path,group\ntest/good/000.JPG,g\ntest/good/000.JPG,h\n"}, r"into 'g' and 'h'"),
        ({"train/good/t.png": "train 0", "groups.csv": "path,group\ntrain/good/t.png,g\n"}, r"000\.png \(no group\)"),
    ],
)  # fmt: skip
def test_contradictions_are_named(root: Path, files: dict[str, str], message: str) -> None:
    with pytest.raises(DataError, match=message):
        build(write(root, files))


def test_empty_and_missing_folders(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="is not a folder"):
        build(tmp_path / "none")
    (tmp_path / "train/good").mkdir(parents=True)
    with pytest.raises(DataError, match="No images in .*train/good"):
        build(tmp_path)
