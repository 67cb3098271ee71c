"""gRPC requests are counted before protobuf makes anything of them."""

from __future__ import annotations

import time

import pytest

from csflow.adapters.serving import without_arguments
from csflow.adapters.serving.bodies import MOST_VALUES
from csflow.errors import DataError

with without_arguments():
    from kserve.protocol.grpc import grpc_predict_v2_pb2 as pb

    from csflow.adapters.serving.messages import parsed_message, request_of_message

Tensor = pb.ModelInferRequest.InferInputTensor


def read(raw: bytes) -> object:
    return request_of_message(parsed_message(raw, pb.ModelInferRequest))


def test_what_clients_send_is_read() -> None:
    tensors = [
        Tensor(name="image", datatype="BYTES", shape=[1], contents=pb.InferTensorContents(bytes_contents=[b"abc"])),
        Tensor(name="image", datatype="UINT8", shape=[3], contents=pb.InferTensorContents(uint_contents=[1, 128, 255])),
    ]
    tensors[0].parameters["heatmap"].bool_param = True
    message = pb.ModelInferRequest(model_name="tiles", model_version="7", id="a", inputs=tensors)
    message.outputs.add(name="score").parameters["binary_data"].bool_param = True
    request = request_of_message(parsed_message(message.SerializeToString(), pb.ModelInferRequest))
    assert (request.model_name, request.model_version, request.id) == ("tiles", "7", "a")
    assert [tensor.data or tensor._raw_data for tensor in request.inputs] == [[b"abc"], b"\x01\x80\xff"]
    assert request.inputs[0].parameters == {"heatmap": True}
    assert [(output.name, output.parameters) for output in request.request_outputs] == [
        ("score", {"binary_data": True})
    ]


def test_as_many_numbers_as_allowed_are_read_at_once() -> None:
    contents = pb.InferTensorContents(uint_contents=[200] * (MOST_VALUES - 1))
    raw = pb.ModelInferRequest(inputs=[Tensor(datatype="UINT8", shape=[1], contents=contents)]).SerializeToString()
    began = time.process_time()
    read(raw)
    assert time.process_time() - began < 2.0


@pytest.mark.parametrize(
    ("raw", "reason"),
    [
        (b"\x2a\x00" * 3000, "more than 2000 fields"),
        (b"\x32\x00" * 3000, "more than 2000 fields"),
        (b"\x3a\x00" * 3000, "more than 2000 fields"),
        (b"\x08\x01" * 3000, "more than 2000 fields"),
        (b"\x2a\x06\x2a\x04\x42\x00\x42\x00" * 1000, "more than 2000 fields"),
        (pb.ModelInferRequest(inputs=[Tensor(shape=[1] * (MOST_VALUES + 1))]).SerializeToString(), "numbers"),
        (b"\xff\xff", "no number"),
        (b"\x2a\x05\x00", "5 bytes, but 1 are left"),
        (b"\x2b\x2c", "kind 3"),
        (b"\x0a\x01\xff", "not a ModelInferRequest"),
        (b"\x80" * 11, "no number"),
        (b"\x0d\x00", "4 bytes, but 1 are left"),
        (pb.ModelInferRequest(id="x" * 201).SerializeToString(), "'id'"),
        (
            pb.ModelInferRequest(
                inputs=[Tensor(datatype="UINT8", contents=pb.InferTensorContents(uint_contents=[256]))]
            ).SerializeToString(),
            "above 255",
        ),
        (pb.ModelInferRequest(raw_input_contents=[b"a"]).SerializeToString(), "0 inputs, but 1 raw_input_contents"),
        (
            pb.ModelInferRequest(
                inputs=[Tensor(contents=pb.InferTensorContents(bytes_contents=[b"a"]))], raw_input_contents=[b"a"]
            ).SerializeToString(),
            "has contents although",
        ),
    ],
)
def test_what_is_too_much_or_no_message_is_refused(raw: bytes, reason: str) -> None:
    with pytest.raises(DataError, match=reason):
        read(raw)
