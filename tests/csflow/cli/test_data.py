"""``csflow import --track`` and ``csflow data`` with real git, DVC and data gate."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner, Result

from csflow.adapters.versioning.git import git
from csflow.cli.data import data_app
from csflow.cli.import_ import import_app
from csflow.errors import ConfigError, DataError, UsageError
from tests.csflow.data.encodings import same_picture


def draw(path: Path, seed: int) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(seed).integers(0, 255, (40, 48), dtype=np.uint8)
    Image.fromarray(noise).save(path)
    return path


def mask(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    marked = np.zeros((40, 48), np.uint8)
    marked[3:9, 4:20] = 255
    Image.fromarray(marked).save(path)
    return path


def call(app: object, *arguments: str | Path) -> Result:
    """Run a command; errors of csflow come out as raised."""
    return CliRunner().invoke(app, [str(a) for a in arguments], catch_exceptions=False)  # type: ignore[arg-type]


def files_of(root: Path) -> list[str]:
    return sorted(path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file())


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data repository made by ``csflow import folder --track``; only cloned by the tests."""
    base = tmp_path_factory.mktemp("published")
    for i in range(12):
        draw(base / f"good/{i:02}.png", i)
    for i in range(2):
        draw(base / f"bad/dent/{i}.png", 100 + i)
    mask(base / "masks/dent/0.png")
    result = call(
        import_app, "folder", base / "plant", "--good", base / "good", "--defective", base / "bad",
        "--masks", base / "masks", "--track",
    )  # fmt: skip
    assert f"repo: {base / 'plant'}\n  rev: HEAD\n  path: data\n" in result.output
    return base / "plant"


@pytest.fixture
def plant(published: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, home: Path) -> Path:
    """A fresh clone with the remote beside it, and the line ``tile`` that names it."""
    git("clone", "--quiet", str(published), str(tmp_path / "plant"))
    shutil.copytree(published.parent / "plant-remote", tmp_path / "plant-remote")
    (tmp_path / "lines").mkdir()
    quality = "quality: {min_train: 3, min_test_good: 1}"
    (tmp_path / "lines/tile.yaml").write_text(f"line: tile\ndata: {{repo: ../plant, path: data}}\n{quality}\n")
    monkeypatch.setenv("CSFLOW_LINES", str(tmp_path / "lines"))
    return tmp_path / "plant"


def head(repository: Path) -> str:
    return git("rev-parse", "HEAD", repository=repository).strip()


def test_show_counts_what_is_there(plant: Path, home: Path) -> None:
    output = call(data_app, "show", "tile").output
    assert head(plant) in output
    rows = [line.replace("│", " ").split() for line in output.splitlines() if "│" in line]
    assert ["test", "test", "dent", "2", "1"] in rows
    assert ["all", "14", "1"] in rows
    (images,) = [line.split()[1] for line in output.splitlines() if line.startswith("images ")]
    assert Path(images).is_relative_to(home / "data/tile")
    with pytest.raises(ConfigError, match="Did you mean tile"):
        call(data_app, "show", "tiles")


def test_add_reaches_the_next_checkout(plant: Path, tmp_path: Path) -> None:
    draw(tmp_path / "new/monday/7.png", 500)
    draw(tmp_path / "new/00.png", 501)
    before = call(data_app, "show", "tile").output.splitlines()
    head_before = head(plant)
    output = call(data_app, "add", "tile", tmp_path / "new", "--split", "train").output
    assert head(plant) != head_before
    assert head(plant) in output
    assert git("show", "--name-only", "--format=%s", "HEAD", repository=plant).split("\n")[:3] == [
        "tile: 2 images to train/good", "", "data.dvc",
    ]  # fmt: skip
    assert git("status", "--porcelain", repository=plant) == ""
    names = files_of(plant / "data/train/good")
    assert "monday_7.png" in names
    shutil.rmtree(plant / ".dvc/cache")
    after = call(data_app, "show", "tile").output.splitlines()
    assert next(line for line in after if "all" in line).replace("│", " ").split() == ["all", "16", "1"]
    digests = {line.split()[1] for line in before + after + output.splitlines() if line.startswith("digest ")}
    assert len(digests) == 2


def test_add_takes_every_encoding_of_a_picture(plant: Path, tmp_path: Path) -> None:
    """Also through a link to their folder."""
    encodings = list({encoding.content: encoding for encoding in same_picture()}.values())
    (tmp_path / "real/new").mkdir(parents=True)
    for number, encoding in enumerate(encodings):
        (tmp_path / f"real/new/{number}{encoding.suffix}").write_bytes(encoding.content)
    (tmp_path / "new").mkdir()
    (tmp_path / "new/monday").symlink_to(tmp_path / "real/new")
    call(data_app, "add", "tile", tmp_path / "new", "--split", "train")
    names = [name for name in files_of(plant / "data/train/good") if name.startswith("monday_")]
    assert len(names) == len(encodings)
    stored = {(plant / "data/train/good" / name).read_bytes() for name in names}
    assert stored == {encoding.content for encoding in encodings}


def test_add_defective_images_with_masks_and_taken_names(plant: Path, tmp_path: Path) -> None:
    draw(tmp_path / "new/0.png", 600)
    mask(tmp_path / "masks/0_mask.png")
    call(data_app, "add", "tile", tmp_path / "new", "--defect", "dent", "--masks", tmp_path / "masks")
    images = [Path(name).stem for name in files_of(plant / "data/test/dent")]
    (new,) = set(images) - {"0", "1"}
    assert new.startswith("0-")
    assert files_of(plant / "data/ground_truth/dent") == sorted(["0_mask.png", f"{new}_mask.png"])


