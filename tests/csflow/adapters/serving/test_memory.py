"""The memory that a server takes at worst stays within the figure that csflow states.

A hard limit needs a cgroup of one's own, which takes privileges that a test does not have, and a limit of addresses
(``ulimit -v``) counts what is reserved and never used. So the resident memory of the process is watched every few
milliseconds while several clients send the worst requests that are allowed.
"""

from __future__ import annotations

import gzip
import io
import json
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import partial

import psutil
import pytest
from PIL import Image

from csflow.adapters.serving import without_arguments
from csflow.adapters.serving.bodies import MOST_LISTS, MOST_VALUES
from csflow.adapters.serving.limits import Limits, memory_needed
from tests.csflow.adapters.serving.strangers import Watch, framed
from tests.csflow.adapters.serving.test_server import HOST, IMAGES, V1, V2, Server, b64, packed, server

__all__ = ["server"]  # a fixture

pytestmark = pytest.mark.slow

LIMITS = Limits()
ROOM = 4 * 2**20
"""Bytes by which a body stays below the largest."""


class Peak:
    """The most memory that a process had."""

    def __init__(self, process: psutil.Process) -> None:
        self.bytes = process.memory_info().rss
        self._process, self._done = process, threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def _watch(self) -> None:
        while not self._done.wait(0.003):
            self.bytes = max(self.bytes, self._process.memory_info().rss)

    def stop(self) -> None:
        """Stop watching."""
        self._done.set()
        self._thread.join()


@contextmanager
def within_the_figure(server: Server, loaded: int) -> Iterator[None]:
    """Fail if the server takes more than it states while the block runs, or is not as before after it."""
    watch, peak = Watch(server), Peak(psutil.Process(server.process.pid))
    yield
    peak.stop()
    needed = memory_needed(LIMITS, loaded)
    print(f"{peak.bytes / 2**20:.0f} MiB at most, {needed / 2**20:.0f} stated, {loaded / 2**20:.0f} before")
    assert peak.bytes < needed
    watch.check(patience=60.0)  # both cores are busy; that large requests delay no probe is tested elsewhere


def send(server: Server, request: bytes) -> bytes:
    """Send a request and return the first bytes of the answer."""
    with socket.create_connection((HOST, server.port), timeout=300) as connection:
        with suppress(OSError):
            connection.sendall(request)
        with suppress(OSError):
            return connection.recv(1000)
    return b""


@pytest.fixture(scope="module")
def loaded(server: Server) -> int:
    """Bytes that the process has once each worker has scored full batches."""
    many = framed(V1, json.dumps({"instances": [b64(IMAGES[1])] * 64}).encode())
    with ThreadPoolExecutor(4) as clients:
        assert all(b" 200 " in each for each in clients.map(partial(send, server), [many] * 8))
    return int(psutil.Process(server.process.pid).memory_info().rss)


def numbers() -> bytes:
    """Numbers that take 32 bytes each once parsed, and four as they are sent."""
    values = b"1e1," * (MOST_VALUES - 100)
    return b'{"inputs":[{"name":"image","datatype":"UINT8","shape":[1],"data":[' + values + b"1]}]}"


def lists() -> bytes:
    """As many lists as are allowed, of as many numbers."""
    pixels = b"[1,2]," * (MOST_LISTS - 100)
    return b'{"inputs":[{"name":"image","datatype":"UINT8","shape":[1],"data":[' + pixels + b"[1,2]]}]}"


