"""Requests and answers of the protocols V1 and V2 over REST; those of gRPC are in ``load.py``."""

from __future__ import annotations

import base64
import json
import struct
from collections.abc import Sequence

import orjson

from servers.connection import Request


def request_of(protocol: str, line: str, images: Sequence[bytes]) -> Request:
    """Encode a request for the scores of some images.

    Raises:
        KeyError: If REST has no such protocol.
    """
    return {"v1": _v1, "v2": _v2, "v2-binary": _v2_binary}[protocol](line, images)


def scores_of(protocol: str, body: bytes) -> list[float]:
    """Read the scores in an answer."""
    answer = orjson.loads(body)
    if protocol == "v1":
        return [float(prediction["score"]) for prediction in answer["predictions"]]
    return [float(score) for output in answer["outputs"] if output["name"] == "score" for score in output["data"]]


def packed(images: Sequence[bytes]) -> bytes:
    """Join images as a binary tensor of datatype BYTES."""
    return b"".join(struct.pack("<I", len(image)) + image for image in images)


def _v1(line: str, images: Sequence[bytes]) -> Request:
    instances = [{"image": {"b64": base64.b64encode(image).decode()}} for image in images]
    return _posted(f"/v1/models/{line}:predict", json.dumps({"instances": instances}).encode())


def _v2(line: str, images: Sequence[bytes]) -> Request:
    data = [base64.b64encode(image).decode() for image in images]
    tensor = {"name": "image", "shape": [len(images)], "datatype": "BYTES", "data": data}
    return _posted(f"/v2/models/{line}/infer", json.dumps({"inputs": [tensor]}).encode())


def _v2_binary(line: str, images: Sequence[bytes]) -> Request:
    tail = packed(images)
    parameters = {"binary_data_size": len(tail)}
    tensor = {"name": "image", "shape": [len(images)], "datatype": "BYTES", "parameters": parameters}
    head = json.dumps({"inputs": [tensor]}).encode()
    headers = {"Content-Type": "application/octet-stream", "Inference-Header-Content-Length": str(len(head))}
    return _posted(f"/v2/models/{line}/infer", head + tail, headers)


def _posted(path: str, body: bytes, headers: dict[str, str] | None = None) -> Request:
    return Request("POST", path, body, headers or {"Content-Type": "application/json"})
