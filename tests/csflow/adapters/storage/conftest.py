"""An S3 service over HTTP, and things between it and a client that go wrong."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import boto3
import pytest
from moto.server import ThreadedMotoServer

from csflow.adapters.storage import Store

BUCKET = "factory"


@pytest.fixture(scope="session")
def service() -> Iterator[str]:
    """Address of an S3 service."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def s3(service: str, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A client of the service, whose only bucket is empty; the environment names it."""
    for name, value in {
        "AWS_ACCESS_KEY_ID": "testing", "AWS_SECRET_ACCESS_KEY": "testing", "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_ENDPOINT_URL": service, "CSFLOW_STORE": f"s3://{BUCKET}/line-7",
        # Nothing on this machine may answer for the variables.
        "AWS_CONFIG_FILE": "/nonexistent", "AWS_SHARED_CREDENTIALS_FILE": "/nonexistent",
        "AWS_EC2_METADATA_DISABLED": "true",
    }.items():  # fmt: skip
        monkeypatch.setenv(name, value)
    client = boto3.session.Session().client("s3", endpoint_url=service)
    client.create_bucket(Bucket=BUCKET)
    yield client
    objects = client.list_objects_v2(Bucket=BUCKET).get("Contents", [])
    if objects:
        client.delete_objects(Bucket=BUCKET, Delete={"Objects": [{"Key": found["Key"]} for found in objects]})
    for upload in client.list_multipart_uploads(Bucket=BUCKET).get("Uploads", []):
        client.abort_multipart_upload(Bucket=BUCKET, Key=upload["Key"], UploadId=upload["UploadId"])
    client.delete_bucket(Bucket=BUCKET)


@pytest.fixture
def store(s3: Any) -> Store:
    """The store that the environment names."""
    found = Store.from_environment()
    assert found is not None
    return found


class Wire:
    """A TCP proxy in front of a service that can be cut.

    Attributes:
        cuts: How often it will be cut, each time when ``allowance`` bytes went in one direction since the last cut.
        allowance: Bytes let through before a cut.
        flip_after: The bit that comes after so many bytes on their way up arrives the other way round; 0 for none.
        carried: Bytes that went up and down.
    """

    def __init__(self, service: str) -> None:
        host, _, port = service.removeprefix("http://").partition(":")
        self._target = (host, int(port))
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.cuts, self.allowance, self.flip_after = 0, 0, 0
        self.carried = {"up": 0, "down": 0}
        self._since_cut = {"up": 0, "down": 0}
        threading.Thread(target=self._accept, daemon=True).start()

    @property
    def url(self) -> str:
        host, port = self._listener.getsockname()
        return f"http://{host}:{port}"

    def close(self) -> None:
        self._listener.close()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            server = socket.create_connection(self._target)
            for source, sink, way in ((client, server, "up"), (server, client, "down")):
                threading.Thread(target=self._carry, args=(source, sink, way), daemon=True).start()

    def _carry(self, source: socket.socket, sink: socket.socket, way: str) -> None:
        passed = 0
        with suppress(OSError):
            while chunk := source.recv(65536):
                passed += len(chunk)
                self._since_cut[way] += len(chunk)
                if self.cuts > 0 and self._since_cut[way] > self.allowance:
                    self.cuts -= 1
                    self._since_cut = {"up": 0, "down": 0}
                    break
                if way == "up" and 0 < self.flip_after < passed:
                    chunk, self.flip_after = chunk[:-1] + bytes([chunk[-1] ^ 1]), 0
                sink.sendall(chunk)
                self.carried[way] += len(chunk)
        for end in (source, sink):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()


@pytest.fixture
def wire(service: str) -> Iterator[Wire]:
    """A proxy in front of the service."""
    proxy = Wire(service)
    yield proxy
    proxy.close()


@pytest.fixture
def refusing(s3: Any) -> Iterator[Any]:
    """A service that refuses everything: call it with S3's code and the HTTP status for its address."""
    started: list[ThreadingHTTPServer] = []

    def start(code: str, status: int) -> str:
        class Refusal(BaseHTTPRequestHandler):
            def answer(self) -> None:
                self.rfile.read(int(self.headers.get("Content-Length") or 0))
                body = f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>no</Message></Error>".encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(body)

            do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = answer

            def log_message(self, *_: object) -> None:
                """Say nothing."""

        server = ThreadingHTTPServer(("127.0.0.1", 0), Refusal)
        started.append(server)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        return f"http://127.0.0.1:{server.server_address[1]}"

    yield start
    for server in started:
        server.shutdown()
        server.server_close()
