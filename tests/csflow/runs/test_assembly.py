"""Which images a threshold is taken from."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from csflow.config import RolesConfig
from csflow.data.manifest import build_manifest
from csflow.runs.assembly import one_of_each_group


def test_pictures_of_one_part_count_once(tmp_path: Path) -> None:
    folder = tmp_path / "train/good"
    folder.mkdir(parents=True)
    rows = ["path,group"]
    for number in range(12):
        Image.fromarray(np.full((8, 8, 3), number, np.uint8)).save(folder / f"{number:02d}.png")
        if number < 9:
            rows.append(f"train/good/{number:02d}.png,part-{number // 3}")
    (tmp_path / "groups.csv").write_text("\n".join(rows))
    manifest = build_manifest(tmp_path, line="bolts", roles=RolesConfig())
    kept = one_of_each_group(manifest).frame
    assert sorted(kept["group"]) == ["", "", "", "part-0", "part-1", "part-2"]
    assert list(kept["path"]) == sorted(kept["path"]), "the order of the manifest"
    for group, same in manifest.frame[manifest.frame["group"] != ""].groupby("group"):
        (chosen,) = kept[kept["group"] == group]["sha256"]
        assert chosen == same["sha256"].min()
