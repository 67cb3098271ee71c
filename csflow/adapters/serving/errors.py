"""Name everything for which a request is not answered, with its status in REST and in gRPC."""

from __future__ import annotations

import math
from typing import ClassVar

from kserve.errors import InvalidInput

from csflow.errors import DataError


class RequestError(Exception):
    """A request that is not answered.

    Attributes:
        status: HTTP status.
        code: Name of the gRPC status.
        outcome: How it is counted: ``refused`` (the client's mistake), ``failed`` (ours), ``overloaded``, ``late`` or
            ``abandoned``.
        retry_after: Seconds after which the client may try again; None if that is of no use.
    """

    status: ClassVar[int] = 400
    code: ClassVar[str] = "INVALID_ARGUMENT"
    outcome: ClassVar[str] = "refused"
    retry_after: int | None = None


class UnknownLineError(RequestError):
    """The line is not served, or not in the version that is asked for."""

    status, code = 404, "NOT_FOUND"

    def __init__(self, name: str, wanted: str | None = None, served: str | None = None) -> None:
        super().__init__(
            f"Line {name[:80]!r} is not served here."
            if served is None
            else f"Line {name} is served in version {served}, not in {str(wanted)[:40]!r}."
        )


class UnknownCallError(RequestError):
    """There is no such gRPC call."""

    status, code = 404, "UNIMPLEMENTED"

    def __init__(self, call: str) -> None:
        super().__init__(f"There is no call {call[:80]!r} here.")


class UnauthenticatedError(RequestError):
    """The request has no token, or an unknown one."""

    status, code = 401, "UNAUTHENTICATED"


class TooLargeError(RequestError):
    """The request has more bytes than are read."""

    status, code = 413, "RESOURCE_EXHAUSTED"


class UnknownEncodingError(RequestError):
    """The body is compressed in a way that is not read."""

    status = 415


class ScoringError(RequestError):
    """Scoring failed although the request is right."""

    status, code, outcome = 500, "INTERNAL", "failed"


class NotReadyError(RequestError):
    """The line cannot be scored yet, or the server is stopping."""

    status, code, outcome = 503, "UNAVAILABLE", "overloaded"
    retry_after = 1


class OverloadError(RequestError):
    """Too much waits already.

    Args:
        reason: What waits.
        seconds: After which a client may try again.
    """

    status, code, outcome = 503, "RESOURCE_EXHAUSTED", "overloaded"

    def __init__(self, reason: str, seconds: float) -> None:
        super().__init__(reason)
        self.retry_after = max(1, math.ceil(seconds))


class DeadlineError(RequestError):
    """The time that the client gave is over."""

    status, code, outcome = 504, "DEADLINE_EXCEEDED", "late"

    def __init__(self) -> None:
        super().__init__("The time that the request gave was over before its images were scored.")


class AbandonedError(RequestError):
    """The client has gone; nobody receives this."""

    status, code, outcome = 499, "CANCELLED", "abandoned"


def as_request_error(error: Exception) -> RequestError | None:
    """Return an error of a client's request as one with a status; None for everything that should not happen."""
    if isinstance(error, RequestError):
        return error
    if isinstance(error, InvalidInput | DataError):
        return RequestError(str(error))
    return None
