"""Make every call that Triton's client knows, and print what came of each as JSON (``test_triton.py`` reads it).

It runs under an interpreter of its own: Triton's messages and KServe's have the same names and cannot be loaded into
one process, and its client pins an older ml-dtypes than ours.

python triton_calls.py HTTP_PORT GRPC_PORT LINE VERSION IMAGE…
"""

from __future__ import annotations

import asyncio
import base64
import json
import queue
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import tritonclient.grpc
import tritonclient.grpc.aio
import tritonclient.http
import tritonclient.http.aio
from tritonclient.utils import InferenceServerException

Outcome = dict[str, Any]


class Calls:
    """The calls that both clients have, and what came of each.

    Args:
        module: ``tritonclient.http`` or ``tritonclient.grpc``.
        client: Connected.
        arguments: Line, version and images.
    """

    def __init__(self, module: Any, client: Any, line: str, version: str, images: list[bytes]) -> None:
        self.module, self.client, self.line, self.version, self.images = module, client, line, version, images
        self.over_http = module is tritonclient.http
        self.outcomes: dict[str, Outcome] = {}

    def note(self, name: str, call: Callable[[], Any]) -> None:
        """Make a call and note its value or its error."""
        self.outcomes[name] = outcome(call)

    def all(self) -> dict[str, Outcome]:
        """Make all calls."""
        self._about()
        self._infer()
        self._unsupported()
        self.note("live at the end", self.client.is_server_live)
        self.note("ready at the end", lambda: self.client.is_model_ready(self.line))
        self.note("infer at the end", lambda: self.infer(self.bytes_input()))
        return self.outcomes

    def _about(self) -> None:
        client, line = self.client, self.line
        self.note("live", client.is_server_live)
        self.note("ready", client.is_server_ready)
        self.note("model ready", lambda: client.is_model_ready(line))
        self.note("model ready in its version", lambda: client.is_model_ready(line, self.version))
        self.note("model ready in another version", lambda: client.is_model_ready(line, "99"))
        self.note("another model ready", lambda: client.is_model_ready("nothing"))
        as_json = {} if self.over_http else {"as_json": True}
        self.note("server metadata", lambda: client.get_server_metadata(**as_json))
        self.note("model metadata", lambda: client.get_model_metadata(line, **as_json))
        self.note("model metadata in its version", lambda: client.get_model_metadata(line, self.version, **as_json))
        self.note("model metadata in another version", lambda: client.get_model_metadata(line, "99", **as_json))
        self.note("metadata of another model", lambda: client.get_model_metadata("nothing", **as_json))

    def _infer(self) -> None:
        tensor, infer, wanted = self.bytes_input, self.infer, self.wanted
        self.note("infer", lambda: infer(tensor()))
        self.note("infer in its version", lambda: infer(tensor(), model_version=self.version))
        self.note("infer in another version", lambda: infer(tensor(), model_version="99"))
        self.note("infer with an id", lambda: infer(tensor(), request_id="42"))
        self.note("infer one output", lambda: infer(tensor(), outputs=[wanted("score")]))
        self.note("infer a heat-map", lambda: infer(tensor(), outputs=[wanted("decision"), wanted("heatmap")]))
        self.note("infer with parameters", lambda: infer(tensor(), parameters={"boxes": True}))
        self.note("infer unknown output", lambda: infer(tensor(), outputs=[wanted("nothing")]))
        self.note("infer octets", lambda: infer(self.octets_input()))
        self.note("infer unknown input", lambda: infer(tensor("nothing")))
        self.note("infer floats", lambda: infer(self.floats_input()))
        self.note("infer no picture", lambda: infer(tensor(images=[b"hello"])))
        self.note("infer another model", lambda: infer(tensor(), line="nothing"))
        self.note("infer classes", lambda: infer(tensor(), outputs=[wanted("score", class_count=1)]))
        self.note("infer a sequence", lambda: infer(tensor(), sequence_id=7, sequence_start=True))
        self.note("infer with priority and timeout", lambda: infer(tensor(), priority=1, timeout=10_000_000))
        self.note("async infer", lambda: self.async_infer(tensor()))
        if self.over_http:
            compressed = {"request_compression_algorithm": "gzip", "response_compression_algorithm": "gzip"}
            self.note("infer compressed", lambda: infer(tensor(), **compressed))
            self.note("infer deflated", lambda: infer(tensor(), request_compression_algorithm="deflate"))
            self.note("infer json", lambda: infer(self.json_input()))
        else:
            self.note("infer compressed", lambda: infer(tensor(), compression_algorithm="gzip"))
            self.note("stream infer", self.stream_infer)
            self.note("infer too late", lambda: infer(tensor(), client_timeout=1e-5))

    def _unsupported(self) -> None:
        client, line = self.client, self.line
        for name, call in {
            "config": lambda: client.get_model_config(line),
            "index": client.get_model_repository_index,
            "load": lambda: client.load_model(line),
            "unload": lambda: client.unload_model(line),
            "unload with dependents": lambda: client.unload_model(line, unload_dependents=True),
            "statistics": lambda: client.get_inference_statistics(line),
            "statistics of all": client.get_inference_statistics,
            "trace settings": lambda: client.get_trace_settings(line),
            "change trace settings": lambda: client.update_trace_settings(settings={"trace_level": ["OFF"]}),
            "log settings": client.get_log_settings,
            "change log settings": lambda: client.update_log_settings({"log_verbose_level": 9}),
            "shared memory": client.get_system_shared_memory_status,
            "register shared memory": lambda: client.register_system_shared_memory("a", "/a", 8),
            "unregister shared memory": client.unregister_system_shared_memory,
            "cuda memory": client.get_cuda_shared_memory_status,
            "register cuda memory": lambda: client.register_cuda_shared_memory("a", base64.b64encode(b"x" * 64), 0, 8),
            "unregister cuda memory": client.unregister_cuda_shared_memory,
        }.items():
            self.note(name, call)

    def bytes_input(self, name: str = "image", images: list[bytes] | None = None) -> Any:
        """Return a tensor of datatype BYTES, one element an image."""
        array = np.array(self.images if images is None else images, dtype=np.object_)
        tensor = self.module.InferInput(name, list(array.shape), "BYTES")
        tensor.set_data_from_numpy(array)
        return tensor

    def octets_input(self) -> Any:
        """Return the bytes of one image as a tensor of datatype UINT8."""
        array = np.frombuffer(self.images[0], np.uint8)
        tensor = self.module.InferInput("image", list(array.shape), "UINT8")
        tensor.set_data_from_numpy(array)
        return tensor

    def floats_input(self) -> Any:
        """Return a tensor of a datatype that no image has."""
        tensor = self.module.InferInput("image", [2], "FP32")
        tensor.set_data_from_numpy(np.zeros(2, np.float32))
        return tensor

    def json_input(self) -> Any:
        """Return base64 texts as JSON, not in the binary extension."""
        texts = [base64.b64encode(image).decode() for image in self.images]
        tensor = self.module.InferInput("image", [len(texts)], "BYTES")
        tensor.set_data_from_numpy(np.array(texts, dtype=np.object_), binary_data=False)
        return tensor

    def wanted(self, name: str, **more: Any) -> Any:
        """Return a requested output."""
        return self.module.InferRequestedOutput(name, **more)

    def infer(self, tensor: Any, line: str = "", **more: Any) -> Any:
        """Infer and describe the outputs."""
        return described(self.client.infer(line or self.line, [tensor], **more))

    def async_infer(self, tensor: Any) -> Any:
        """Infer with the client's own concurrency."""
        if self.over_http:
            return described(self.client.async_infer(self.line, [tensor]).get_result())
        found: queue.Queue[Any] = queue.Queue()
        self.client.async_infer(self.line, [tensor], lambda result, error: found.put(error or result))
        answer = found.get(timeout=60)
        if isinstance(answer, Exception):
            raise answer
        return described(answer)

    def stream_infer(self) -> Any:
        """Infer over a stream, which KServe's protocol does not have."""
        found: queue.Queue[Any] = queue.Queue()
        self.client.start_stream(lambda result, error: found.put(error or result))
        try:
            with suppress(InferenceServerException):  # the stream may have failed already; the reason is in the queue
                self.client.async_stream_infer(self.line, [self.bytes_input()])
            answer = found.get(timeout=60)
        finally:
            self.client.stop_stream()
        if isinstance(answer, Exception):
            raise answer
        return described(answer)


