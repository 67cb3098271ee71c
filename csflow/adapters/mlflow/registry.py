"""MLflow registered models: one per line, ``csflow-LINE``, whose versions are detector directories.

A version is defined by code (:mod:`csflow.adapters.mlflow.pyfunc_model`) and carries the detector directory
as its artifact. What is known about it are its tags:

==================================== ==============================================================
``content_key``                      names data, configuration and code it was made from
``data_md5, data_digest, git_rev``   the data
``detector_digest``                  SHA-256 over the detector directory
``image_auroc (_low, _high)``,       on the test images of then
``pixel_auroc``
``threshold, alpha``                 what its decisions promise
``backbone, seed``                   how it was trained
``features_space, features_digest``  which features it was made from; the list is an artifact of its run
``model_key``                        the fitted model in the workspace
``decision, decision_reason``        of the gate; absent before it
==================================== ==============================================================

The alias ``champion`` names the version that should be served. The registered model's tag ``hold``
says that a person rolled back and that no retrain may replace the champion.
"""

from __future__ import annotations

import json
import re
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from csflow.adapters.mlflow.connection import client_of, quiet, refused, require_database, typed_errors
from csflow.adapters.mlflow.model_files import write_model
from csflow.errors import ConfigError, NotRegisteredError, RegistryError
from csflow.system.files import exclusive, new_directory, sha256_tree
from csflow.system.retry import database_is_locked, retried
from csflow.system.workspace import Workspace

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import LoggedModel
    from mlflow.entities.model_registry import ModelVersion, RegisteredModel
    from mlflow.store.artifact.artifact_repo import ArtifactRepository

CHAMPION = "champion"
LONGEST_TAG = 5000
_LINE_NAME = re.compile(r"[a-z0-9]([-a-z0-9]{0,48}[a-z0-9])?")


@dataclass(frozen=True)
class Version:
    """One version of a line's registered model.

    Attributes:
        line: The product line.
        version: 1 for the first.
        aliases: For instance ``("champion",)``.
        run_id: The MLflow run that made it.
        created: When it was registered, UTC.
    """

    line: str
    version: int
    run_id: str
    created: datetime
    aliases: tuple[str, ...] = ()
    tags: Mapping[str, str] = field(default_factory=dict)

    @property
    def is_champion(self) -> bool:
        """Whether it is the one to be served."""
        return CHAMPION in self.aliases

    @property
    def decision(self) -> str:
        """What the gate said: ``promoted``, ``kept_worse``, ``kept_insufficient``; empty before it."""
        return self.tags.get("decision", "")

    def number(self, tag: str) -> float | None:
        """A tag such as ``image_auroc`` as a number; ``None`` if the version has no such figure."""
        try:
            return float(self.tags[tag])
        except (KeyError, ValueError):
            return None


def model_name(line: str) -> str:
    """Name of a line's registered model.

    Raises:
        ConfigError: If ``line`` cannot be the name of a line.

    >>> model_name("tiles")
    'csflow-tiles'
    """
    if not _LINE_NAME.fullmatch(line):
        raise ConfigError(
            f"{line!r} cannot be a line: names are up to 50 lower-case letters, digits and inner hyphens. "
            "See csflow lines."
        )
    return f"csflow-{line}"


@typed_errors
@retried(database_is_locked)
def register(
    workspace: Workspace, detector: Path, *, line: str, run_id: str, tags: Mapping[str, object], example: bytes
) -> int:
    """Register a detector directory as the next version of its line.

    Registering again what has the same tag ``content_key`` returns the version that is there.

    Args:
        workspace: Where things are.
        detector: The detector directory.
        line: The product line.
        run_id: The MLflow run that made the detector.
        tags: Tags of the version, ``content_key`` among them; those that are ``None`` are left out.
        example: One encoded image, kept with the model as its input example.

    Returns:
        The number of the version.

    Raises:
        RegistryError: If there is no registry, or it refuses.
    """
    require_database(workspace)
    client, name, texts = client_of(workspace), model_name(line), _texts(tags)
    from mlflow.exceptions import MlflowException

    with exclusive(workspace.root / ".registry.lock"), quiet():
        try:
            _ensure_model(client, name)
            for version in versions(workspace, line):
                if version.tags.get("content_key") == texts["content_key"]:
                    return version.version
            stored = _store(client, detector, run_id, example)
            # The place itself: MLflow would look "models:/ID" up in its process-wide registry.
            made = client.create_model_version(
                name, source=stored.artifact_location, run_id=run_id, tags=texts, model_id=stored.model_id
            )
            link = json.dumps([{"name": name, "version": made.version}])
            client.set_logged_model_tags(stored.model_id, {"mlflow.modelVersions": link})
        except MlflowException as error:
            raise refused(workspace, error) from error
    return int(made.version)


