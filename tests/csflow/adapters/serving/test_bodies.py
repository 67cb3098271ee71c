"""Bodies are unpacked and parsed within bounds."""

from __future__ import annotations

import gzip
import json
import time
import tracemalloc
import zlib

import pytest

from csflow.adapters.serving.bodies import MOST_OBJECTS, parsed, unpacked
from csflow.adapters.serving.errors import UnknownEncodingError
from csflow.adapters.serving.limits import Limits
from csflow.errors import DataError

BODY = b'{"instances": ["abc"]}'


def raw_deflate(content: bytes) -> bytes:
    stream = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    return stream.compress(content) + stream.flush()


@pytest.mark.parametrize(
    ("encoding", "body"),
    [
        ("", BODY),
        ("identity", BODY),
        ("gzip", gzip.compress(BODY, mtime=0)),
        ("X-GZIP", gzip.compress(BODY, mtime=0)),
        ("deflate", zlib.compress(BODY)),
        ("deflate", raw_deflate(BODY)),
        ("deflate, gzip", gzip.compress(zlib.compress(BODY), mtime=0)),
    ],
)
def test_bodies_are_unpacked(encoding: str, body: bytes) -> None:
    assert unpacked(body, {"content-encoding": encoding} if encoding else {}) == BODY


@pytest.mark.parametrize(
    ("encoding", "body", "words"),
    [
        ("gzip", BODY, "is not gzip"),
        ("deflate", BODY, "is not deflate|is cut off"),
        ("gzip", gzip.compress(BODY, mtime=0)[:-6], "cut off"),
        ("gzip", gzip.compress(BODY, mtime=0) + b"more", "after its gzip data"),
        ("gzip", gzip.compress(bytes(Limits.body_bytes + 1), mtime=0), "larger than"),
        ("deflate", zlib.compress(bytes(4 * Limits.body_bytes)), "larger than"),
    ],
)
def test_what_cannot_be_unpacked_is_named(encoding: str, body: bytes, words: str) -> None:
    with pytest.raises(DataError, match=words):
        unpacked(body, {"content-encoding": encoding})


@pytest.mark.parametrize("encoding", ["br", "zstd", "compress", "gzip, br", "x" * 5000])
def test_other_encodings_are_refused(encoding: str) -> None:
    with pytest.raises(UnknownEncodingError, match="expected gzip, deflate or none"):
        unpacked(gzip.compress(BODY, mtime=0), {"content-encoding": encoding})


@pytest.mark.parametrize(
    "body",
    [
        b'{"inputs":[' + b"{}," * (Limits.body_bytes // 3 - 10) + b"{}]}",
        b'{"inputs":' + b"[" * (Limits.body_bytes - 20) + b"}",
        b'{"a":[' + b"[]," * (Limits.body_bytes // 3 - 10) + b"[]]}",
        b'{"a":[' + b"0," * (Limits.body_bytes // 2 - 10) + b"0]}",
        b'{"a":[' + b'"",' * (Limits.body_bytes // 3 - 10) + b'""]}',
        b"{" + b'"a":1,' * (Limits.body_bytes // 6 - 10) + b'"b":1}',
        b'{"a":' * (Limits.body_bytes // 5 - 10),
    ],
    ids=["objects", "nested lists", "lists", "numbers", "texts", "keys", "nested objects"],
)
def test_json_that_would_grow_is_refused_at_once(body: bytes) -> None:
    tracemalloc.start()
    began = time.process_time()
    with pytest.raises(DataError, match=r"The JSON has about \d+ (keys|objects|lists|values)|not JSON"):
        parsed(body)
    seconds, (_, peak) = time.process_time() - began, tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert seconds < 1.0
    assert peak < 2**20


def test_what_clients_send_is_parsed() -> None:
    pixels = [[[1, 2, 3]] * 640] * 480
    for value in (
        {"instances": ["A" * 10_000_000] * 6},
        {"inputs": [{"name": "image", "shape": [480, 640, 3], "datatype": "UINT8", "data": pixels}]},
        {"inputs": [{"name": "image", "parameters": {"heatmap": True}} for _ in range(64)]},
        [{}] * MOST_OBJECTS,
    ):
        assert parsed(json.dumps(value).encode()) == value