def outcome(call: Callable[[], Any]) -> Outcome:
    """Return the value of a call, or the status and text of the error that the client raises for it."""
    try:
        return {"value": call()}
    except InferenceServerException as error:
        return {"status": str(error.status()), "error": str(error.message())}
    except Exception as error:
        return {"crash": repr(error)}


def described(result: Any) -> dict[str, Any]:
    """Return the outputs, as JSON values, and the id of a result."""
    answer = result.get_response() if isinstance(result, tritonclient.http.InferResult) else result.get_response(True)
    names = [output["name"] for output in answer["outputs"]]
    arrays = {name: result.as_numpy(name) for name in names}
    return {
        "id": answer.get("id", ""),
        "version": answer.get("model_version", ""),
        "outputs": {name: [_plain(value) for value in array.ravel()] for name, array in arrays.items()},
    }


def _plain(value: Any) -> float | str:
    if isinstance(value, bytes):
        return value.decode()
    return value if isinstance(value, str) else float(value)


async def with_asyncio(http: str, grpc: str, line: str, images: list[bytes]) -> dict[str, Any]:
    """Infer with both asyncio clients, several requests at once."""
    found: dict[str, Any] = {}
    for name, module, plain, address in (
        ("http", tritonclient.http.aio, tritonclient.http, http),
        ("grpc", tritonclient.grpc.aio, tritonclient.grpc, grpc),
    ):
        async with module.InferenceServerClient(address) as client:
            requests = []
            for image in images:
                tensor = plain.InferInput("image", [1], "BYTES")
                tensor.set_data_from_numpy(np.array([image], dtype=np.object_))
                requests.append(client.infer(line, [tensor]))
            found[name] = [described(result) for result in await asyncio.gather(*requests)]
    return found


def main(http_port: str, grpc_port: str, line: str, version: str, *files: str) -> None:
    """Make all calls with all clients."""
    images = [Path(file).read_bytes() for file in files]
    http, grpc = f"127.0.0.1:{http_port}", f"127.0.0.1:{grpc_port}"
    with tritonclient.http.InferenceServerClient(http) as client:
        over_http = Calls(tritonclient.http, client, line, version, images).all()
    with tritonclient.grpc.InferenceServerClient(grpc) as client:
        over_grpc = Calls(tritonclient.grpc, client, line, version, images).all()
    together = outcome(lambda: asyncio.run(with_asyncio(http, grpc, line, images)))
    print(json.dumps({"http": over_http, "grpc": over_grpc, "asyncio": together}))


if __name__ == "__main__":
    main(*sys.argv[1:])
