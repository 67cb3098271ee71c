"""Serve detector directories with KServe: V1 and V2 over REST, V2 over gRPC.

Only detector directories are read: no tracker, registry or orchestrator is imported here.
``python -m csflow.adapters.serving --model LINE=DIRECTORY --port 8080`` serves one line.

===================== ========================================================
"""

from __future__ import annotations

import socket
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from csflow.adapters.serving.served import LOOPBACK as LOOPBACK
from csflow.adapters.serving.served import ServedDetector as ServedDetector
from csflow.adapters.serving.served import ServerOptions as ServerOptions
from csflow.adapters.serving.served import Wanted


def serve_detectors(wanted: Wanted, listeners: Sequence[socket.socket], options: ServerOptions) -> None:
    """Load the detectors and answer requests until SIGTERM or Ctrl-C.

    Args:
        wanted: Returns the detectors by the name under which they are served, which is the line's; it is called
            again at every SIGHUP.
        listeners: Bound TCP sockets; binding them beforehand makes "port in use" a clear early error.
        options: Who may use the server, and how.

    Raises:
        ModelError: If a directory contains no detector.
        DeployError: If the gRPC port is in use.
    """
    with without_arguments():
        from csflow.adapters.serving.server import DetectorServer
    DetectorServer(listeners, options).run(wanted)


@contextmanager
def without_arguments() -> Iterator[None]:
    """Hide the command line while kserve is imported, which parses ``sys.argv`` as its own."""
    kept = sys.argv
    sys.argv = kept[:1]
    try:
        yield
    finally:
        sys.argv = kept
