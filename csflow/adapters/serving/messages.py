"""Read gRPC requests for scores after counting what they contain, because protobuf makes of two bytes an object.

A message of 64 MiB could contain 32 million empty inputs, which take gigabytes. So the bytes are walked first, without
making anything of them: https://protobuf.dev/programming-guides/encoding/.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from google.protobuf.message import DecodeError, Message  # type: ignore[import-untyped]
from kserve import InferInput, InferRequest
from kserve.protocol.grpc import grpc_predict_v2_pb2 as pb
from kserve.protocol.infer_type import RequestedOutput, to_http_parameters

from csflow.adapters.serving.bodies import MOST_VALUES
from csflow.adapters.serving.tensors import checked_id
from csflow.errors import DataError

MOST_FIELDS = 2_000
"""Fields of a request for scores at most, those of its inputs and outputs included."""

_INPUTS, _OUTPUTS, _CONTENTS, _SHAPE = 5, 6, 5, 3
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_TENSOR: dict[int, Any] = {_CONTENTS: {}}
_NESTED: dict[int, Any] = {_INPUTS: _TENSOR, _OUTPUTS: {}}
_NUMBERS = range(1, 8)
"""Fields of numbers in the contents of a tensor; field 8 has bytes."""


def parsed_message(raw: bytes, kind: type[Message]) -> Any:
    """Parse a message.

    Raises:
        DataError: If it is no such message, or contains too much.
    """
    if kind is pb.ModelInferRequest:
        _check_counts(memoryview(raw))
    message = kind()
    try:
        message.ParseFromString(raw)
    except DecodeError as error:
        raise DataError(f"The message is not a {kind.__name__}: {error}.") from error
    return message


def request_of_message(message: Any) -> InferRequest:
    """Read a request for scores.

    Raises:
        DataError: If the content of a tensor is missing or there twice, or of another kind than its datatype says.
    """
    raw = message.raw_input_contents
    if raw and len(raw) != len(message.inputs):
        raise DataError(f"The request has {len(message.inputs)} inputs, but {len(raw)} raw_input_contents.")
    inputs = []
    for tensor in message.inputs:
        if raw and tensor.HasField("contents"):
            raise DataError(f"Input {tensor.name[:40]!r} has contents although there are raw_input_contents.")
        parameters = to_http_parameters(tensor.parameters)
        inputs.append(InferInput(tensor.name, list(tensor.shape), tensor.datatype, parameters=parameters))
        if not raw:
            _fill(inputs[-1], tensor.contents)
    return InferRequest(
        message.model_name,
        inputs,
        request_id=checked_id(message.id),
        raw_inputs=raw,
        from_grpc=True,
        parameters=to_http_parameters(message.parameters),
        request_outputs=[
            RequestedOutput(name=output.name, parameters=to_http_parameters(output.parameters))
            for output in message.outputs
        ]
        or None,
        model_version=message.model_version,
    )


def _fill(tensor: InferInput, contents: Any) -> None:
    if tensor.datatype != "UINT8":
        tensor.data = list(contents.bytes_contents)
        return
    try:
        tensor._raw_data = bytes(contents.uint_contents)
    except ValueError as error:
        raise DataError("Input 'image' of datatype UINT8 has a value above 255.") from error


def _check_counts(raw: memoryview) -> None:
    fields = values = 0
    pending: list[tuple[memoryview, Any, bool]] = [(raw, _NESTED, False)]
    while pending:
        content, nested, contents = pending.pop()
        for number, kind, value in _fields(content):
            fields += 1
            if fields > MOST_FIELDS:
                raise DataError(f"The message has more than {MOST_FIELDS} fields. Send fewer images in a request.")
            if kind != _BYTES:
                continue
            if (contents and number in _NUMBERS) or (nested is _TENSOR and number == _SHAPE):
                values += int(np.count_nonzero(np.frombuffer(value, np.uint8) < 0x80))  # each number has one such byte
                if values > MOST_VALUES:
                    raise DataError(f"The message has more than {MOST_VALUES} numbers. Send them as bytes.")
            elif number in nested:
                pending.append((value, nested[number], nested is _TENSOR))


def _fields(content: memoryview) -> Iterator[tuple[int, int, memoryview]]:
    """Yield number, wire type and value of each field."""
    offset = 0
    while offset < len(content):
        tag, offset = _varint(content, offset)
        kind = tag & 7
        if kind == _VARINT:
            size, (_, after) = 0, _varint(content, offset)
            size = after - offset
        elif kind == _BYTES:
            size, offset = _varint(content, offset)
        elif kind in (_FIXED64, _FIXED32):
            size = 8 if kind == _FIXED64 else 4
        else:
            raise DataError(f"The message has a field of the kind {kind} at byte {offset}; KServe's have none.")
        if offset + size > len(content):
            raise DataError(f"The message is cut off: a field of {size} bytes, but {len(content) - offset} are left.")
        yield tag >> 3, kind, content[offset : offset + size]
        offset += size


def _varint(content: memoryview, offset: int) -> tuple[int, int]:
    """Return a number of up to ten bytes and the offset after it."""
    value = shift = 0
    for position in range(offset, min(offset + 10, len(content))):
        value |= (content[position] & 0x7F) << shift
        if content[position] < 0x80:
            return value, position + 1
        shift += 7
    raise DataError(f"The message is damaged: no number at byte {offset}.")
