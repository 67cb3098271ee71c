"""Define what serves a line: endpoints, the lock that protects one, and the interface both implementations share."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Protocol

from csflow.config import LineConfig
from csflow.system.workspace import Workspace

BATCH = 16
"""Images in one request."""

LOG_LINES = 15
"""Last lines of a server's log that an error message shows."""

_DIGEST = re.compile(r"(?<![0-9a-f])(?<!csflow-sha256:)[0-9a-f]{64}(?![0-9a-f])")  # not the seal of a state file


class Endpoint(Protocol):
    """Something that answers for a line over HTTP: a process of this machine or a service of a cluster."""

    @property
    def line(self) -> str:
        """Return the line, which is also the name of the served model."""

    @property
    def url(self) -> str:
        """Return the address of the REST server."""

    @property
    def digest(self) -> str:
        """Return the digest of the detector directory that it serves."""

    @property
    def version(self) -> str:
        """Return the registered version that it serves."""

    @property
    def beside(self) -> str:
        """Name the challenger that gets some of the requests: ``version 4 at 10 %``; empty if there is none."""

    @property
    def log(self) -> str:
        """Return the path of its log file, or the command that shows its log."""


@dataclass(frozen=True)
class Release:
    """A published detector that an endpoint can serve.

    Attributes:
        version: Its registered version.
        digest: Digest of its directory.
        uri: Where an endpoint on another machine reads it; ends in ``LINE/DIGEST/``.
    """

    version: str
    digest: str
    uri: str


@dataclass(frozen=True)
class Approval:
    """The decision that a version is to become champion.

    Attributes:
        by: ``gate`` or ``hand``.
        reason: For the version's tags.
    """

    by: str
    reason: str


@dataclass(frozen=True)
class CanaryProgress:
    """The progress of a promotion in canary steps.

    Attributes:
        release: The challenger.
        percent: Its share of the requests in the present step; 0 before the first.
        started: When that step started, in UTC.
        approval: Who decided that it is to be champion, and why.
    """

    release: Release
    percent: int
    started: datetime
    approval: Approval


class EndpointLock(Protocol):
    """The exclusive right to change a line's endpoint, and the progress that an interrupted holder left."""

    progress: CanaryProgress | None

    def check(self) -> None:
        """Raise a :class:`csflow.errors.DeployError` if another process has taken the lock over."""

    def record(self, progress: CanaryProgress | None) -> None:
        """Store how far a promotion has come; ``None`` when it is over."""


@dataclass(frozen=True)
class Deployed:
    """A release that serves its line.

    Attributes:
        endpoint: The endpoint that serves it.
        note: What its canary steps showed; empty without steps.
    """

    endpoint: Endpoint
    note: str = ""


Trial = Callable[[Endpoint], None]
"""Tries an endpoint before it serves; raises a :class:`csflow.errors.DeployError` if something is wrong with it."""


class Endpoints(Protocol):
    """The endpoints of all lines: local processes, or InferenceServices of a cluster."""

    def lock(self, line: str) -> AbstractContextManager[EndpointLock]:
        """Wait for the exclusive right to change a line's endpoint.

        A nightly retrain and a person must not change the same endpoint at once.

        Raises:
            DeployError: If another holder does not finish, or the cluster cannot be reached.
        """

    def status(self, line: str) -> Endpoint | None:
        """Return what serves a line; ``None`` if nothing does.

        Raises:
            DeployError: If the cluster cannot be reached.
        """

    def deploy(
        self,
        line: LineConfig,
        release: Release,
        directory: Path,
        *,
        trial: Trial,
        lock: EndpointLock,
        approval: Approval | None = None,
    ) -> Deployed:
        """Start a release, try it, and let it take over; do nothing if it serves already.

        Args:
            line: The line; its configuration says where and how it is served.
            release: The detector that is to serve.
            directory: The detector directory of the release on this machine.
            trial: Tries the new endpoint before it gets any request.
            lock: The right to change the line's endpoint.
            approval: Why the release is to become champion, on a cluster in the line's canary steps; ``None`` if it
                is champion already or was before, and takes over at once.

        Raises:
            DeployError: If the release does not start or fails its trial; what served before goes on serving.
        """

    def document(self, line: LineConfig, release: Release) -> dict[str, Any]:
        """Return the InferenceService that serves a release of a line, as a finished promotion applies it.

        Raises:
            DeployError: If KServe cannot read the release, or the cluster cannot be reached.
        """

    def score(
        self, endpoint: Endpoint, images: Sequence[bytes], *, heatmap: bool = False, boxes: bool = False
    ) -> list[dict[str, Any]]:
        """Score encoded images through an endpoint, in the given order.

        Raises:
            DeployError: If it cannot be reached or refuses an image; its own reason is part of the message.
        """

    def stop(self, line: str) -> bool:
        """Stop whatever serves a line.

        Returns:
            True if something served it.

        Raises:
            DeployError: If a cluster refuses.
        """

    def named_digests(self, line: str) -> set[str]:
        """Return every detector digest that a line's endpoint names: served, in a canary, or to roll back to.

        A local endpoint names what its state files say, even if its process is not running.

        Raises:
            DeployError: If the cluster cannot be reached.
        """


def request_bodies(images: Sequence[bytes], *, heatmap: bool, boxes: bool) -> Iterator[bytes]:
    """Yield V1 request bodies for encoded images, in the given order, at most :data:`BATCH` images each."""
    for start in range(0, len(images), BATCH):
        instances = [
            {"image": {"b64": base64.b64encode(image).decode()}, "heatmap": heatmap, "boxes": boxes}
            for image in images[start : start + BATCH]
        ]
        yield json.dumps({"instances": instances}).encode()


def digests_in(*texts: str) -> set[str]:
    """Return every SHA-256 digest that occurs in some texts."""
    return {digest for text in texts for digest in _DIGEST.findall(text)}


def local_state_files(workspace: Workspace, line: str) -> list[Path]:
    """Return the state files of a line's local processes that exist."""
    files = [workspace.endpoints / f"{line}.json", *(workspace.endpoints / f"{line}.processes").glob("*.json")]
    return [file for file in files if file.is_file()]
