"""Account for every request: its identity, its phases and its end, in the access log and in the metrics."""

from __future__ import annotations

import json
import logging
import re
import secrets
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime

from csflow.adapters.serving.metrics import IN_FLIGHT, PHASES, REQUESTS, RESPONSES, SECONDS, UNKNOWN
from csflow.adapters.serving.orders import Phases

_log = logging.getLogger("csflow.access")

_ID = re.compile(r"[\w.:/+=@-]{1,128}", re.ASCII)
_TRACEPARENT = re.compile(r"(?!ff)[0-9a-f]{2}-(?!0{32})([0-9a-f]{32})-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}(?=$|-)")
"""https://www.w3.org/TR/trace-context/, version 00 and what later versions begin with."""


@dataclass
class Access:
    """What is known of one request.

    Attributes:
        protocol: ``rest`` or ``grpc``.
        method: HTTP method, or name of the call.
        path: Path of the address, without its query.
        id: What the client calls the request (``X-Request-ID``), or a name of ours.
        trace: Trace of which the request is a part (``traceparent``); empty if it is none.
        scoring: True if scores are asked for.
        line: Name of the line; empty if it is not served.
        version: Version of its detector.
        outcome: How it ended, see :data:`csflow.adapters.serving.metrics.REQUESTS`.
        images: Number of images.
        decisions: Number of images by decision.
        phases: Where the time went.
    """

    protocol: str
    method: str
    path: str
    id: str
    trace: str
    scoring: bool = False
    line: str = ""
    version: str = ""
    outcome: str = ""
    images: int = 0
    decisions: Counter[str] = field(default_factory=Counter)
    phases: Phases = field(default_factory=Phases)
    began: float = field(default_factory=time.monotonic)

    @classmethod
    def of(cls, protocol: str, method: str, path: str, headers: Mapping[str, str], *, scoring: bool) -> Access:
        """Begin to account for a request.

        Args:
            protocol: ``rest`` or ``grpc``.
            method: HTTP method, or name of the call.
            path: Path of the address.
            headers: Names in lower case.
            scoring: True if scores are asked for.
        """
        given = headers.get("x-request-id", "")
        trace = _TRACEPARENT.match(headers.get("traceparent", ""))
        name = given if _ID.fullmatch(given) else secrets.token_hex(8)
        return cls(protocol, method, path[:200], name, trace[1] if trace else "", scoring=scoring)

    def end(self, status: str) -> None:
        """Count the request and write its line.

        Args:
            status: HTTP status, or the name of gRPC's.
        """
        seconds = time.monotonic() - self.began
        if self.scoring and not self.outcome:
            self.outcome = "refused"
        RESPONSES.labels(self.protocol, status).inc()
        if self.scoring:
            REQUESTS.labels(self.line or UNKNOWN, self.outcome).inc()
        if self.outcome == "answered":
            SECONDS.labels(self.line, self.version, self.protocol).observe(seconds)
            for phase, taken in asdict(self.phases).items():
                PHASES.labels(self.line, self.version, phase).observe(taken)
        if self.scoring or status not in ("200", "OK"):  # probes would fill the log
            _log.info(self._as_json(status, seconds))

    def _as_json(self, status: str, seconds: float) -> str:
        values: dict[str, object] = {
            "time": datetime.now(UTC).isoformat(timespec="milliseconds"),
            "id": self.id,
            "trace": self.trace,
            "protocol": self.protocol,
            "method": self.method,
            "path": self.path,
            "status": status,
            "outcome": self.outcome,
            "line": self.line,
            "version": self.version,
            "images": self.images,
            "decisions": dict(self.decisions),
            "ms": _milliseconds(seconds),
        }
        if self.outcome == "answered":
            values |= {f"{phase}_ms": _milliseconds(taken) for phase, taken in asdict(self.phases).items()}
        return json.dumps({name: value for name, value in values.items() if value not in ("", {})})


_CURRENT: ContextVar[Access | None] = ContextVar("access", default=None)


def current() -> Access:
    """Return the account of the request that is being answered."""
    access = _CURRENT.get()
    return access if access is not None else Access("", "", "", "", "")


@contextmanager
def accounted(access: Access) -> Iterator[None]:
    """Make an account the current one, and the request one of those in flight."""
    token = _CURRENT.set(access)
    try:
        with IN_FLIGHT.labels(access.protocol).track_inprogress():
            yield
    finally:
        _CURRENT.reset(token)


def write_log() -> None:
    """Write the access log to standard error, a JSON object a line, unless it has been given another destination."""
    if not _log.handlers:
        handler = logging.StreamHandler()
        handler.setFormatter(logging.Formatter("%(message)s"))
        _log.addHandler(handler)
        _log.setLevel(logging.INFO)
        _log.propagate = False  # lines with a date in front are no JSON


def _milliseconds(seconds: float) -> float:
    return round(1000 * seconds, 2)