def texts() -> bytes:
    """The largest images in base64."""
    each = b'"' + b"QUJD" * ((LIMITS.body_bytes - ROOM) // 64 // 4) + b'",'
    return b'{"instances":[' + each * 63 + each[:-1] + b"]}"


def large_binary() -> bytes:
    """The largest images in the binary extension, without its header."""
    return struct.pack("<I", LIMITS.body_bytes - ROOM) + bytes(LIMITS.body_bytes - ROOM)


def of_binary() -> bytes:
    """A whole request of the largest binary tensor."""
    tail = large_binary()
    tensor = {"name": "image", "datatype": "BYTES", "shape": [1], "parameters": {"binary_data_size": len(tail)}}
    head = json.dumps({"inputs": [tensor]}).encode()
    return framed(V2, head + tail, f"Inference-Header-Content-Length: {len(head)}")


def bomb() -> bytes:
    """A small body that is as large as allowed once unpacked."""
    return framed(V1, gzip.compress(texts(), 1), "Content-Encoding: gzip")


BODIES: dict[str, Callable[[], bytes]] = {
    "numbers": lambda: framed(V2, numbers()),
    "lists": lambda: framed(V2, lists()),
    "texts": lambda: framed(V1, texts()),
    "binary": of_binary,
    "compressed": bomb,
}


@pytest.mark.parametrize("what", list(BODIES))
def test_the_largest_bodies_of_several_clients(server: Server, loaded: int, what: str) -> None:
    request = BODIES[what]()
    with within_the_figure(server, loaded), ThreadPoolExecutor(8) as clients:
        for answer in clients.map(partial(send, server), [request] * 16):
            assert b" 400 " in answer[:20] or b" 503 " in answer[:20] or not answer  # it closes on one that still sends


def test_many_clients_with_half_a_body(server: Server, loaded: int) -> None:
    half = framed(V1, bytes(8 * 2**20))[: 6 * 2**20]

    def stay(_: int) -> None:
        with socket.create_connection((HOST, server.port), timeout=30) as connection, suppress(OSError):
            connection.sendall(half)
            time.sleep(3)

    with within_the_figure(server, loaded), ThreadPoolExecutor(64) as clients:
        list(clients.map(stay, range(64)))


def test_the_largest_messages_of_several_clients(server: Server, loaded: int) -> None:
    with without_arguments():
        import grpc
        from kserve.protocol.grpc import grpc_predict_v2_pb2 as pb
    tensor = pb.ModelInferRequest.InferInputTensor(name="image", datatype="UINT8", shape=[MOST_VALUES - 1])
    tensor.contents.uint_contents.extend([255] * (MOST_VALUES - 1))
    numbered = pb.ModelInferRequest(model_name="tiles", inputs=[tensor]).SerializeToString()
    many = b"\x0a\x05tiles" + b"\x2a\x00" * 20_000_000
    options = [("grpc.max_send_message_length", -1)]

    def ask(content: bytes) -> str:
        with grpc.insecure_channel(f"{HOST}:{server.grpc_port}", options=options) as channel:
            found = channel.unary_unary("/inference.GRPCInferenceService/ModelInfer").future(content, timeout=120)
            return str(found.code().name)

    with within_the_figure(server, loaded), ThreadPoolExecutor(4) as clients:
        assert set(clients.map(ask, [numbered, many] * 3)) <= {"INVALID_ARGUMENT", "RESOURCE_EXHAUSTED"}


def picture(mode: str, kind: str, **options: object) -> bytes:
    """The largest image that is allowed, in few bytes."""
    side = int(LIMITS.pixels**0.5)
    buffer = io.BytesIO()
    Image.new(mode, (side, side)).save(buffer, kind, **options)
    return buffer.getvalue()


PICTURES: dict[str, Callable[[], bytes]] = {
    "PNG RGBA": lambda: picture("RGBA", "PNG", compress_level=1),
    "PNG 16": lambda: picture("I;16", "PNG", compress_level=1),
    "TIFF 16": lambda: picture("I;16", "TIFF", compression="tiff_lzw"),
    "JPEG": lambda: picture("RGB", "JPEG"),
    "JPEG progressive": lambda: picture("RGB", "JPEG", progressive=True),
    "JPEG2000": lambda: picture("RGB", "JPEG2000"),
    "WEBP": lambda: picture("RGB", "WEBP", method=0),
    "GIF": lambda: picture("P", "GIF"),
}


@pytest.mark.parametrize("what", list(PICTURES))
def test_the_largest_images_of_several_clients(server: Server, loaded: int, what: str) -> None:
    content = PICTURES[what]()
    count = max(1, min(LIMITS.images, (LIMITS.body_bytes - ROOM) // len(content)))
    tail = packed(*[content] * count)
    tensor = {"name": "image", "datatype": "BYTES", "shape": [count], "parameters": {"binary_data_size": len(tail)}}
    head = json.dumps({"inputs": [tensor]}).encode()
    request = framed(V2, head + tail, f"Inference-Header-Content-Length: {len(head)}")
    with within_the_figure(server, loaded), ThreadPoolExecutor(4) as clients:
        for answer in clients.map(partial(send, server), [request] * 4):
            assert any(status in answer[:20] for status in (b" 200 ", b" 400 ", b" 503 ")), answer
