"""Lock a line's endpoint on a cluster by a Lease, which also stores how far a canary has come.

The Lease is named ``csflow-LINE``. Its holder writes a new time every few seconds; a process that sees the same time
unchanged for the whole duration of the lease takes it over. Clocks of different machines are never compared. Every
write states the version that was read, so that only one of two processes can take over.

The Lease stores the canary step because it outlives a holder that is killed between two steps.
"""

from __future__ import annotations

import os
import secrets
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime

from csflow.adapters.deployment.endpoints import Approval, CanaryProgress, EndpointLock, Release
from csflow.adapters.deployment.kubernetes_api import LEASE, ApiError, Document, KubernetesApi
from csflow.errors import DeployError

LEASE_SECONDS = 15
"""How long a holder may be silent."""

PATIENCE_SECONDS = 40.0
"""How long to wait for the lock: longer than a killed holder's lease, shorter than a canary."""

_PREFIX = "csflow/canary-"


@contextmanager
def lease(api: KubernetesApi, line: str, *, patience: float = PATIENCE_SECONDS) -> Iterator[EndpointLock]:
    """Hold the line's Lease.

    Args:
        api: The cluster.
        line: The line.
        patience: Seconds to wait for it.

    Raises:
        DeployError: If another process still holds it after that time; the message says who, and since when.
    """
    held = _LeaseLock(api, f"csflow-{line}")
    held.take(patience)
    stop = threading.Event()
    keeper = threading.Thread(target=held.keep, args=(stop,), daemon=True, name=f"lease-{line}")
    keeper.start()
    try:
        yield held
    finally:
        stop.set()
        keeper.join()
        held.give_back()


@dataclass
class _LeaseLock:
    """A Lease held by this process; a lock keeps the renewing thread and the promotion from writing at once."""

    api: KubernetesApi
    name: str
    progress: CanaryProgress | None = None
    holder: str = field(default_factory=lambda: f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(4)}")
    held: Document = field(default_factory=dict)
    lost: str = ""
    renewed: float = 0.0
    lock: threading.Lock = field(default_factory=threading.Lock)

    def take(self, patience: float) -> None:
        """Wait until the Lease is free or its holder is silent, then become its holder."""
        seen, since, end = None, time.monotonic(), time.monotonic() + patience
        while True:
            found = self.api.get(LEASE, self.name)
            spec = found["spec"] if found else {}
            mark = (spec.get("holderIdentity"), spec.get("renewTime"))
            if mark != seen:
                seen, since = mark, time.monotonic()
            silent = time.monotonic() - since >= spec.get("leaseDurationSeconds", 0)
            if (found is None or not spec.get("holderIdentity") or silent) and self._write_name(found):
                return
            if time.monotonic() > end:
                raise DeployError(
                    f"Somebody else changes this endpoint: {spec.get('holderIdentity')} holds the Lease {self.name} "
                    f"since {spec.get('acquireTime')}. A canary may take long; wait for it, or end that process."
                )
            time.sleep(0.2 if found is None or not spec.get("holderIdentity") else 1.0)

    def check(self) -> None:
        """Raise if the Lease was taken over, or could not be renewed for so long that it may have been."""
        if not self.lost and time.monotonic() - self.renewed > LEASE_SECONDS:
            self.lost = f"it could not be renewed for {LEASE_SECONDS} seconds"
        if self.lost:
            raise DeployError(
                f"The Lease {self.name} was lost ({self.lost}): somebody else may change this endpoint now. "
                "Nothing more was changed; look with csflow lines, then csflow reconcile."
            )

    def record(self, progress: CanaryProgress | None) -> None:
        """Write the step into the Lease's annotations."""
        self.check()
        with self.lock:
            self._renew(_annotations(progress))
        self.progress = progress

    def keep(self, stop: threading.Event) -> None:
        """Renew the Lease until told to stop; runs in its own thread."""
        while not stop.wait(LEASE_SECONDS / 3):
            # After an error the next attempt may succeed; `check` knows how long it has been.
            with self.lock, suppress(ApiError):
                self._renew()
            if self.lost:
                return

    def give_back(self) -> None:
        """Release the Lease; a failure is harmless, because the Lease expires by itself."""
        if self.lost:
            return
        self.held["spec"]["holderIdentity"] = ""
        try:
            self.api.replace(LEASE, self.held)
        except ApiError:
            return

    def _write_name(self, found: Document | None) -> bool:
        now = _micro_time()
        spec = {
            "holderIdentity": self.holder,
            "leaseDurationSeconds": LEASE_SECONDS,
            "acquireTime": now,
            "renewTime": now,
            "leaseTransitions": (found["spec"].get("leaseTransitions", 0) + 1) if found else 0,
        }
        lease: Document = found or {
            "apiVersion": "coordination.k8s.io/v1",
            "kind": "Lease",
            "metadata": {"name": self.name, "namespace": self.api.namespace},
        }
        lease = lease | {"spec": spec}
        try:
            self.held = self.api.replace(LEASE, lease) if found else self.api.create(LEASE, lease)
        except ApiError as error:
            if error.status == 409:
                return False
            raise
        self.renewed = time.monotonic()
        self.progress = _progress(self.held["metadata"].get("annotations") or {})
        return True

    def _renew(self, annotations: dict[str, str] | None = None) -> None:
        asked = time.monotonic()
        try:
            self.held = self.api.replace(LEASE, self._renewed(self.held, annotations))
        except ApiError as error:
            # The write may have arrived although its response did not: our version is then not the latest.
            found = self.api.get(LEASE, self.name)
            if found is None or found["spec"].get("holderIdentity") != self.holder:
                self.lost = error.said or str(error)
                raise
            asked = time.monotonic()
            self.held = self.api.replace(LEASE, self._renewed(found, annotations))
        self.renewed = asked

    def _renewed(self, lease: Document, annotations: dict[str, str] | None) -> Document:
        metadata = lease["metadata"] | ({} if annotations is None else {"annotations": annotations})
        return lease | {"metadata": metadata, "spec": lease["spec"] | {"renewTime": _micro_time()}}


def _annotations(progress: CanaryProgress | None) -> dict[str, str]:
    if progress is None:
        return {}
    fields = {
        "version": progress.release.version,
        "digest": progress.release.digest,
        "uri": progress.release.uri,
        "percent": str(progress.percent),
        "started": progress.started.isoformat(),
        "by": progress.approval.by,
        "reason": progress.approval.reason,
    }
    return {f"{_PREFIX}{key}": value for key, value in fields.items()}


def _progress(annotations: dict[str, str]) -> CanaryProgress | None:
    try:
        fields = {key.removeprefix(_PREFIX): value for key, value in annotations.items() if key.startswith(_PREFIX)}
        return CanaryProgress(
            Release(fields["version"], fields["digest"], fields["uri"]),
            int(fields["percent"]),
            datetime.fromisoformat(fields["started"]),
            Approval(fields["by"], fields["reason"]),
        )
    except (KeyError, ValueError):
        return None


def _micro_time() -> str:
    return datetime.now(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")
