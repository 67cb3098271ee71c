"""Keep the detectors of a line as versions of an MLflow registered model named ``csflow-LINE``.

A version is defined by code (:mod:`csflow.adapters.mlflow.pyfunc_model`) and carries the detector directory as its
artifact. :mod:`csflow.adapters.mlflow.versions` lists the tags of a version.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from csflow.adapters.mlflow import detector_files
from csflow.adapters.mlflow.backups import back_up
from csflow.adapters.mlflow.connection import client_of, typed_errors
from csflow.adapters.mlflow.database import is_blank, lock_of, quiet, require_database
from csflow.adapters.mlflow.page import read_tags, version_tags
from csflow.adapters.mlflow.traces import published_lines, way_back
from csflow.adapters.mlflow.versions import CHALLENGER, CHAMPION, LEFT_ALONE, LONGEST_TAG, Version, model_name
from csflow.errors import CsflowError, NotRegisteredError, RegistryError
from csflow.system.files import exclusive
from csflow.system.progress import say
from csflow.system.retry import database_is_locked, retried
from csflow.system.workspace import Workspace

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion, RegisteredModel


@dataclass(frozen=True)
class Registry:
    """The registered models of a workspace's MLflow, one a line.

    Attributes:
        workspace: Names the MLflow database or server.
    """

    workspace: Workspace

    @typed_errors
    @retried(database_is_locked)
    def register(self, detector: Path, *, line: str, run_id: str, tags: Mapping[str, object], example: bytes) -> int:
        """Register a detector directory as the next version of its line.

        If a version with the same tag ``content_key`` exists already, its number is returned; if its files are lost,
        they are stored again.

        Args:
            detector: The detector directory.
            line: The product line.
            run_id: The MLflow run that made the detector.
            tags: Tags of the version, including ``content_key``; those that are ``None`` are left out.
            example: One encoded image, kept with the model as its input example.

        Returns:
            The number of the version.

        Raises:
            RegistryError: If there is no registry, or it refuses.
        """
        require_database(self.workspace)
        client, name, texts = client_of(self.workspace), model_name(line), _texts(tags)
        with exclusive(self.workspace.root / ".registry.lock"), quiet():
            _ensure_model(client, name)
            known = self.versions(line)
            for version in known:
                if version.tags.get("content_key") == texts["content_key"]:
                    detector_files.restore(self.workspace, version, detector, example)
                    if version is known[0] and not version.decision:  # whoever registered it may have been killed here
                        _announce(client, client.get_model_version(name, str(version.version)))
                    return version.version
            stored = detector_files.upload(client, detector, run_id, example)
            # The location itself, because MLflow would look up "models:/ID" in its process-wide registry.
            made = client.create_model_version(
                name,
                source=stored.artifact_location,
                run_id=run_id,
                tags=version_tags(texts, {}),
                model_id=stored.model_id,
            )
            _announce(client, made)
        return int(made.version)

    @typed_errors
    def versions(self, line: str) -> list[Version]:
        """List all versions of a line, newest first.

        Raises:
            NotRegisteredError: If there is no registry yet, or the line has no registered model in it.
            RegistryError: If the registry cannot be read, or has lost the line.
        """
        model = self._registered_model(line)
        found = client_of(self.workspace).search_model_versions(f"name = '{model_name(line)}'")
        return sorted((_version(line, made, model.aliases) for made in found), key=lambda v: v.version, reverse=True)

    @typed_errors
    def lines(self) -> list[str]:
        """List the names of all lines with a registered model; without a registry the list is empty."""
        try:
            require_database(self.workspace)
        except NotRegisteredError:
            return []
        client, names, token = client_of(self.workspace), [], None
        while True:
            page = client.search_registered_models("name LIKE 'csflow-%'", max_results=100, page_token=token)
            names += [model.name.removeprefix("csflow-") for model in page]
            token = page.token
            if not token:
                return sorted(names)

    @typed_errors
    @retried(database_is_locked)
    def delete_version(self, version: Version) -> None:
        """Delete a version, then its files.

        Raises:
            RegistryError: If an alias names the version, or the registry refuses.
        """
        present = self.find_version(version.line, version.version)
        if keeping := present.keeping_aliases:
            raise RegistryError(
                f"{model_name(version.line)} version {version.version} is not deleted: the alias "
                f"{', '.join(keeping)} names it. Move the alias first."
            )
        client, store = client_of(self.workspace), detector_files.artifacts_of(self.workspace, version)
        made = client.get_model_version(model_name(version.line), str(version.version))
        model_id = detector_files.model_id_of(made)
        client.delete_model_version(model_name(version.line), str(version.version))
        if model_id:
            client.delete_logged_model(model_id)
        store.delete_artifacts()  # type: ignore[no-untyped-call]

    def find_version(self, line: str, which: str | int = CHAMPION) -> Version:
        """Find a version by its number (``3`` or ``"3"``) or alias (``"champion"``).

        Raises:
            NotRegisteredError: If the line has no registered model.
            RegistryError: If the model has no such version; the message names those that it has.
        """
        known = self.versions(line)
        for version in known:
            if str(which) in {str(version.version), *version.aliases}:
                return version
        numbers = ", ".join(str(version.version) for version in reversed(known)) or "none"
        former = [str(version.version) for version in reversed(known) if version.was_champion]
        if which == CHAMPION and former:
            raise RegistryError(
                f"{model_name(line)} has no champion although it had one: its version or alias was deleted. "
                f"Versions that were champion before: {', '.join(former)}. Make one of them champion: "
                f"csflow promote {line}@{former[-1]}"
            )
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

    def find_champion(self, line: str) -> Version | None:
        """Find the version that should be served; return ``None`` if there is none or no registered model yet."""
        try:
            return next((version for version in self.versions(line) if version.is_champion), None)
        except NotRegisteredError:
            return None

    @typed_errors
    @retried(database_is_locked)
    def set_alias(self, line: str, version: int, alias: str = CHAMPION) -> None:
        """Move an alias to a version; a challenger that becomes champion is challenger no more.

        Raises:
            RegistryError: If there is no such version.
        """
        chosen, client = self.find_version(line, version), client_of(self.workspace)
        client.set_registered_model_alias(model_name(line), alias, str(version))
        if alias == CHAMPION and CHALLENGER in chosen.aliases:
            client.delete_registered_model_alias(model_name(line), CHALLENGER)

    @typed_errors
    @retried(database_is_locked)
    def set_version_tags(self, line: str, version: int, tags: Mapping[str, object]) -> None:
        """Add or change tags of a version; those that are ``None`` are left alone."""
        client, name = client_of(self.workspace), model_name(line)
        before = client.get_model_version(name, str(version)).tags
        for key, value in version_tags(_texts(tags), before).items():
            client.set_model_version_tag(name, str(version), key, value)

    @typed_errors
    @retried(database_is_locked)
    def describe(self, line: str, *, version: int | None = None, text: str) -> None:
        """Set the description of a version, or of the line's registered model, in Markdown."""
        client, name = client_of(self.workspace), model_name(line)
        if version is None:
            client.update_registered_model(name, text)
        else:
            client.update_model_version(name, str(version), text)

    def left_alone(self, line: str) -> set[str]:
        """Return the digests of published detectors without a version that a person decided to leave alone."""
        known = line in self.lines()
        return set(json.loads(self._registered_model(line).tags.get(LEFT_ALONE, "[]"))) if known else set()

    @typed_errors
    @retried(database_is_locked)
    def leave_alone(self, line: str, digests: Collection[str]) -> None:
        """Note that published detectors have no version in this registry, and that a person knows it."""
        client = client_of(self.workspace)
        _ensure_model(client, model_name(line))
        known = sorted(self.left_alone(line) | set(digests))
        client.set_registered_model_tag(model_name(line), LEFT_ALONE, json.dumps(known))

    def back_up(self) -> None:
        """Back the local database up, once for each state of the registry; do nothing if there is a server.

        A backup that fails is reported and hinders nobody.
        """
        database = self.workspace.database
        if database is None or is_blank(database):
            return
        try:
            with exclusive(lock_of(database)):
                back_up(database)
        except CsflowError as error:
            say(f"no backup of the registry: {error}")

    def get_hold(self, line: str) -> dict[str, str] | None:
        """Return the note of the person who rolled back; ``None`` if retrains may promote."""
        try:
            text = self._registered_model(line).tags.get("hold")
        except NotRegisteredError:
            return None
        return json.loads(text) if text else None

    @typed_errors
    @retried(database_is_locked)
    def set_hold(self, line: str, hold: Mapping[str, str] | None) -> None:
        """Stop retrains from replacing the champion, or allow it again with ``None``.

        Raises:
            NotRegisteredError: If the line has no registered model.
        """
        model = self._registered_model(line)
        if hold is not None:
            client_of(self.workspace).set_registered_model_tag(model.name, "hold", json.dumps(dict(hold)))
        elif "hold" in model.tags:
            client_of(self.workspace).delete_registered_model_tag(model.name, "hold")

    @typed_errors
    def _registered_model(self, line: str) -> RegisteredModel:
        name = model_name(line)
        require_database(self.workspace)
        client = client_of(self.workspace)
        from mlflow.exceptions import MlflowException

        try:
            return client.get_registered_model(name)
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            if line in published_lines(self.workspace):
                raise RegistryError(
                    f"The registry at {self.workspace.tracking_uri} has lost the line {line!r}: it has no {name}, but "
                    f"{self.workspace.root} has published detectors or an endpoint of it. {way_back(self.workspace)}"
                ) from error
            raise NotRegisteredError(
                f"Line {line!r} has no registered model yet: there is no {name} at {self.workspace.tracking_uri}. "
                f"Run its pipeline first: csflow run {line}"
            ) from error

    @typed_errors
    def stored_bytes(self, version: Version) -> int:
        """Return the size of all files of a version in MLflow's artifact store."""
        return detector_files.stored_bytes(self.workspace, version)

    @typed_errors
    def download_detector(self, line: str, which: str | int, target_parent: Path) -> Path:
        """Copy a version's detector directory to ``target_parent/DIGEST``; an undamaged copy there is reused.

        Raises:
            RegistryError: If there is no such version, or its files are missing or not those registered.
        """
        return detector_files.download(self.workspace, self.find_version(line, which), target_parent)


def _announce(client: MlflowClient, made: ModelVersion) -> None:
    """Link the logged model with its version, and make the version the challenger."""
    from mlflow.exceptions import MlflowException

    link = json.dumps([{"name": made.name, "version": made.version}])
    with suppress(MlflowException):  # somebody deleted the logged model, whose page would show the link
        client.set_logged_model_tags(detector_files.model_id_of(made) or "", {"mlflow.modelVersions": link})
    client.set_registered_model_alias(made.name, CHALLENGER, made.version)


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
            if other.error_code != "RESOURCE_ALREADY_EXISTS":  # created by a run of the line on another machine
                raise


def _version(line: str, made: ModelVersion, aliases: Mapping[str, str | int]) -> Version:
    number = int(made.version)  # text when it comes from a server
    return Version(
        line=line,
        version=number,
        run_id=made.run_id or "",
        created=datetime.fromtimestamp(made.creation_timestamp / 1000, UTC),
        aliases=tuple(sorted(alias for alias, of in aliases.items() if int(of) == number)),
        tags=read_tags(made.tags),
    )


def _texts(tags: Mapping[str, object]) -> dict[str, str]:
    return {key: str(value)[:LONGEST_TAG] for key, value in tags.items() if value is not None}
