"""Serve detector directories with KServe: V1 and V2 over REST, V2 over gRPC.

Only detector directories are read: no tracker, registry or orchestrator is imported here.
``python -m csflow.adapters.serving --model LINE=DIRECTORY --port 8080`` serves one line.

================== ===============================================================
``requests.py``    reads images and wishes from a request, or says what is wrong
``responses.py``   describes predictions to clients
``tensors.py``     reads V2 requests
``lines.py``       loads, replaces and unloads detectors
``decoding.py``    decodes images within a bound of memory
``orders.py``      the images of a request until each has been scored
``scheduler.py``   fair queues, batches and workers
``plane.py``       answers decoded requests, of any protocol
``access.py``      accounts for every request: access log, metrics
``metrics.py``     the metrics
``errors.py``      all that a request can fail with, and its status
``limits.py``      what one client and all together may take
``bodies.py``      unpacks bodies and parses JSON within bounds
``body_limit.py``  refuses bodies that are too large
``routes.py``      the addresses of REST
``replies.py``     HTTP responses
``rest.py``        the REST server
``connections.py`` bounds what a client may take: headers, time, connections
``messages.py``    reads gRPC requests within bounds
``rpc.py``         the gRPC server
``server.py``      start and stop
================== ===============================================================
"""

from __future__ import annotations

import socket
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

from csflow.adapters.serving.served import LOOPBACK as LOOPBACK
from csflow.adapters.serving.served import ServedDetector as ServedDetector


def serve_detectors(
    wanted: Callable[[], Mapping[str, ServedDetector]],
    listeners: Sequence[socket.socket],
    *,
    grpc_port: int | None = None,
    max_memory: int | None = None,
) -> None:
    """Load the detectors and answer requests until SIGTERM or Ctrl-C.

    Args:
        wanted: Returns the detectors by the name under which they are served, which is the line's; it is called
            again at every SIGHUP.
        listeners: Bound TCP sockets; binding them beforehand makes "port in use" a clear early error.
        grpc_port: Port of the gRPC server, on the address of the first listener; ``None`` for no gRPC.
        max_memory: Bytes that the weights of loaded detectors may take; ``None`` for no bound.

    Raises:
        ModelError: If a directory contains no detector.
        DeployError: If the gRPC port is in use.
    """
    with without_arguments():
        from csflow.adapters.serving.server import DetectorServer
    DetectorServer(listeners, grpc_port=grpc_port, max_memory=max_memory).run(wanted)


@contextmanager
def without_arguments() -> Iterator[None]:
    """Hide the command line while kserve is imported, which parses ``sys.argv`` as its own."""
    kept = sys.argv
    sys.argv = kept[:1]
    try:
        yield
    finally:
        sys.argv = kept
