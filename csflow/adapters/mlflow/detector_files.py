"""Move detector directories into and out of MLflow's artifact store."""

from __future__ import annotations

import re
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from csflow.adapters.mlflow.connection import client_of
from csflow.adapters.mlflow.model_files import write_model
from csflow.adapters.mlflow.versions import Version, model_name
from csflow.errors import LostFilesError
from csflow.system.files import new_directory, scratch_directory, sha256_tree
from csflow.system.progress import say
from csflow.system.seals import put_aside
from csflow.system.workspace import Workspace

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import LoggedModel
    from mlflow.entities.model_registry import ModelVersion
    from mlflow.store.artifact.artifact_repo import ArtifactRepository

_MODEL_ID = re.compile(r"\b(m-[0-9a-f]{32})\b")


def download(workspace: Workspace, version: Version, target_parent: Path) -> Path:
    """Copy a version's detector directory to ``target_parent/DIGEST``, unless there is an undamaged copy already.

    A damaged copy is put aside when the version's own files have arrived, and is left as it is if they do not.

    Raises:
        LostFilesError: If the version's files are missing or are not those registered.
    """
    expected = version.tags.get("detector_digest", "")
    if expected and is_intact(target_parent / expected, expected):
        return target_parent / expected
    target_parent.mkdir(parents=True, exist_ok=True)
    with scratch_directory(target_parent, "download") as scratch:
        fetched = _fetch(workspace, version, scratch)
        digest = sha256_tree(fetched)
        if expected and digest != expected:
            raise LostFilesError(
                f"The stored detector of {model_name(version.line)} version {version.version} has the digest {digest}, "
                f"expected {expected}: its files were changed or lost. Restore MLflow's artifact folder."
            )
        return place(fetched, target_parent / digest)


def is_intact(folder: Path, digest: str) -> bool:
    """Return True if a detector directory is there and has a digest."""
    try:
        return folder.is_dir() and sha256_tree(folder) == digest
    except OSError:
        return False


def place(fetched: Path, target: Path) -> Path:
    """Move a complete detector directory to its final name; a damaged one that has the name is put aside.

    Returns:
        The final name.
    """
    with new_directory(target) as unfinished:
        shutil.copytree(fetched, unfinished, dirs_exist_ok=True)
        put_aside(target, f"{target} is damaged: its digest is not its name.")
    return target


def upload(client: MlflowClient, detector: Path, run_id: str, example: bytes) -> LoggedModel:
    """Write a detector directory as an MLflow model into the run's artifact store."""
    from mlflow.entities import LoggedModelOutput

    experiment = client.get_run(run_id).info.experiment_id
    stored = client.create_logged_model(experiment, name="model", source_run_id=run_id)
    with tempfile.TemporaryDirectory(prefix="csflow-register.") as scratch:
        folder = Path(scratch) / "model"
        write_model(folder, detector, run_id=run_id, model_id=stored.model_id, example=example)
        client.log_model_artifacts(stored.model_id, str(folder))
    client.finalize_logged_model(stored.model_id, "READY")
    client.log_outputs(run_id, [LoggedModelOutput(stored.model_id, step=0)])
    return stored


def restore(workspace: Workspace, version: Version, detector: Path, example: bytes) -> None:
    """Store the files of a version again if they are lost, and the detector at hand is the one that was registered.

    Args:
        workspace: Names the MLflow database or server.
        version: The version.
        detector: The detector directory.
        example: One encoded image, kept with the model as its input example.
    """
    digest = version.tags.get("detector_digest")
    if sha256_tree(detector) != digest:
        return
    with tempfile.TemporaryDirectory(prefix="csflow-register.") as scratch:
        try:
            if sha256_tree(_fetch(workspace, version, Path(scratch))) == digest:
                return
        except LostFilesError as error:
            say(f"register: {error} They are stored again.")
        made = client_of(workspace).get_model_version(model_name(version.line), str(version.version))
        folder = Path(scratch) / "model"
        write_model(folder, detector, run_id=version.run_id, model_id=model_id_of(made) or "", example=example)
        artifacts_of(workspace, version).log_artifacts(str(folder))  # type: ignore[no-untyped-call]


def model_id_of(made: ModelVersion) -> str | None:
    """Return the id of the logged model that a version was made of.

    MLflow's database does not keep it, and answers with ``None``; but the files lie in a folder of that name.
    """
    found = _MODEL_ID.search(made.source or "")
    return made.model_id or (found[1] if found else None)


def stored_bytes(workspace: Workspace, version: Version) -> int:
    """Return the size of all files of a version in MLflow's artifact store."""
    waiting, total = [""], 0
    store = artifacts_of(workspace, version)
    while waiting:
        for file in store.list_artifacts(waiting.pop() or None):
            if file.is_dir:
                waiting.append(file.path)
            else:
                total += file.file_size or 0
    return total


def artifacts_of(workspace: Workspace, version: Version) -> ArtifactRepository:
    """Return the artifact repository that holds the files of a version."""
    location = client_of(workspace).get_model_version_download_uri(model_name(version.line), str(version.version))
    from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

    return get_artifact_repository(location, tracking_uri=workspace.tracking_uri)


def _fetch(workspace: Workspace, version: Version, scratch: Path) -> Path:
    """Download the detector into ``scratch``; without a target MLflow would return a path in its own store."""
    from mlflow.artifacts import download_artifacts

    uri = workspace.tracking_uri
    try:
        # The location itself, because MLflow would look up "models:/NAME" in its process-wide registry.
        location = client_of(workspace).get_model_version_download_uri(model_name(version.line), str(version.version))
        root = Path(download_artifacts(f"{location}/artifacts", dst_path=str(scratch), tracking_uri=uri))
        return next(path for path in root.iterdir() if path.is_dir())
    # Every kind of artifact store has exceptions of its own.
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise LostFilesError(
            f"The files of {model_name(version.line)} version {version.version} cannot be read from {uri}: {reason}. "
            "Restore MLflow's artifact folder."
        ) from error
