"""Synthetic defects are pasted once, and again if the pictures were damaged."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from csflow.ablation.held_out import SUMS, paste_on
from csflow.data.manifest import Manifest
from csflow.system.files import sha256_file
from tests.damage import damages, inflict, remove


@pytest.fixture
def good(tmp_path: Path) -> Manifest:
    root = tmp_path / "images"
    root.mkdir()
    for index in range(2):
        values = np.random.default_rng(index).integers(0, 256, (64, 64, 3), dtype=np.uint8)
        Image.fromarray(values).save(root / f"{index}.png")
    names = ["0.png", "1.png"]
    return Manifest(pd.DataFrame({"path": names, "sha256": [sha256_file(root / name) for name in names]}), root)


def test_damaged_pictures_are_pasted_again(good: Manifest, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = paste_on(good, tmp_path / "pasted")
    expected = made.frame.to_dict()
    before = [file.stat().st_ino for file in made.files]
    assert paste_on(good, tmp_path / "pasted").frame.to_dict() == expected
    assert [file.stat().st_ino for file in made.files] == before, "made once"
    for file in (made.files[0], made.root / SUMS):
        for damage, content in damages(file.read_bytes(), flips=4):
            inflict(file, content)
            capsys.readouterr()
            again = paste_on(good, tmp_path / "pasted")
            assert again.frame.to_dict() == expected, damage
            assert [sha256_file(each) for each in again.files] == list(again.frame["sha256"]), damage
            assert "Put aside as" in capsys.readouterr().err, damage


@pytest.mark.parametrize("name", ["picture", SUMS])
def test_an_incomplete_set_is_made_again(good: Manifest, tmp_path: Path, name: str) -> None:
    """An older csflow wrote no checksums."""
    made = paste_on(good, tmp_path / "pasted")
    remove(made.files[1] if name == "picture" else made.root / SUMS)
    again = paste_on(good, tmp_path / "pasted")
    assert again.frame.to_dict() == made.frame.to_dict()
    assert all(file.exists() for file in again.files)
