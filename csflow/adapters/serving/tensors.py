"""Read V2 requests: tensors in JSON, in the binary extension, and what the client wishes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

from kserve import InferInput, InferRequest
from kserve.constants.constants import INFERENCE_CONTENT_LENGTH_HEADER
from kserve.protocol.infer_type import RequestedOutput, to_http_parameters

from csflow.adapters.serving.bodies import parsed
from csflow.adapters.serving.requests import (
    LONGEST_SIDE,
    MAX_IMAGES,
    MOST_SIDES,
    WISHES,
    Content,
    RequestedImage,
    boolean,
    check_count,
    clipped,
    images_of_tensor,
    names_of,
    wishes_of,
)
from csflow.adapters.serving.responses import DATATYPES
from csflow.errors import DataError

MOST_OUTPUTS = 32
"""Outputs that a request names at most; there are seven."""

_LONGEST_ID = 200
"""Characters of a request's name at most; it is repeated in the response."""

_SWITCHES = ("binary_data", "binary_data_output")
"""Parameters of the binary extension that are true or false."""

_Field = TypeVar("_Field")


def request_of_body(body: bytes, headers: Mapping[str, str], model_name: str) -> InferRequest:
    """Read a V2 body: JSON, with the tensors' bytes after it if a header says how long the JSON is.

    The binary extension may carry BYTES that are not UTF-8, such as a PNG.

    Args:
        body: As unpacked.
        headers: Of the request, names in lower case.
        model_name: Name of the line in the address.

    Raises:
        DataError: If a field is missing or wrong; the text names it.
    """
    length = _json_length(body, headers)
    return infer_request(parsed(body[:length]), body[length:], model_name)


def images_of_request(request: InferRequest) -> list[RequestedImage]:
    """Read the images of a V2 request; a client may ask for ``heatmap`` or ``boxes`` by naming it among the outputs.

    Raises:
        DataError: If something does not fit.
    """
    if not request.inputs:
        raise DataError("The request has no input. Expected one input named 'image'.")
    images = [content for tensor in request.inputs for content in _images(tensor)]
    check_count(len(images))
    wanted = outputs_of_request(request)
    wishes = {name: True for name in WISHES if name in wanted}
    for parameters in (request.parameters, *(tensor.parameters for tensor in request.inputs)):
        wishes |= wishes_of(to_http_parameters(parameters) if parameters else None)
    return [RequestedImage(content, **wishes) for content in images]


def with_images(request: InferRequest) -> tuple[InferRequest, list[RequestedImage]]:
    """Read the images of a V2 request, and return it without its tensors, so that nothing is kept twice.

    Raises:
        DataError: If something does not fit.
    """
    images = images_of_request(request)
    request.inputs = []
    return request, images


def outputs_of_request(request: InferRequest) -> set[str]:
    """Return the names of the outputs that the client chose; an empty set means all.

    Raises:
        DataError: If there is no such output.
    """
    wanted = {output.name for output in request.request_outputs or []}
    if unknown := sorted(wanted - DATATYPES.keys()):
        raise DataError(f"There is no output {clipped(unknown[0])}. Expected some of {', '.join(DATATYPES)}.")
    return wanted


def _images(tensor: InferInput) -> list[Content]:
    raw = tensor._raw_data  # kserve has no public way to read a binary tensor that is not UTF-8
    return images_of_tensor(tensor.name, tensor.datatype, tensor.shape, tensor.data, raw)


def infer_request(head: object, tail: bytes, model_name: str) -> InferRequest:
    """Read a V2 request with the binary extension.

    Args:
        head: The JSON part, parsed.
        tail: The tensors' bytes after it.
        model_name: Name of the model in the address.

    Raises:
        DataError: If a field is missing or wrong; the text names it.
    """
    fields = _object(head, "The request")
    inputs: list[InferInput] = []
    for index, tensor in enumerate(_objects(fields, "inputs", most=MAX_IMAGES)):
        read, tail = _input(tensor, f"inputs[{index}]", tail)
        inputs.append(read)
    if tail:
        raise DataError(f"{len(tail)} bytes follow the last tensor. Check 'binary_data_size' of every input.")
    wanted = [
        RequestedOutput(name=_field(output, "name", str, f"outputs[{index}]"), parameters=_parameters(output))
        for index, output in enumerate(_objects(fields, "outputs", most=MOST_OUTPUTS, optional=True))
    ]
    return InferRequest(
        model_name=model_name,
        infer_inputs=inputs,
        request_id=checked_id(fields.get("id")),
        parameters=_parameters(fields),
        request_outputs=wanted or None,
    )


