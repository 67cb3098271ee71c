"""Decode V1 and V2 request bodies for the model, and encode its responses."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import version
from typing import TypeVar

from kserve import InferInput, InferRequest, InferResponse
from kserve.constants.constants import INFERENCE_CONTENT_LENGTH_HEADER, PredictorProtocol
from kserve.errors import InvalidInput, ModelNotFound
from kserve.protocol.dataplane import DataPlane
from kserve.protocol.infer_type import RequestedOutput

from csflow.adapters.serving.bodies import parsed
from csflow.adapters.serving.body_limit import MAX_BODY
from csflow.adapters.serving.requests import MAX_IMAGES, clipped, names_of

MOST_OUTPUTS = 32
"""Outputs that a request names at most; there are seven."""

MOST_SIDES = 8
"""Sides of a tensor at most."""

_Field = TypeVar("_Field")


class DetectorDataPlane(DataPlane):  # type: ignore[misc]
    """KServe's data plane with gaps closed.

    A V1 body is JSON whatever its content type says; with ``; charset=utf-8`` or curl's default, KServe passes
    undecoded bytes to the model. The V2 binary extension may carry BYTES that are not UTF-8, such as a PNG. And every
    mistake in either body is an ``InvalidInput``, never a stray ``KeyError`` that ends as a 500.
    """

    stopping = False
    """True once the server has been asked to stop: it still answers, but is not ready for more."""

    async def ready(self) -> bool:
        """Tell if the server takes requests."""
        return not self.stopping

    def metadata(self) -> dict[str, object]:
        """Describe the server."""
        return {"name": "csflow", "version": version("csflow"), "extensions": ["binary_tensor_data"]}

    def require_version(self, name: str, wanted: str | None) -> str:
        """Return the version of a line that is served.

        Raises:
            ModelNotFound: If the line is not served, or in another version than is wanted.
        """
        served: str = self.get_model_from_registry(name).version
        if wanted is not None and wanted != served:
            raise UnknownVersionError(name, wanted, served)
        return served

    async def model_metadata(self, model_name: str, wanted: str | None = None) -> dict[str, object]:
        """Describe a line's inputs, outputs and version."""
        served = self.require_version(model_name, wanted)
        about: dict[str, object] = await super().model_metadata(model_name)
        return about | {"versions": [served], "platform": "csflow"}

    def decode(
        self,
        body: object,
        headers: Mapping[str, str],
        protocol_version: str = PredictorProtocol.REST_V1.value,
        model_name: str | None = None,
    ) -> tuple[object, dict[str, object]]:
        """Decode a body into the argument of the model's ``predict``."""
        if not isinstance(body, bytes):
            decoded: tuple[object, dict[str, object]] = super().decode(body, headers, protocol_version, model_name)
            return decoded
        if protocol_version.lower() == PredictorProtocol.REST_V2.value:
            length = _json_length(body, headers)
            return infer_request(parsed(body[:length]), body[length:], model_name or ""), {}
        return parsed(body), {}

    def encode(
        self, model_name: str, response: object, headers: Mapping[str, str], req_attributes: Mapping[str, object]
    ) -> tuple[object, dict[str, str]]:
        """Encode the model's response as a body and its headers (no cloud events)."""
        if not isinstance(response, InferResponse):
            return response, {}
        encoded, json_length = response.to_rest()
        return encoded, {} if json_length is None else {INFERENCE_CONTENT_LENGTH_HEADER: str(json_length)}


class UnknownVersionError(ModelNotFound):  # type: ignore[misc]
    """A line is served, but not in the version that the client asks for (404)."""

    def __init__(self, name: str, wanted: str, served: str) -> None:
        super().__init__(name)
        self.reason = f"Line {name} is served in version {served}, not in {wanted[:40]!r}."


def infer_request(head: object, tail: bytes, model_name: str) -> InferRequest:
    """Read a V2 request with the binary extension.

    Args:
        head: The JSON part, parsed.
        tail: The tensors' bytes after it.
        model_name: Name of the model in the address.

    Raises:
        InvalidInput: If a field is missing or wrong; the text names it.
    """
    fields = _object(head, "The request")
    inputs: list[InferInput] = []
    for index, tensor in enumerate(_objects(fields, "inputs", most=MAX_IMAGES)):
        read, tail = _input(tensor, f"inputs[{index}]", tail)
        inputs.append(read)
    if tail:
        raise InvalidInput(f"{len(tail)} bytes follow the last tensor. Check 'binary_data_size' of every input.")
    wanted = [
        RequestedOutput(name=_field(output, "name", str, f"outputs[{index}]"), parameters=_parameters(output))
        for index, output in enumerate(_objects(fields, "outputs", most=MOST_OUTPUTS, optional=True))
    ]
    return InferRequest(
        model_name=model_name,
        infer_inputs=inputs,
        request_id=str(fields["id"]) if fields.get("id") is not None else None,
        parameters=_parameters(fields),
        request_outputs=wanted or None,
    )


def _json_length(body: bytes, headers: Mapping[str, str]) -> int:
    """Return the length of the JSON part: a header of the extension states it; without it the whole body is JSON."""
    given = headers.get(INFERENCE_CONTENT_LENGTH_HEADER)
    if given is None:
        return len(body)
    if not (given.isascii() and given.isdigit() and len(given) < 12) or int(given) > len(body):
        raise InvalidInput(
            f"Header {INFERENCE_CONTENT_LENGTH_HEADER} is {given[:40]!r}, "
            f"expected the length of the JSON part, at most {len(body)}."
        )
    return int(given)


def _input(fields: dict[str, object], path: str, tail: bytes) -> tuple[InferInput, bytes]:
    """Read one tensor; return it and the rest of the binary part."""
    parameters = _parameters(fields) or {}
    shape = _field(fields, "shape", list, path)
    if len(shape) > MOST_SIDES or not all(_is_count(side) for side in shape):
        raise InvalidInput(f"{path}.shape is {clipped(shape)}, expected a list of at most {MOST_SIDES} whole numbers.")
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
        raise InvalidInput(
            f"{path} has no 'data', and its parameter 'binary_data_size' is {clipped(size)}; "
            f"{len(tail)} bytes follow the JSON part."
        )
    tensor._raw_data = tail[:size]
    return tensor, tail[size:]


def _object(value: object, path: str) -> dict[str, object]:
    if not isinstance(value, dict):
        raise InvalidInput(f"{path} is not a JSON object.")
    return value


def _objects(fields: dict[str, object], key: str, *, most: int, optional: bool = False) -> list[dict[str, object]]:
    value = fields.get(key)
    if value is None and optional:
        return []
    if not isinstance(value, list):
        raise InvalidInput(f"Field '{key}' is missing or not a list; found the fields {names_of(fields)}.")
    if len(value) > most:
        raise InvalidInput(f"'{key}' has {len(value)} entries, expected at most {most}.")
    return [_object(each, f"{key}[{index}]") for index, each in enumerate(value)]


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= MAX_BODY


def _parameters(fields: dict[str, object]) -> dict[str, object] | None:
    value = fields.get("parameters")
    return None if value is None else _object(value, "'parameters'")


def _field(fields: dict[str, object], key: str, kind: type[_Field], path: str) -> _Field:
    value = fields.get(key)
    if not isinstance(value, kind):
        expected = "text" if kind is str else "a list"
        raise InvalidInput(f"{path}.{key} is missing or not {expected}; found the fields {names_of(fields)}.")
    return value