def test_refused_additions_change_nothing(plant: Path, published: Path, tmp_path: Path) -> None:
    call(data_app, "add", "tile", draw(tmp_path / "first/x.png", 700).parent)
    before = head(plant), files_of(plant / "data")
    folder = published.parent / "good"
    twins = tmp_path / "twins"
    shutil.copy(draw(twins / "a.png", 701), twins / "b.png")
    fresh = draw(tmp_path / "fresh/9.png", 702).parent
    broken = tmp_path / "broken"
    draw(broken / "fine.png", 703)
    (broken / "cut.png").write_bytes((folder / "00.png").read_bytes()[:300])
    refused: list[tuple[list[str | Path], str]] = [
        ([folder], r"12 of 12 images are there already: .*00\.png is (train|test)/good/00\.png"),
        ([folder, "--defect", "new-kind"], r"are there already"),
        ([twins], r"1 of 2 images are there already: .*b\.png is .*a\.png"),
        ([broken], r"data gate refuses the result(.|\n)*cut\.png"),
        ([fresh, "--defect", "dent", "--masks", folder], r"No image in .*fresh for the masks"),
        ([folder / "00.png"], r"00\.png is not a folder"),
    ]
    for arguments, message in refused:
        with pytest.raises(DataError, match=message):
            call(data_app, "add", "tile", *arguments)
        assert (head(plant), files_of(plant / "data")) == before
        assert git("status", "--porcelain", repository=plant) == ""
    shutil.rmtree(tmp_path / "plant-remote")
    (tmp_path / "plant-remote").write_text("no folder any more")
    with pytest.raises(DataError, match="failed"):
        call(data_app, "add", "tile", fresh, "--defect", "brand-new")
    assert (head(plant), files_of(plant / "data")) == before
    assert not (plant / "data/test/brand-new").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--split", "validation"], "no split 'validation'"),
        (["--split", "train", "--defect", "dent"], "must be good"),
        (["--masks", "m"], "belong to defective images"),
        (["--defect", "Good"], "'Good' cannot be a type"),
        (["--defect", "../x"], "cannot be a type"),
    ],
)
def test_contradictory_options_are_usage_errors(tmp_path: Path, options: list[str], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        call(data_app, "add", "tile", tmp_path, *options)


def test_more_lines_into_an_existing_repository(tmp_path: Path) -> None:
    for name in ("metal_nut", "bottle", "cable"):
        for i in range(3):
            draw(tmp_path / f"{name}/train/good/{i}.png", i)
    repository = tmp_path / "mvtec"
    call(import_app, "mvtec", tmp_path / "metal_nut", repository, "--track", "--remote", tmp_path / "store")
    clone = tmp_path / "clone"
    git("clone", "--quiet", str(repository), str(clone))
    output = call(import_app, "mvtec", tmp_path / "bottle", clone, "--track").output
    assert "path: data/bottle" in output
    assert sorted(path.name for path in (clone / "data").iterdir()) == ["bottle", "metal-nut"]
    before = head(clone), files_of(clone / "data")
    with pytest.raises(DataError, match="bottle already exists"):
        call(import_app, "mvtec", tmp_path / "bottle", clone, "--track")
    with pytest.raises(DataError, match="data already exists and is not empty"):
        call(import_app, "folder", clone, "--good", tmp_path / "bottle", "--track")
    with pytest.raises(UsageError, match="has its remote already"):
        call(import_app, "mvtec", tmp_path / "cable", clone, "--track", "--remote", "x")
    shutil.rmtree(tmp_path / "store")
    (tmp_path / "store").write_text("no folder any more")
    with pytest.raises(DataError, match="failed"):
        call(import_app, "mvtec", tmp_path / "cable", clone, "--track")
    assert (head(clone), files_of(clone / "data")) == before


def test_failed_import_leaves_no_repository_and_foreign_folders_alone(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for dest in (tmp_path / "new", tmp_path / "deep/new"):
        with pytest.raises(DataError, match="holds no images"):
            call(import_app, "folder", dest, "--good", tmp_path / "empty", "--track")
        assert not dest.exists()
    mine = draw(tmp_path / "mine/picture.png", 1)
    with pytest.raises(DataError, match="neither empty nor a data repository"):
        call(import_app, "folder", mine.parent, "--good", mine.parent, "--track")
    assert files_of(mine.parent) == ["picture.png"]
    with pytest.raises(UsageError, match="--remote needs --track"):
        call(import_app, "folder", tmp_path / "x", "--good", mine.parent, "--remote", "y")


@pytest.mark.real
def test_mtd_into_a_data_repository(mtd: Path, tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    output = call(import_app, "mtd", mtd, tmp_path / "datasets/mtd", "--track").output
    assert ["all", "1344", "388"] in [line.replace("│", " ").split() for line in output.splitlines()]
    (tmp_path / "lines").mkdir()
    (tmp_path / "lines/mtd.yaml").write_text("line: mtd\ndata: {repo: ../datasets/mtd, path: data}\n")
    monkeypatch.setenv("CSFLOW_LINES", str(tmp_path / "lines"))
    shutil.rmtree(tmp_path / "datasets/mtd/data")
    shutil.rmtree(tmp_path / "datasets/mtd/.dvc/cache")
    shown = call(data_app, "show", "mtd").output
    assert ["all", "1344", "388"] in [line.replace("│", " ").split() for line in shown.splitlines()]
    assert head(tmp_path / "datasets/mtd") in shown
