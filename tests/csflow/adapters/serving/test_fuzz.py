"""Generated requests, over all protocols: none of them fails the server, and none of them stays without an answer.

A few examples run by default. ``make fuzz EXAMPLES=n`` or ``MINUTES=n`` runs many, other ones every time. A failure
prints the bytes in base64, and Hypothesis' line with which it happens again.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from csflow.adapters.serving import without_arguments
from tests.csflow.adapters.serving.corpus import (
    DOCUMENTS,
    TENSOR,
    binary_request,
    image_files,
    right_streams,
    spoilt,
    spoilt_json,
)
from tests.csflow.adapters.serving.strangers import Watch, exchanged, framed
from tests.csflow.adapters.serving.test_server import HOST, IMAGES, V1, V2, Server, b64, packed, post, server

__all__ = ["server"]  # a fixture

EXAMPLES = int(os.environ.get("CSFLOW_FUZZ_EXAMPLES", 0))
MINUTES = float(os.environ.get("CSFLOW_FUZZ_MINUTES", 0))
PARTS = 6
"""Tests that share the minutes."""

GROWTH = 150e6
"""Bytes by which the process may grow in 2 000 requests; allocators keep what they had at the worst moment."""

_settings = settings(
    max_examples=EXAMPLES or (300 if MINUTES else 40),
    derandomize=not (EXAMPLES or MINUTES),  # the same ones every time, so that a change is judged by what it changes
    database=None,
    deadline=None,
    print_blob=True,
    suppress_health_check=list(HealthCheck),
)


@pytest.fixture
def watch(server: Server) -> Iterator[Watch]:
    """A watch over the server, which must be as before when the test is over."""
    watching = Watch(server)
    before = watching.memory()
    yield watching
    watching.check()
    assert watching.memory() - before < GROWTH


def repeated(run: Callable[[], None]) -> None:
    """Run a property once, or until its share of the minutes is over."""
    until = time.monotonic() + 60 * MINUTES / PARTS
    run()
    while time.monotonic() < until:
        run()


def check(watch: Watch, *connections: list[bytes], patience: float, leave: bool = False) -> None:
    """Send what a stranger sends on as many connections, and check each answer; a slow one gets a second chance."""
    for exchange in exchanged(watch.server.port, connections, patience, leave=leave):
        if exchange.complaint(patience):
            (again,) = exchanged(watch.server.port, [exchange.sent], max(patience, watch.patience()))
            assert not again.complaint(patience), again.complaint(patience)


KINDS = ["application/json", "application/octet-stream", "application/cloudevents+json", "text/plain", "", "a/b;c=\xe9"]
ENCODINGS = ["identity", "gzip", "deflate", "br", "gzip, gzip", "\xff", ""]
STRANGE = ["", "-1", "0", "1", "9" * 5000, "1e3", "0x10", "nan", "\xb2", "99", "1, 2", "inf", "1e300", "0.0"]


@st.composite
def rest_requests(draw: Callable[..., Any]) -> list[bytes]:
    """Return the pieces of a request that is right in HTTP, and in all else perhaps not."""
    path, document = draw(st.sampled_from(DOCUMENTS))
    body = draw(spoilt_json(document) | spoilt(b64(IMAGES[1]).encode()))
    kind = "application/cloudevents+json" if "specversion" in str(document) else draw(st.sampled_from(KINDS))
    headers = [f"Content-Type: {kind}"]
    for name, values in (("Content-Encoding", ENCODINGS), ("Inference-Header-Content-Length", STRANGE),
                         ("X-Request-Timeout", STRANGE), ("X-Request-ID", STRANGE), ("Accept", STRANGE),
                         ("traceparent", STRANGE)):  # fmt: skip
        if not draw(st.integers(0, 5)):
            headers.append(f"{name}: {draw(st.sampled_from(values))}")
    whole = framed(path, body, *headers)
    cuts = sorted(draw(st.lists(st.integers(0, len(whole)), max_size=3)))
    return [whole[start:end] for start, end in zip([0, *cuts], [*cuts, len(whole)], strict=True)]


def test_what_is_not_asked_rightly_is_refused(watch: Watch) -> None:
    @_settings
    @given(st.lists(rest_requests(), min_size=1, max_size=6))
    def run(requests: list[list[bytes]]) -> None:
        check(watch, *requests, patience=patience)

    patience = watch.patience()
    repeated(run)


@st.composite
def mixed_requests(draw: Callable[..., Any]) -> list[bytes]:
    """Return a V2 request with tensors in binary, whose lengths need not be right."""
    tail = draw(st.sampled_from([packed(IMAGES[1]), packed(b"", b""), bytes(400), IMAGES[1], b"", bytes(27)]))
    tail = draw(st.just(tail) | spoilt(tail))
    sides = st.sampled_from([0, 1, 2, 3, 9, len(tail), 2**26, 2**31, 2**63, -1])
    sizes = draw(st.lists(st.just(len(tail)) | sides, min_size=1, max_size=3))
    shape = draw(st.lists(sides, max_size=5) | st.sampled_from([[3, 3, 3], [1, 3, 3, 3], [0, 3, 3], [0, 0, 3, 3]]))
    body, length = binary_request(sizes, shape, draw(st.sampled_from(["BYTES", "UINT8", "FP32", ""])), tail)
    stated = draw(st.just(str(length)) | st.sampled_from(STRANGE) | st.integers(0, len(body) + 2).map(str))
    return [framed(V2, body, "Content-Type: application/octet-stream", f"Inference-Header-Content-Length: {stated}")]


def test_lengths_that_do_not_fit_are_refused(watch: Watch) -> None:
    @_settings
    @given(st.lists(mixed_requests(), min_size=1, max_size=6))
    def run(requests: list[list[bytes]]) -> None:
        check(watch, *requests, patience=patience)

    patience = watch.patience()
    repeated(run)


@st.composite
def streams(draw: Callable[..., Any]) -> list[bytes]:
    """Return the pieces of bytes that were requests before somebody spoilt them."""
    whole = draw(st.sampled_from(sorted(right_streams().values())).flatmap(spoilt) | st.binary(max_size=60))
    cut = draw(st.integers(0, len(whole)))
    return [whole[:cut], whole[cut:]]


def test_bytes_that_are_no_http_are_refused(watch: Watch) -> None:
    @_settings
    @given(st.lists(streams(), min_size=1, max_size=8))
    def run(connections: list[list[bytes]]) -> None:
        check(watch, *connections, patience=patience)

    patience = watch.patience()
    repeated(run)


def test_clients_that_go_at_any_moment_leave_nothing_behind(watch: Watch) -> None:
    @_settings
    @given(st.lists(streams(), min_size=1, max_size=8))
    def run(connections: list[list[bytes]]) -> None:
        check(watch, *([first] for first, _ in connections), patience=patience, leave=True)

    patience = watch.patience()
    repeated(run)


def test_damaged_images_are_refused_or_scored(watch: Watch) -> None:
    def as_request(way: int, content: bytes) -> list[bytes]:
        if way == 0:
            return [framed(V1, b'{"instances":[{"b64":"' + b64(content).encode() + b'","heatmap":true}]}')]
        tail, datatype, shape = (packed(content), "BYTES", 1) if way == 1 else (content, "UINT8", len(content))
        body, length = binary_request([len(tail)], [shape], datatype, tail)
        return [framed(V2, body, f"Inference-Header-Content-Length: {length}")]

    request = st.builds(as_request, st.integers(0, 2), st.sampled_from(list(image_files().values())).flatmap(spoilt))

    @_settings
    @given(st.lists(request, min_size=1, max_size=8))
    def run(requests: list[list[bytes]]) -> None:
        check(watch, *requests, patience=patience)

    patience = watch.patience()
    repeated(run)


def test_every_kind_of_image_is_read_before_it_is_damaged(server: Server) -> None:
    """Otherwise the test above would damage what is refused anyway."""
    for name, content in image_files().items():
        status, answer = post(server.connect(), V1, {"instances": [b64(content)]})
        closed = name.startswith(("PFM", "PPM plain", "JPEG2000", "AVIF", "QOI"))
        assert status == (400 if closed else 200), (name, answer)


def test_messages_that_are_none_are_refused(watch: Watch) -> None:
    with without_arguments():
        import grpc
        from kserve.protocol.grpc import grpc_predict_v2_pb2 as pb

    def message(shape: list[int], datatype: str, raw: list[bytes], contents: dict[str, list[Any]], name: str) -> bytes:
        tensor = pb.ModelInferRequest.InferInputTensor(name="image", datatype=datatype, shape=shape)
        if contents:
            tensor.contents.MergeFrom(pb.InferTensorContents(**contents))
        request = pb.ModelInferRequest(model_name=name, inputs=[tensor], raw_input_contents=raw)
        request.parameters["boxes"].bool_param = True
        return bytes(request.SerializeToString())

    messages = st.builds(
        message,
        st.lists(st.sampled_from([1, 0, 3, -1, -2, 2**62, 12]), max_size=9),
        st.sampled_from(["BYTES", "UINT8", "FP32", "", "\0"]),
        st.lists(st.sampled_from([packed(IMAGES[1]), b"", bytes(12), IMAGES[1][:99]]), max_size=2),
        st.sampled_from([{}, {"bytes_contents": [IMAGES[1]]}, {"uint_contents": [1, 256]}, {"fp64_contents": [1.0]}]),
        st.sampled_from(["tiles", "tiles", "", "nothing", "\0/../é"]),
    )
    right = message([1], "BYTES", [packed(IMAGES[1])], {}, "tiles")
    calls = ["ModelInfer"] * 5 + ["ModelReady", "ModelMetadata", "ServerLive", "ServerMetadata", "RepositoryIndex", "X"]
    metadata = st.sampled_from(
        [(), (("x-request-id", "~" * 300),), (("traceparent", "0" * 3000),), (("a-bin", b"\xff"),)]
    )
    names = ("OK", "INVALID_ARGUMENT", "NOT_FOUND", "UNIMPLEMENTED", "RESOURCE_EXHAUSTED", "DEADLINE_EXCEEDED")
    codes = {grpc.StatusCode[each] for each in names}

    with grpc.insecure_channel(f"{HOST}:{watch.server.grpc_port}") as channel:

        @_settings
        @given(st.sampled_from(calls), messages | spoilt(right) | st.binary(max_size=60), metadata)
        def run(call: str, content: bytes, headers: tuple[tuple[str, str | bytes], ...]) -> None:
            send = channel.unary_unary(f"/inference.GRPCInferenceService/{call}")
            found = send.future(content, timeout=4 * patience, metadata=headers)
            began = time.monotonic()
            assert found.code() in codes, (found.code(), found.details(), call, b64(content), headers)
            assert time.monotonic() - began < patience, (call, b64(content))

        patience = watch.patience()
        repeated(run)


@pytest.mark.slow
def test_memory_does_not_grow_over_two_thousand_requests(watch: Watch) -> None:
    """The first thousand may leave what allocators keep; after it memory stays as it is."""
    tail = packed(*([IMAGES[1]] * 3), b"no image")
    body, length = binary_request([len(tail)], [4], "BYTES", tail)
    mistakes = [
        framed(V1, b'{"instances":["AAAA"]}'),
        framed(V1, b"{" * 1000),
        framed(V2, str({"inputs": [TENSOR] * 3}).replace("'", '"').encode()),
        framed(V2, body, f"Inference-Header-Content-Length: {length}"),
        framed("/v2/models/nothing", b"", method="GET"),
        b"\0" * 100 + b"\r\n\r\n",
        *(framed(V1, b'{"instances":["' + b64(each[:-9]).encode() + b'"]}') for each in image_files().values()),
    ]
    send = partial(exchanged, watch.server.port, patience=4 * watch.patience())
    for _ in range(1000 // len(mistakes)):
        send([[each] for each in mistakes])
    between = watch.memory()
    for _ in range(1000 // len(mistakes) + 1):
        send([[each] for each in mistakes])
    assert watch.memory() - between < 40e6
