"""Extraction in ONNX Runtime: the trunk's own features, a graph that is kept, and torch where there is none."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from csflow.config import FeatureConfig
from csflow.data.images import read_image, to_pyramid_inputs, to_pyramid_levels
from csflow.errors import CacheError, ModelError
from csflow.features import trunk_graph as graph
from csflow.features.backbone import Backbone, load_backbone
from csflow.features.extraction import TRUNK, extract_features
from csflow.system.files import sha256_file
from csflow.system.onnx_session import open_session

FEATURES = FeatureConfig(image_size=64, scales=2, stage=1)


class Inverted(nn.Module):
    """An operation ONNX does not know."""

    def forward(self, values: Tensor) -> Tensor:
        return torch.special.bessel_j0(values)


def toy(seed: int = 0, last: nn.Module | None = None) -> Backbone:
    torch.manual_seed(seed)
    model = nn.Module()
    model.conv_stem = nn.Conv2d(3, 4, 3, 2, 1)
    model.bn1 = nn.BatchNorm2d(4)
    model.blocks = nn.Sequential(nn.Sequential(nn.Conv2d(4, 6, 3, 2, 1), last or nn.Identity()))
    return Backbone(model, name="toy", stages=(1,), mean=(0.5, 0.4, 0.3), std=(0.5, 0.6, 0.7))


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Path]:
    draw, found = np.random.default_rng(0), {}
    for index in range(7):
        path = tmp_path / f"{index}.png"
        Image.fromarray(draw.integers(0, 256, (50 + index, 80, 3), dtype=np.uint8)).save(path)
        found[sha256_file(path)] = path
    return found


def extracted(
    files: Mapping[str, Path], features: FeatureConfig, backbone: Backbone, folder: Path
) -> dict[str, np.ndarray]:
    return dict(extract_features(files, features, backbone, 3, folder))


def expected(path: Path, features: FeatureConfig, backbone: Backbone) -> np.ndarray:
    inputs = to_pyramid_inputs(read_image(path), features, backbone.mean, backbone.std)
    pyramid = backbone([torch.from_numpy(level)[None] for level in inputs])
    return torch.cat([level.flatten() for level in pyramid]).numpy()


def assert_right(files: Mapping[str, Path], features: FeatureConfig, backbone: Backbone, folder: Path) -> None:
    found = extracted(files, features, backbone, folder)
    assert list(found) == list(files)
    for sha, path in files.items():
        right = expected(path, features, backbone)
        assert found[sha].dtype == np.float16
        assert np.linalg.norm(found[sha] - right) <= 5e-4 * np.linalg.norm(right)  # half precision


@pytest.mark.parametrize("downscale", ["antialias", "nearest"])
def test_are_the_trunks(files: dict[str, Path], tmp_path: Path, downscale: str) -> None:
    features = FEATURES.model_copy(update={"downscale": downscale})
    assert_right(files, features, toy(), tmp_path / "space")
    assert (tmp_path / "space" / TRUNK).is_file()


@pytest.mark.parametrize("size", [96, 192])
def test_real_trunk_before_rounding(files: dict[str, Path], tmp_path: Path, size: int) -> None:
    """TensorFlow's uneven padding and all: within 1e-4 of torch."""
    features = FeatureConfig(image_size=size, scales=2, stage=5)
    backbone = load_backbone(features)
    (tmp_path / TRUNK).write_bytes(graph.trunk_graph(backbone, features).SerializeToString())
    session = open_session(tmp_path / TRUNK, threads=1)
    path = next(iter(files.values()))
    levels = to_pyramid_levels(read_image(path), features)
    (found,) = session.run(None, {f"level_{i}": np.stack([level, level]) for i, level in enumerate(levels)})
    right = expected(path, features, backbone)
    for row in found:
        assert np.linalg.norm(row - right) <= 1e-4 * np.linalg.norm(right)


def test_the_graph_is_kept(files: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    backbone = toy()
    first = extracted(files, FEATURES, backbone, tmp_path / "space")
    monkeypatch.setattr(graph, "trunk_graph", lambda *_: pytest.fail("made again"))
    second = extracted(files, FEATURES, backbone, tmp_path / "space")
    assert all(np.array_equal(first[sha], second[sha]) for sha in files)


@pytest.mark.parametrize("how", ["empty", "text", "another trunk", "other sizes"])
def test_a_wrong_graph_is_made_again(files: dict[str, Path], tmp_path: Path, how: str) -> None:
    folder = tmp_path / "space"
    folder.mkdir()
    if how in ("empty", "text"):
        (folder / TRUNK).write_bytes(b"" if how == "empty" else b"no graph")
    elif how == "another trunk":
        extracted(files, FEATURES, toy(seed=1), folder)
    else:
        extracted(files, FEATURES.model_copy(update={"image_size": 128}), toy(), folder)
    before = (folder / TRUNK).read_bytes()
    assert_right(files, FEATURES, toy(), folder)
    assert (folder / TRUNK).read_bytes() != before


def test_a_fresh_graph_that_disagrees(files: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make = graph.trunk_graph
    monkeypatch.setattr(graph, "trunk_graph", lambda _, features: make(toy(seed=1), features))
    with pytest.raises(ModelError, match=r"graph of toy computes features that differ by"):
        extracted(files, FEATURES, toy(), tmp_path / "space")


def test_a_trunk_onnx_does_not_know_is_computed_in_torch(files: dict[str, Path], tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="computed in torch, which takes longer: toy cannot be turned into") as said:
        assert_right(files, FEATURES, toy(last=Inverted()), tmp_path / "space")
    assert len([each for each in said if "computed in torch" in str(each.message)]) == 1


def test_a_folder_that_cannot_be_written(files: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "space").write_text("a file where the folder should be")
    with pytest.raises(CacheError, match="Cannot write"):
        extracted(files, FEATURES, toy(), tmp_path / "space")


def test_no_files_need_no_graph(tmp_path: Path) -> None:
    assert extracted({}, FEATURES, toy(), tmp_path / "space") == {}
    assert not (tmp_path / "space").exists()
