"""Start the model server by its real command, and ask it over REST and gRPC."""

from __future__ import annotations

import http.client
import json
import os
import ssl
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from csflow.adapters.serving import without_arguments
from csflow.system.ports import free_port

HOST = "127.0.0.1"
CALLS = "inference.GRPCInferenceService"


@dataclass(frozen=True)
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


@dataclass(frozen=True)
class Command:
    """A server that has been started, with REST and gRPC."""

    process: subprocess.Popen[bytes]
    port: int
    grpc_port: int
    log: Path
    context: ssl.SSLContext | None = None

    def connect(self, context: ssl.SSLContext | None = None) -> http.client.HTTPConnection:
        used = context or self.context
        if used is None:
            return http.client.HTTPConnection(HOST, self.port, timeout=30)
        return http.client.HTTPSConnection(HOST, self.port, timeout=30, context=used)

    def ask(self, method: str, path: str, body: object = None, headers: Mapping[str, str] | None = None) -> Answer:
        connection = self.connect()
        try:
            connection.request(method, path, None if body is None else json.dumps(body), dict(headers or {}))
            response = connection.getresponse()
            received = {name.lower(): value for name, value in response.getheaders()}
            return Answer(response.status, received, response.read())
        finally:
            connection.close()

    def logged(self, text: str, seconds: float = 15.0) -> bool:
        """True once the text is in the log."""
        end = time.monotonic() + seconds
        while text not in self.log.read_text():
            if time.monotonic() > end:
                return False
            time.sleep(0.05)
        return True

    def channel(self, certificate: bytes | None = None) -> Any:
        import grpc

        if certificate is None:
            return grpc.insecure_channel(f"{HOST}:{self.grpc_port}")
        return grpc.secure_channel(f"{HOST}:{self.grpc_port}", grpc.ssl_channel_credentials(certificate))


def call(channel: Any, name: str, message: Any = None, *, metadata: tuple[tuple[str, str], ...] = ()) -> Any:
    """Make a call of the protocol V2 by its name; bytes are sent as they are."""
    with without_arguments():
        from kserve.protocol.grpc import grpc_predict_v2_pb2 as pb

    answered = getattr(pb, f"{name}Response", pb.ServerLiveResponse)
    asked = getattr(pb, f"{name}Request", pb.ServerLiveRequest)() if message is None else message
    encode = (lambda given: given) if isinstance(asked, bytes) else type(asked).SerializeToString
    method = channel.unary_unary(
        f"/{CALLS}/{name}", request_serializer=encode, response_deserializer=answered.FromString
    )
    return method(asked, timeout=20, metadata=metadata)


@contextmanager
def started(
    folder: Path,
    *options: str,
    environment: Mapping[str, str] | None = None,
    context: ssl.SSLContext | None = None,
) -> Iterator[Command]:
    """Start the server, wait until it is ready, and see that it ends well."""
    port, grpc_port, log = free_port(HOST), free_port(HOST), folder / "log"
    command = [sys.executable, "-m", "csflow.adapters.serving", f"--port={port}", f"--grpc-port={grpc_port}", *options]
    inherited = {name: value for name, value in os.environ.items() if name != "CSFLOW_TOKENS"}
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, stdout=output, stderr=subprocess.STDOUT, env=inherited | dict(environment or {})
        )
    server = Command(process, port, grpc_port, log, context)
    try:
        _wait_until_ready(server)
        yield server
    finally:
        process.terminate()
        assert process.wait(40) == 0, log.read_text()[-3000:]


def _wait_until_ready(server: Command) -> None:
    for _ in range(900):
        assert server.process.poll() is None, server.log.read_text()[-3000:]
        try:
            if server.ask("GET", "/v2/health/ready").status == 200:
                return
        except OSError:
            time.sleep(0.1)
    raise AssertionError(server.log.read_text()[-3000:])


def failed(*options: str, environment: Mapping[str, str] | None = None) -> str:
    """What the command says when it refuses to start."""
    done = subprocess.run(
        [sys.executable, "-m", "csflow.adapters.serving", *options],
        env=os.environ | dict(environment or {}), capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    return done.stderr
