"""Pass a run's identity from step to step, and report the failure of a step."""

from __future__ import annotations

import json
import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from csflow.config import LineConfig, parse_line_json
from csflow.errors import CsflowError, DamagedFileError, DataError
from csflow.system.files import explain_full_disk, sha256_file, write_atomic
from csflow.system.processes import raised_on_sigterm
from csflow.system.seals import put_aside, read_sealed_json, write_sealed_json
from csflow.system.threads import prepare_threads

if TYPE_CHECKING:
    from csflow.data.manifest import Manifest
    from csflow.runs.services import Services

ERROR_FILE = "CSFLOW_ERROR_FILE"


@dataclass(frozen=True)
class RunContext:
    """Identity of a run: written by ``ingest``, read by every later step.

    Attributes:
        line: The configuration this run trains, its seed included.
        run_id: The MLflow run every step writes into.
        git_rev: Full commit hash of the data repository.
        data_md5: DVC's hash of the tracked folder that holds the line's images.
        data_digest: Digest of the line's own manifest.
        content_key: Digest of data, configuration, code and seed: equal keys give equal detectors.
        data_root: Folder with the line's images.
        unchanged: True if this key has been decided before, so that nothing needs to be done.
        manifest_sha256: SHA-256 of the manifest's file.
    """

    line: LineConfig
    run_id: str
    git_rev: str
    data_md5: str
    data_digest: str
    content_key: str
    data_root: str
    unchanged: bool
    manifest_sha256: str

    def save(self, path: Path) -> None:
        """Write the context as sealed JSON."""
        plain: dict[str, Any] = {name: getattr(self, name) for name in self.__dataclass_fields__}
        write_sealed_json(path, plain | {"line": self.line.model_dump(mode="json")})

    @classmethod
    def load(cls, path: Path) -> RunContext:
        """Read the context that :meth:`save` wrote.

        Raises:
            DataError: If the file is damaged. Nothing else says what the run is about, so only a new run helps.
        """
        try:
            plain = read_sealed_json(Path(path))
        except DamagedFileError as error:
            raise DataError(f"{error} Run the line again: features and models that are complete are kept.") from error
        return cls(**plain | {"line": parse_line_json(json.dumps(plain["line"]), source=path)})


def load_manifest(context: RunContext, path: Path) -> Manifest:
    """Load the run's manifest, whose paths are relative to ``context.data_root``.

    If the file is damaged, it is put aside and made again from the images.

    Raises:
        DataError: If the images are not those of the run any more.
    """
    from csflow.data.manifest import Manifest, build_manifest

    root = Path(context.data_root)
    if not path.is_file() or sha256_file(path) != context.manifest_sha256:
        manifest = build_manifest(root, line=context.line.line, roles=context.line.roles)
        if manifest.digest != context.data_digest:
            raise DataError(f"{path} is damaged, and the images below {root} have changed. Run the line again.")
        put_aside(path, f"{path} is damaged.")
        manifest.save(path)
    return Manifest.load(path, root)


@contextmanager
def step(services: Services, name: str, context: RunContext | None = None) -> Iterator[None]:
    """Time a step in its MLflow run; if it fails, mark the run as failed and store the message for the shell.

    The local runner of kfp only says that *some* task failed. The message is therefore written to the file that
    ``CSFLOW_ERROR_FILE`` names, and ``csflow run`` prints it at the end. A step that is asked to end (SIGTERM) cleans
    up and marks the run as killed.

    Args:
        services: The outside systems; the tracker has the run.
        name: Name of the step.
        context: The run; ``None`` if it has not been opened yet.

    Raises:
        DiskFullError: If a full disk is behind the failure, whichever library found it.
    """
    prepare_threads()
    try:
        with raised_on_sigterm(), nullcontext() if context is None else services.tracker.step(context.run_id, name):
            yield
    except Exception as error:
        full = explain_full_disk(error, (services.workspace.root, Path(tempfile.gettempdir())))
        _leave_message(name, full or error)
        if full is not None and full is not error:
            raise full from error
        raise


def _leave_message(name: str, error: Exception) -> None:
    target = os.environ.get(ERROR_FILE)
    if target is None:
        return
    known = isinstance(error, CsflowError)
    failure = StepFailure(
        step=name,
        message=str(error) if known else f"{type(error).__name__}: {error}",
        exit_code=error.exit_code if isinstance(error, CsflowError) else 1,
    )
    try:
        write_atomic(Path(target), json.dumps(asdict(failure)))
    except CsflowError:  # the disk is full; the end of the log, which the shell shows instead, has the message too
        print(failure.message, file=sys.stderr, flush=True)


@dataclass(frozen=True)
class StepFailure:
    """The reason why a step failed, for the person at the shell."""

    step: str
    message: str
    exit_code: int
