"""The demo data travels with the repository: a fresh, shallow, offline clone can pull what ``data.dvc`` names."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml

from csflow.config import RolesConfig, load_line
from csflow.data.manifest import build_manifest
from csflow.synthetic import DEMO_LINES

ROOT = Path(__file__).resolve().parent.parent
MAX_REMOTE_BYTES = 4_000_000


def recorded() -> dict[str, object]:
    """The entry of ``data.dvc``."""
    (out,) = yaml.safe_load((ROOT / "data.dvc").read_text())["outs"]
    return dict(out)


def remote_object(md5: str) -> Path:
    return ROOT / "dvc-remote" / "files" / "md5" / md5[:2] / md5[2:]


def test_the_remote_is_whole_undamaged_and_small() -> None:
    md5 = str(recorded()["md5"])
    listing = yaml.safe_load(remote_object(md5).read_text())
    assert len(listing) == recorded()["nfiles"]
    objects = {md5} | {entry["md5"] for entry in listing}
    stored = [path for path in (ROOT / "dvc-remote").rglob("*") if path.is_file()]
    assert {path.parent.name + path.name for path in stored} == objects, "missing or superfluous objects"
    for path in stored:
        content = path.read_bytes()
        assert hashlib.md5(content, usedforsecurity=False).hexdigest() == (path.parent.name + path.name)[:32]
    assert sum(path.stat().st_size for path in stored) <= MAX_REMOTE_BYTES


def test_the_remote_is_found_from_any_clone_and_its_content_is_verified() -> None:
    config = (ROOT / ".dvc" / "config").read_text()
    assert "url = ../dvc-remote" in config
    assert "verify = true" in config
    assert "analytics = false" in config


@pytest.mark.parametrize("name", sorted(DEMO_LINES))
def test_each_demo_line_has_a_yaml_with_enough_images_to_calibrate(name: str) -> None:
    line = load_line(ROOT / "lines" / f"{name}.yaml")
    assert (line.line, line.data.path) == (name, f"data/{name}")
    assert Path(line.data.repo) == ROOT
    assert line.calibration != "none"
    held_out = DEMO_LINES[name].train * line.roles.calibrate
    assert held_out / 2 >= 1 / line.calibration.alpha - 1


@pytest.fixture(scope="module")
def pulled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``data/`` of a shallow clone, pulled without a network, a home folder or this checkout's cache."""
    base = tmp_path_factory.mktemp("clone")
    clone = base / "csflow"
    environment = {
        "PATH": os.environ["PATH"], "HOME": str(base / "nobody"), "DVC_NO_ANALYTICS": "1",
        "DVC_SITE_CACHE_DIR": str(base / "site"), "http_proxy": "http://127.0.0.1:9", "https_proxy": "http://127.0.0.1:9",
    }  # fmt: skip
    for command in (
        ["git", "clone", "--quiet", "--depth", "1", f"file://{ROOT}", str(clone)],
        [sys.executable, "-m", "dvc", "--cd", str(clone), "pull", "--quiet"],
    ):
        subprocess.run(command, env=environment, check=True, timeout=300)
    return clone / "data"


@pytest.mark.slow
def test_a_fresh_clone_pulls_what_is_recorded(pulled: Path) -> None:
    files = {path.relative_to(pulled).as_posix(): path for path in pulled.rglob("*") if path.is_file()}
    listing = yaml.safe_load(remote_object(str(recorded()["md5"])).read_text())
    assert {entry["relpath"]: entry["md5"] for entry in listing} == {
        name: hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest() for name, path in files.items()
    }


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(DEMO_LINES))
def test_each_demo_line_passes_its_own_data_gate(pulled: Path, name: str) -> None:
    from csflow.adapters.data_quality import run_data_gate

    line = load_line(ROOT / "lines" / f"{name}.yaml")
    report = run_data_gate(build_manifest(pulled / name, line=name, roles=line.roles), line.quality)
    assert report.success, report.explanation(name)
    assert not report.warnings
    assert report.statistics["masks"] == report.statistics["defective images in test"]


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(DEMO_LINES))
def test_a_pooled_nearest_neighbour_does_not_solve_the_demo(pulled: Path, name: str) -> None:
    """The nearest training image by mean features at 256 px: better than chance, far from perfect."""
    import torch

    from csflow.data.images import read_image, to_pyramid_inputs
    from csflow.features.backbone import load_backbone
    from csflow.metrics import image_auroc

    features = load_line(ROOT / "lines" / f"{name}.yaml").features.model_copy(update={"scales": 1})
    backbone = load_backbone(features)
    manifest = build_manifest(pulled / name, line=name, roles=RolesConfig())

    def pooled(split: str) -> torch.Tensor:
        images = [read_image(file) for file in manifest.rows(split=split).files]
        inputs = [to_pyramid_inputs(image, features, backbone.mean, backbone.std)[0] for image in images]
        return torch.cat([backbone([torch.from_numpy(image)[None]])[0] for image in inputs]).mean(dim=(2, 3))

    distance = torch.cdist(pooled("test"), pooled("train")).min(dim=1).values.numpy()
    defective = (manifest.rows(split="test").frame["label"] == "defective").to_numpy()
    assert 0.65 < image_auroc(np.asarray(distance), defective) < 0.96