def versions(workspace: Workspace, line: str) -> list[Version]:
    """All versions of a line, newest first.

    Raises:
        NotRegisteredError: If there is no registry yet, or the line has no registered model in it.
        RegistryError: If the registry cannot be read.
    """
    name = model_name(line)
    model = _registered_model(workspace, line)
    from mlflow.exceptions import MlflowException

    try:
        found = client_of(workspace).search_model_versions(f"name = '{name}'")
    except MlflowException as error:
        raise refused(workspace, error) from error
    return sorted((_version(line, made, model.aliases) for made in found), key=lambda v: v.version, reverse=True)


@typed_errors
def lines(workspace: Workspace) -> list[str]:
    """Names of all lines with a registered model; none without a registry."""
    try:
        require_database(workspace)
    except NotRegisteredError:
        return []
    client, names, token = client_of(workspace), [], None
    while True:
        page = client.search_registered_models("name LIKE 'csflow-%'", max_results=100, page_token=token)
        names += [model.name.removeprefix("csflow-") for model in page]
        token = page.token
        if not token:
            return sorted(names)


@typed_errors
def stored_bytes(workspace: Workspace, version: Version) -> int:
    """Size of all files of a version in MLflow's artifact store."""
    waiting, total = [""], 0
    store = _artifacts(workspace, version)
    while waiting:
        for file in store.list_artifacts(waiting.pop() or None):
            if file.is_dir:
                waiting.append(file.path)
            else:
                total += file.file_size or 0
    return total


@typed_errors
@retried(database_is_locked)
def delete_version(workspace: Workspace, version: Version) -> None:
    """Delete a version, then its files.

    Raises:
        RegistryError: If an alias names it, or the registry refuses.
    """
    present = find_version(workspace, version.line, version.version)
    if present.aliases:
        raise RegistryError(
            f"{model_name(version.line)} version {version.version} is not deleted: the alias "
            f"{', '.join(present.aliases)} names it. Move the alias first."
        )
    client, store = client_of(workspace), _artifacts(workspace, version)
    model_id = client.get_model_version(model_name(version.line), str(version.version)).model_id
    client.delete_model_version(model_name(version.line), str(version.version))
    if model_id:
        client.delete_logged_model(model_id)
    store.delete_artifacts()  # type: ignore[no-untyped-call]


def find_version(workspace: Workspace, line: str, which: str | int = CHAMPION) -> Version:
    """A version by number (``3`` or ``"3"``) or alias (``"champion"``).

    Raises:
        NotRegisteredError: If the line has no registered model.
        RegistryError: If that has no such version; the ones it has are named.
    """
    known = versions(workspace, line)
    for version in known:
        if str(which) in {str(version.version), *version.aliases}:
            return version
    numbers = ", ".join(str(version.version) for version in reversed(known)) or "none"
    if which == CHAMPION:
        raise RegistryError(
            f"{model_name(line)} has no champion; none of its versions ({numbers}) was promoted. "
            f"Ask why with csflow why {line}@VERSION, or choose one yourself with csflow promote {line}@VERSION."
        )
    aliases = sorted({alias for version in known for alias in version.aliases})
    raise RegistryError(
        f"{model_name(line)} has no version or alias {str(which)!r}. Versions: {numbers}. "
        f"Aliases: {', '.join(aliases) or 'none'}."
    )


def find_champion(workspace: Workspace, line: str) -> Version | None:
    """The version that should be served; ``None`` if the line has none, or no registered model yet."""
    try:
        return next((version for version in versions(workspace, line) if version.is_champion), None)
    except NotRegisteredError:
        return None


@typed_errors
@retried(database_is_locked)
def set_alias(workspace: Workspace, line: str, version: int, alias: str = CHAMPION) -> None:
    """Let ``alias`` name this version instead of the one it named before.

    Raises:
        RegistryError: If there is no such version.
    """
    find_version(workspace, line, version)
    client_of(workspace).set_registered_model_alias(model_name(line), alias, str(version))


@typed_errors
@retried(database_is_locked)
def set_version_tags(workspace: Workspace, line: str, version: int, tags: Mapping[str, object]) -> None:
    """Add or change tags of a version; those that are ``None`` are left alone."""
    client = client_of(workspace)
    for key, value in _texts(tags).items():
        client.set_model_version_tag(model_name(line), str(version), key, value)