def checked_id(value: object) -> str | None:
    """Return what the client calls its request, or None.

    Raises:
        DataError: If that is no text or number, or too long.
    """
    if value is None or value == "":
        return None
    if not isinstance(value, str | int | float) or len(text := str(value)) > _LONGEST_ID:
        raise DataError(f"'id' is {clipped(value)}, expected a text of at most {_LONGEST_ID} characters.")
    return text


def _json_length(body: bytes, headers: Mapping[str, str]) -> int:
    """Return the length of the JSON part: a header of the extension states it; without it the whole body is JSON."""
    given = headers.get(INFERENCE_CONTENT_LENGTH_HEADER)
    if given is None:
        return len(body)
    if not (given.isascii() and given.isdigit() and len(given) < 12) or int(given) > len(body):
        raise DataError(
            f"Header {INFERENCE_CONTENT_LENGTH_HEADER} is {given[:40]!r}, "
            f"expected the length of the JSON part, at most {len(body)}."
        )
    return int(given)


def _input(fields: dict[str, object], path: str, tail: bytes) -> tuple[InferInput, bytes]:
    """Read one tensor; return it and the rest of the binary part."""
    parameters = _parameters(fields) or {}
    shape = _field(fields, "shape", list, path)
    if len(shape) > MOST_SIDES or not all(_is_count(side) for side in shape):
        raise DataError(f"{path}.shape is {clipped(shape)}, expected a list of at most {MOST_SIDES} whole numbers.")
    tensor = InferInput(
        name=_field(fields, "name", str, path),
        shape=shape,
        datatype=_field(fields, "datatype", str, path),
        parameters=parameters,
    )
    if "data" in fields:
        tensor.data = _field(fields, "data", list, path)
        return tensor, tail
    size = parameters.pop("binary_data_size", None)
    if not isinstance(size, int) or isinstance(size, bool) or not 0 <= size <= len(tail):
        raise DataError(
            f"{path} has no 'data', and its parameter 'binary_data_size' is {clipped(size)}; "
            f"{len(tail)} bytes follow the JSON part."
        )
    tensor._raw_data = tail[:size]
    return tensor, tail[size:]


def _object(value: object, path: str) -> dict[str, object]:
    if not isinstance(value, dict):
        raise DataError(f"{path} is not a JSON object.")
    return value


def _objects(fields: dict[str, object], key: str, *, most: int, optional: bool = False) -> list[dict[str, object]]:
    value = fields.get(key)
    if value is None and optional:
        return []
    if not isinstance(value, list):
        raise DataError(f"Field '{key}' is missing or not a list; found the fields {names_of(fields)}.")
    if len(value) > most:
        raise DataError(f"'{key}' has {len(value)} entries, expected at most {most}.")
    return [_object(each, f"{key}[{index}]") for index, each in enumerate(value)]


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= LONGEST_SIDE


def _parameters(fields: dict[str, object]) -> dict[str, object] | None:
    value = fields.get("parameters")
    if value is None:
        return None
    parameters = _object(value, "'parameters'")
    for name in _SWITCHES:
        if name in parameters:
            boolean(parameters[name], f"parameters.{name}")
    return parameters


def _field(fields: dict[str, object], key: str, kind: type[_Field], path: str) -> _Field:
    value = fields.get(key)
    if not isinstance(value, kind):
        expected = "text" if kind is str else "a list"
        raise DataError(f"{path}.{key} is missing or not {expected}; found the fields {names_of(fields)}.")
    return value
