"""Features that machines share: what one computed, the other fetches."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from csflow.adapters.storage import SharedFeatures, Store
from csflow.adapters.storage.features import AT_ONCE, batched, key
from csflow.cache import CacheManifest, FeatureStore
from csflow.errors import StorageError
from csflow.manifest import Manifest
from csflow.steps.features import feature_store
from csflow.workspace import Workspace
from tests.csflow.test_cache import FEATURES, draw, shas, toy


@pytest.fixture
def images(tmp_path: Path) -> Manifest:
    return draw(tmp_path / "images", range(11))


def machine(tmp_path: Path, name: str) -> FeatureStore:
    """The feature store of a machine of its own."""
    return feature_store(Workspace(tmp_path / name))


def values(cached: CacheManifest, images: Manifest) -> list[torch.Tensor]:
    return cached.open(shas(images)).batch(range(len(images)))


def test_one_machine_computes_the_other_fetches(store: Store, images: Manifest, tmp_path: Path) -> None:
    first = machine(tmp_path, "a").extract(images, FEATURES, toy())
    second = machine(tmp_path, "b").extract(images, FEATURES, toy())
    assert (first.extracted, first.fetched) == (11, 0)
    assert (second.extracted, second.fetched) == (0, 11)
    assert second.digest == first.digest
    for one, other in zip(values(first, images), values(second, images), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)
    again = machine(tmp_path, "b").extract(images, FEATURES, toy())
    assert (again.extracted, again.fetched) == (0, 0), "what is here is not looked for there"


def test_only_what_neither_holds_is_computed(store: Store, tmp_path: Path) -> None:
    machine(tmp_path, "a").extract(draw(tmp_path / "images", range(4)), FEATURES, toy())
    more = machine(tmp_path, "b").extract(draw(tmp_path / "images", range(6)), FEATURES, toy())
    assert (more.extracted, more.fetched) == (2, 4)


def test_a_damaged_entry_is_computed_again_and_mended(store: Store, images: Manifest, tmp_path: Path) -> None:
    first = machine(tmp_path, "a").extract(images, FEATURES, toy())
    spoilt, cut, moved = (key(first.space, sha) for sha in first.entries[:3])
    sound = store.get(spoilt)
    assert sound is not None
    store.put(spoilt, sound[:-1] + bytes([sound[-1] ^ 1]))
    store.put(cut, sound[:100])
    store.put(moved, sound)
    second = machine(tmp_path, "b").extract(images, FEATURES, toy())
    assert (second.extracted, second.fetched) == (3, 8)
    assert store.get(spoilt) == sound
    assert machine(tmp_path, "c").extract(images, FEATURES, toy()).fetched == 11


def test_another_backbone_is_another_space(store: Store, images: Manifest, tmp_path: Path) -> None:
    machine(tmp_path, "a").extract(images, FEATURES, toy())
    assert machine(tmp_path, "b").extract(images, FEATURES, toy(seed=1)).fetched == 0


def test_a_store_that_is_gone_costs_time_not_features(
    s3: Any, images: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{probe.getsockname()[1]}")
    monkeypatch.setattr("csflow.adapters.storage.store._ATTEMPTS", 1)
    cached = machine(tmp_path, "a").extract(images, FEATURES, toy())
    assert cached.extracted == 11
    assert len(values(cached, images)) == 3
    said = capsys.readouterr().err
    assert "11 images are computed here instead of fetched. Cannot download" in said
    assert "11 new entries stay on this machine" in said


def test_a_refusal_is_an_error_before_anything_is_computed(
    s3: Any, images: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CSFLOW_STORE", "s3://elsewhere/x")
    with pytest.raises(StorageError, match="elsewhere"):
        machine(tmp_path, "a").extract(images, FEATURES, toy())


def test_many_entries(store: Store, tmp_path: Path) -> None:
    tier = SharedFeatures(store)
    files = []
    for number in range(AT_ONCE + 7):
        path = tmp_path / f"{number:064x}"
        path.write_bytes(np.random.default_rng(number).bytes(50))
        files.append((path.name, path))
    assert tier.share("space", files) == AT_ONCE + 7
    names = [name for name, _ in files]
    found = dict(tier.fetch("space", [*names, "f" * 64]))
    assert found == {name: path.read_bytes() for name, path in files}
    assert [len(some) for some in batched(range(AT_ONCE + 7))] == [AT_ONCE, 7]


def test_a_workspace_without_store_has_no_tier(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CSFLOW_STORE", raising=False)
    assert feature_store(Workspace(tmp_path)).tier is None