def get_hold(workspace: Workspace, line: str) -> dict[str, str] | None:
    """What a person noted when rolling back; ``None`` if retrains may promote."""
    try:
        text = _registered_model(workspace, line).tags.get("hold")
    except NotRegisteredError:
        return None
    return json.loads(text) if text else None


@typed_errors
@retried(database_is_locked)
def set_hold(workspace: Workspace, line: str, hold: Mapping[str, str] | None) -> None:
    """Hold the champion against retrains, or with ``None`` let go.

    Raises:
        NotRegisteredError: If the line has no registered model.
    """
    model = _registered_model(workspace, line)
    if hold is not None:
        client_of(workspace).set_registered_model_tag(model.name, "hold", json.dumps(dict(hold)))
    elif "hold" in model.tags:
        client_of(workspace).delete_registered_model_tag(model.name, "hold")


def download_detector(workspace: Workspace, line: str, which: str | int, target_parent: Path) -> Path:
    """Copy a version's detector directory to ``target_parent/DIGEST``; a sound copy there is reused.

    Raises:
        RegistryError: If there is no such version, or its files are missing or not those registered.
    """
    version = find_version(workspace, line, which)
    expected = version.tags.get("detector_digest", "")
    if expected and (target_parent / expected).is_dir():
        if sha256_tree(target_parent / expected) == expected:
            return target_parent / expected
        shutil.rmtree(target_parent / expected)
    target_parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target_parent, prefix=".download.") as scratch:
        fetched = _fetch(workspace, version, Path(scratch))
        digest = sha256_tree(fetched)
        if expected and digest != expected:
            raise RegistryError(
                f"The stored detector of {model_name(line)} version {version.version} has the digest {digest}, "
                f"registered was {expected}: its files were changed or lost. Train again with --force."
            )
        with new_directory(target_parent / digest) as target:
            shutil.copytree(fetched, target, dirs_exist_ok=True)
    return target_parent / digest


def _fetch(workspace: Workspace, version: Version, scratch: Path) -> Path:
    """Download the detector into ``scratch``: without a target MLflow would hand out its own store."""
    from mlflow.artifacts import download_artifacts
    from mlflow.exceptions import MlflowException

    uri = workspace.tracking_uri
    try:
        # The place itself: MLflow would look "models:/NAME" up in its process-wide registry.
        place = client_of(workspace).get_model_version_download_uri(model_name(version.line), str(version.version))
        root = Path(download_artifacts(f"{place}/artifacts", dst_path=str(scratch), tracking_uri=uri))
        return next(path for path in root.iterdir() if path.is_dir())
    except (MlflowException, OSError, StopIteration) as error:
        raise NotRegisteredError(
            f"The files of {model_name(version.line)} version {version.version} cannot be read from {uri}: {error}. "
            "Restore MLflow's artifact folder, or train again with --force."
        ) from error


def _store(client: MlflowClient, detector: Path, run_id: str, example: bytes) -> LoggedModel:
    """Write the MLflow model into the run's artifact store."""
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


def _registered_model(workspace: Workspace, line: str) -> RegisteredModel:
    name = model_name(line)
    require_database(workspace)
    client = client_of(workspace)
    from mlflow.exceptions import MlflowException

    try:
        return client.get_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise refused(workspace, error) from error
        raise NotRegisteredError(
            f"Line {line!r} has no registered model yet: there is no {name} at {workspace.tracking_uri}. "
            f"Run its pipeline first: python -m pipelines run lines/{line}.yaml"
        ) from error


def _artifacts(workspace: Workspace, version: Version) -> ArtifactRepository:
    """Where the files of a version lie."""
    place = client_of(workspace).get_model_version_download_uri(model_name(version.line), str(version.version))
    from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

    return get_artifact_repository(place, tracking_uri=workspace.tracking_uri)


def _ensure_model(client: MlflowClient, name: str) -> None:
    from mlflow.exceptions import MlflowException

    try:
        client.get_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        try:
            client.create_registered_model(name)
        except MlflowException as other:
            if other.error_code != "RESOURCE_ALREADY_EXISTS":  # by a run of the line on another machine
                raise


def _version(line: str, made: ModelVersion, aliases: Mapping[str, str | int]) -> Version:
    number = int(made.version)  # text when it comes from a server
    return Version(
        line=line,
        version=number,
        run_id=made.run_id or "",
        created=datetime.fromtimestamp(made.creation_timestamp / 1000, UTC),
        aliases=tuple(sorted(alias for alias, of in aliases.items() if int(of) == number)),
        tags=dict(made.tags),
    )


def _texts(tags: Mapping[str, object]) -> dict[str, str]:
    return {key: str(value)[:LONGEST_TAG] for key, value in tags.items() if value is not None}
