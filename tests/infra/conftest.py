"""What the tests of infra/ share: the checks beside the manifests, and the rendered overlays."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
KUBERNETES = ROOT / "infra" / "kubernetes"
OVERLAYS = ("air-gapped", "cpu", "gpu", "monitoring")

sys.path.insert(0, str(KUBERNETES))


def kustomize(folder: Path) -> str:
    """What ``kubectl kustomize`` makes of a folder."""
    kubectl = shutil.which("kubectl")
    if kubectl is None:
        pytest.skip("needs kubectl to render the manifests (kubectl kustomize; no cluster)")
    done = subprocess.run([kubectl, "kustomize", str(folder)], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="session")
def render() -> Callable[[Path], str]:
    """What ``kubectl kustomize`` makes of a folder."""
    return kustomize


@pytest.fixture(scope="session")
def overlays() -> dict[str, str]:
    """The text each overlay renders to."""
    return {name: kustomize(KUBERNETES / "overlays" / name) for name in OVERLAYS}


@pytest.fixture(scope="session")
def line() -> str:
    """The InferenceService of a line."""
    return kustomize(KUBERNETES / "line")


@pytest.fixture(scope="session")
def schemas() -> Path:
    """KServe's own descriptions of its kinds, which are not part of this project."""
    folder = Path(os.environ.get("CSFLOW_SCHEMAS", ROOT.parent / "shared" / "schemas"))
    if not (folder / "serving.kserve.io_inferenceservices.yaml").is_file():
        pytest.skip(f"needs KServe's CRDs, which are not in {folder}: set CSFLOW_SCHEMAS to the folder that has them")
    return folder
