"""A fitted model that is damaged is fitted again, with the same bits."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from csflow.config import DataConfig, FlowConfig, LineConfig, TrainingConfig
from csflow.errors import DamagedFileError
from csflow.features.cache_manifest import CacheManifest
from csflow.features.entries import FeatureSpace
from csflow.flow.training import EpochResult
from csflow.runs.find_or_fit import checked_copy, find_or_fit
from csflow.runs.fitting import MODEL, TRAINING, model_folder, read_epochs
from tests.damage import damages, inflict, remove

SHAPES = ((6, 4, 4), (6, 2, 2))
LINE = LineConfig(
    line="plates",
    data=DataConfig(path="data"),
    flow=FlowConfig(blocks=1, hidden=8),
    training=TrainingConfig(epochs=2, batch_size=8, learning_rate=2e-3, device="cpu", precision="float32"),
)
FILES = [MODEL, TRAINING]


@pytest.fixture
def cached(tmp_path: Path) -> CacheManifest:
    draw = np.random.default_rng(0)
    manifest = CacheManifest(tmp_path / "features", "space", SHAPES, tuple(f"{n:064d}" for n in range(21)))
    space = FeatureSpace(manifest.store / manifest.space, SHAPES)
    for sha in manifest.entries:
        space.write(sha, draw.normal(2.0, 3.0, space.values).astype(np.float16))
    return manifest


def fit(cached: CacheManifest, models: Path, line: LineConfig = LINE) -> tuple[Path, list[EpochResult]]:
    told: list[EpochResult] = []
    return find_or_fit(line, cached, list(cached.entries), models, told.append, processes=1), told


@pytest.mark.parametrize("kind", [pytest.param("csflow", marks=pytest.mark.slow), "mahalanobis"])
@pytest.mark.parametrize("name", FILES)
def test_a_damaged_model_is_put_aside_and_fitted_again(
    cached: CacheManifest, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, kind: str
) -> None:
    line = LINE.model_copy(update={"detector": kind})
    folder, expected = fit(cached, tmp_path / "models", line)
    sound = {file: (folder / file).read_bytes() for file in FILES}
    for number, (damage, content) in enumerate(damages(sound[name]), start=1):
        inflict(folder / name, content)
        capsys.readouterr()
        again, told = fit(cached, tmp_path / "models", line)
        assert again == folder
        assert (again / MODEL).read_bytes() == sound[MODEL], damage
        assert [(r.epoch, r.nll) for r in told] == [(r.epoch, r.nll) for r in expected], damage
        assert f"{name} " in (said := capsys.readouterr().err), damage
        assert "Put aside as" in said, damage
        aside = sorted((tmp_path / "models").glob("*.damaged*"))
        assert len(aside) == number, "each is kept"
    assert fit(cached, tmp_path / "models", line)[1] == told, "a sound model is found"
    assert "found the model" in capsys.readouterr().err


@pytest.mark.parametrize("name", FILES)
def test_a_model_without_one_of_its_files_is_fitted_again(cached: CacheManifest, tmp_path: Path, name: str) -> None:
    folder, _ = fit(cached, tmp_path / "models")
    content = (folder / MODEL).read_bytes()
    remove(folder / name)
    fit(cached, tmp_path / "models")
    assert (folder / MODEL).read_bytes() == content


def test_a_file_in_the_place_of_a_folder_blocks_nothing(cached: CacheManifest, tmp_path: Path) -> None:
    folder, _ = fit(cached, tmp_path / "models")
    content = (folder / MODEL).read_bytes()
    remove(folder)
    folder.write_bytes(b"stray")
    folder.with_suffix(".work").write_bytes(b"stray")
    assert fit(cached, tmp_path / "models")[0] == folder
    assert (folder / MODEL).read_bytes() == content


def test_a_model_of_another_csflow_is_no_model(cached: CacheManifest, tmp_path: Path) -> None:
    """Its key would differ, since the code does; but nobody could tell whether it is sound."""
    folder = model_folder(LINE, cached, list(cached.entries), tmp_path)
    folder.mkdir(parents=True)
    (folder / MODEL).write_bytes(b"\x02\0\0\0\0\0\0\0{}")
    (folder / TRAINING).write_text("[]\n")
    with pytest.raises(DamagedFileError, match="it has no seal"):
        read_epochs(folder)


def test_a_damaged_copy_is_replaced(cached: CacheManifest, tmp_path: Path) -> None:
    """By the model itself; if that one is damaged too, by a model that is fitted again."""
    folder, _ = fit(cached, tmp_path / "models")
    sound = (folder / MODEL).read_bytes()
    copy = tmp_path / "copy"
    for damaged in ([copy], [copy, folder]):
        for each in damaged:
            each.mkdir(exist_ok=True)
            inflict(each / MODEL, sound[:-3])
        checked_copy(LINE, cached, list(cached.entries), tmp_path / "models", copy)
        assert [each.joinpath(MODEL).read_bytes() for each in (copy, folder)] == [sound, sound]
        assert read_epochs(copy) == read_epochs(folder)
