"""KServe model server for detector directories: V1 and V2 over REST, V2 over gRPC.

It reads detector directories and nothing else: no tracker, registry or orchestrator is imported here.
``python -m csflow.adapters.serving --model LINE=DIRECTORY --port 8080`` serves one line.

================== ==========================================================
``requests.py``    request → images and options; says what is wrong with it
``responses.py``   prediction → what a client reads
``model.py``       the ``kserve.Model`` of one line
``data_plane.py``  V1 and V2 bodies → what the model gets, and back
``http_errors.py`` the answers 400 and 413
``server.py``      sockets, loopback, start and stop
================== ==========================================================
"""

from __future__ import annotations

import socket
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

from csflow.adapters.serving.served import LOOPBACK as LOOPBACK
from csflow.adapters.serving.served import ServedDetector as ServedDetector


def serve(
    models: Mapping[str, ServedDetector], listeners: Sequence[socket.socket], *, grpc_port: int | None = None
) -> None:
    """Load the detectors and answer requests until SIGTERM or Ctrl-C.

    Args:
        models: Detectors by the name they are served under, the line's.
        listeners: Bound TCP sockets, listened on in this order; binding them beforehand makes "port in use" a
            clear early error.
        grpc_port: Port of the gRPC server on the address of the first; ``None`` for none.

    Raises:
        ModelError: If a directory holds no detector.
        DeployError: If the gRPC port is in use.
    """
    with without_arguments():
        from csflow.adapters.serving.server import DetectorServer
    DetectorServer(listeners, grpc_port=grpc_port).run(models)


@contextmanager
def without_arguments() -> Iterator[None]:
    """Hide the command line while kserve is imported: it parses ``sys.argv`` as its own."""
    kept = sys.argv
    sys.argv = kept[:1]
    try:
        yield
    finally:
        sys.argv = kept
