"""DifferNet reads every rotation of an image, and scores their mean."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from csflow.data.manifest import Manifest
from csflow.detector.fitting import fit_model
from csflow.detector.kinds.differnet import PooledFeatures, PooledFlowModel
from csflow.detector.model import pooled
from csflow.features.backbone import load_backbone
from csflow.features.store import FeatureStore
from tests.csflow.detector.small_line import cached, line_of


def test_differnet_sees_every_turn_of_an_image(manifest: Manifest) -> None:
    line = line_of("differnet-turned")
    turned, plain = load_backbone(line.features), load_backbone(line_of("csflow").features)
    images = torch.rand(2, 3, 128, 128)
    levels = turned([images, images[:, :, ::2, ::2]])
    assert len(levels) == 8
    for turn in range(4):
        expected = plain([torch.rot90(images, turn, (2, 3))])[0]
        torch.testing.assert_close(levels[2 * turn], expected, rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_differnet_scores_the_mean_over_turns(manifest: Manifest, store: FeatureStore, tmp_path: Path) -> None:
    line = line_of("differnet-turned")
    features = cached(store, manifest, line, load_backbone(line.features))
    model = fit_model(line, features, directory=tmp_path)
    assert isinstance(model, PooledFlowModel)
    pyramid = features.batch(range(4))
    expected = []
    with torch.inference_mode():
        for turn in range(4):
            latents, _ = model.flow([pooled(pyramid[3 * turn : 3 * turn + 3])[:, :, None, None]])
            expected.append(latents[0].square().mean(dim=(1, 2, 3)) / 2)
        scores, _ = model(pyramid)
    torch.testing.assert_close(scores, torch.stack(expected).mean(dim=0))


@pytest.mark.slow
def test_pooled_features_are_a_vector_a_turn(manifest: Manifest, store: FeatureStore) -> None:
    line = line_of("differnet-turned")
    features = cached(store, manifest, line, load_backbone(line.features))
    vectors = PooledFeatures(features, 4)
    assert len(vectors) == 60
    (batch,) = vectors.batch([5, 0, 59])
    for row, (image, turn) in zip(batch, [(1, 1), (0, 0), (14, 3)], strict=True):
        expected = torch.cat([level.mean(dim=(1, 2)) for level in features[image][3 * turn : 3 * turn + 3]])
        torch.testing.assert_close(row[:, 0, 0], expected)
