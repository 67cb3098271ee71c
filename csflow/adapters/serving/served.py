"""What a server is asked to serve, and how."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from csflow.adapters.serving.tls import Certificate
from csflow.adapters.serving.tokens import Tokens

LOOPBACK = "127.0.0.1"
"""The address that is reachable from this machine only."""


@dataclass(frozen=True)
class ServedDetector:
    """A detector to serve.

    Attributes:
        directory: The detector directory.
        version: The version that responses name; by default taken from CSFLOW_VERSION or the directory's digest.
    """

    directory: Path
    version: str = ""


Wanted = Callable[[], Mapping[str, ServedDetector]]
"""Returns the detectors to serve, by the name under which they are served, which is the line's, as of now."""


@dataclass(frozen=True)
class ServerOptions:
    """Who may use a server, and how.

    Attributes:
        grpc_port: Port of the gRPC server, on the address of the first listener; ``None`` for no gRPC.
        tokens: Those of the clients that are let in; ``None`` for all clients.
        certificate: Certificate and key for encrypted connections; ``None`` for plain ones.
        max_memory: Bytes that the weights of loaded detectors may take; ``None`` for no bound.
        documented: True to describe the routes at ``/docs``.
        watch_seconds: Time after which the server asks again what is wanted; ``None`` to ask at SIGHUP only.
    """

    grpc_port: int | None = None
    tokens: Tokens | None = None
    certificate: Certificate | None = None
    max_memory: int | None = None
    documented: bool = False
    watch_seconds: float | None = None
