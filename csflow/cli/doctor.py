"""``csflow doctor``: show what this machine has, what is missing, and what to do about it."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from csflow.cli.options import JsonOption, print_json
from csflow.config import line_names, lines_folder, load_line
from csflow.errors import CsflowError
from csflow.system.cores import cores_in_reach, cpu_quota
from csflow.system.project import PROJECT, find_project
from csflow.system.workspace import Workspace

_PACKAGES = ("torch", "timm", "mlflow", "kfp", "dvc", "great-expectations", "kserve", "boto3")
_FREE_GIGABYTES = 2.0
_BFLOAT16_SECONDS = 2.0
"""Time after which the check of bfloat16 begins no further convolution."""


def doctor(as_json: JsonOption = False) -> None:
    """Check the environment: interpreter, packages, git, disk, CPU or GPU, weights, project, lines, registry.

    Exit code 1 if a check fails; each failure says what to do.
    """
    from csflow.system.tables import print_table

    found: dict[str, str] = {}
    failures: list[str] = []
    for name, check in _CHECKS.items():
        try:
            found[name] = check()
        except CsflowError as error:
            failures.append(name)
            found[name] = str(error)
    if as_json:
        print_json([{"check": name, "ok": name not in failures, "found": text} for name, text in found.items()])
    else:
        rows = [("problem" if name in failures else "ok", name, text) for name, text in found.items()]
        styles = ["red" if name in failures else "" for name in found]
        print_table(("", "check", "found"), rows, title="csflow doctor", styles=styles)
    if failures:
        raise CsflowError(f"{len(failures)} of {len(_CHECKS)} checks failed: {', '.join(failures)}.")


def _python() -> str:
    if not (3, 11) <= sys.version_info[:2] <= (3, 13):
        raise CsflowError(
            f"Python {platform.python_version()}; csflow needs 3.11 to 3.13: make setup PYTHON=python3.11"
        )
    return f"Python {platform.python_version()} on {platform.machine()}"


def _packages() -> str:
    found, missing = [], []
    for name in _PACKAGES:
        try:
            found.append(f"{name} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            missing.append(name)
    if missing:
        raise CsflowError(f"Missing: {', '.join(missing)}. A serving machine needs only kserve; else run: make setup")
    return ", ".join(found)


def _git() -> str:
    if shutil.which("git") is None:
        raise CsflowError("git is not on the PATH; data revisions cannot be read. Install git.")
    return subprocess.run(["git", "--version"], capture_output=True, text=True, check=True).stdout.strip()


def _disk() -> str:
    root = Workspace.from_environment().root
    existing = next(folder for folder in (root, *root.parents) if folder.exists())
    free = shutil.disk_usage(existing).free / 1e9
    if free < _FREE_GIGABYTES:
        raise CsflowError(
            f"{free:.1f} GB free at {existing}, expected {_FREE_GIGABYTES:g} GB. Free some or set CSFLOW_HOME."
        )
    return f"{free:.0f} GB free at {existing}"


def _device() -> str:
    import torch

    from csflow.config import TrainingConfig
    from csflow.flow.device import choose_device, choose_precision
    from csflow.flow.gradient_check import require_sound_gradients

    training = TrainingConfig()
    device = choose_device(training)
    require_sound_gradients(device)
    quota = cpu_quota()
    allowed = "" if quota is None else f", a CPU quota of {quota:g}"
    return (
        f"trains on {device} in {choose_precision(training, device)}; "
        f"{torch.get_num_threads()} threads ({cores_in_reach()} cores{allowed})"
    )


def _bfloat16() -> str:
    from csflow.config import TrainingConfig
    from csflow.flow.bfloat16_check import find_faults, most_telling_shapes
    from csflow.flow.device import choose_device, choose_precision

    shapes = list(most_telling_shapes())
    faults, done = find_faults(shapes, seconds=_BFLOAT16_SECONDS)
    if not faults:
        return f"{done} of {len(shapes)} convolutions on small maps were tried on this CPU: all agree with float32"
    found = (
        f"{len(faults)} of {done} convolutions on small maps go wrong in bfloat16 on this CPU, the first with "
        f"{faults[0].shape}: {faults[0].what}. A flow that is trained so on the CPU cannot be trusted: set "
        "training.precision: float32."
    )
    training = TrainingConfig()
    device = choose_device(training)
    if device.type == "cpu" and choose_precision(training, device) == "bfloat16":
        raise CsflowError(found)
    return f"{found} (This machine does not use it unless a line asks for it.)"


def _weights() -> str:
    from csflow.config import FeatureConfig
    from csflow.features.weights import weights_digest

    return f"embedded backbone: {weights_digest(FeatureConfig())}"


def _project() -> str:
    folder = find_project()
    if folder is None:
        return f"none from {Path.cwd()} upwards: what needs one takes csflow --project DIR, or {PROJECT}"
    return str(folder)


def _lines() -> str:
    names = line_names()
    if not names and find_project() is None and "CSFLOW_LINES" not in os.environ:
        return "none: there is no project here"
    if not names:
        raise CsflowError(f"No YAML files in {lines_folder()}. Add one, or correct {PROJECT} or CSFLOW_LINES.")
    for name in names:
        load_line(name)
    return ", ".join(names)


def _registry() -> str:
    from csflow.adapters.mlflow.connection import check_registry

    return check_registry(Workspace.from_environment())


_CHECKS: dict[str, Callable[[], str]] = {
    "interpreter": _python,
    "packages": _packages,
    "git": _git,
    "disk": _disk,
    "device": _device,
    "bfloat16": _bfloat16,
    "weights": _weights,
    "project": _project,
    "lines": _lines,
    "tracking and registry": _registry,
}
