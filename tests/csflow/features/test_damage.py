"""Damage in a feature space: an extraction makes good what is damaged, with the same bits, and keeps the rest."""

from __future__ import annotations

from pathlib import Path

import pytest

from csflow.data.manifest import Manifest
from csflow.features.extraction import TRUNK
from csflow.features.store import FeatureStore
from tests.csflow.features.toy_features import FEATURES, entry, shas, toy
from tests.damage import damages, inflict, remove


def test_a_damaged_entry_is_put_aside_and_computed_again(
    store: FeatureStore, images: Manifest, capsys: pytest.CaptureFixture[str]
) -> None:
    cached = store.extract(images, FEATURES, toy())
    file = entry(cached, shas(images)[3])
    sound = file.read_bytes()
    for number, (damage, content) in enumerate(damages(sound, flips=5), start=1):
        inflict(file, content)
        capsys.readouterr()
        assert store.plan(images, FEATURES, toy()).missing.keys() == {file.name}, damage
        assert store.extract(images, FEATURES, toy()).extracted == 1, damage
        assert file.read_bytes() == sound, damage
        assert f"Put aside as {file.name}.damaged" in capsys.readouterr().err, damage
        assert len(list(file.parent.glob("*.damaged*"))) == number


def test_an_entry_that_another_process_wrote_meanwhile_stays(store: FeatureStore, images: Manifest) -> None:
    from csflow.features.entries import FeatureSpace

    cached = store.extract(images, FEATURES, toy())
    space, sha = FeatureSpace(cached.store / cached.space, cached.shapes), shas(images)[0]
    space.write(sha, space.map(sha).copy())
    assert not list(space.folder.rglob("*.damaged*"))


def test_a_damaged_graph_of_the_trunk_is_put_aside_and_written_again(
    store: FeatureStore, images: Manifest, capsys: pytest.CaptureFixture[str]
) -> None:
    """A changed weight may alter features by less than the comparison with torch notices."""
    cached = store.extract(images, FEATURES, toy())
    graph = cached.store / cached.space / TRUNK
    file = entry(cached, shas(images)[0])
    sound, expected = graph.read_bytes(), file.read_bytes()
    for damage, content in damages(sound):
        inflict(graph, content)
        remove(file)
        capsys.readouterr()
        store.extract(images, FEATURES, toy())
        assert file.read_bytes() == expected, damage
        assert graph.read_bytes() == sound, damage
        assert "trunk.onnx" in capsys.readouterr().err, damage


def test_a_graph_of_an_older_csflow_is_written_again(store: FeatureStore, images: Manifest) -> None:
    cached = store.extract(images, FEATURES, toy())
    graph: Path = cached.store / cached.space / TRUNK
    sound = graph.read_bytes()
    inflict(graph, sound.replace(b"csflow-sha256:", b"csflow-sha255:"))
    remove(entry(cached, shas(images)[0]))
    store.extract(images, FEATURES, toy())
    assert graph.read_bytes() == sound
