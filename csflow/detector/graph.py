"""Turn a fitted model into an ONNX graph that reads the features of the trunk's graph, and join the two.

The graph begins with the features as :func:`csflow.features.trunk_graph.trunk_graph` returns them and ends with score
and map. Its weights keep their names, so that they can stay in the safetensors files of the detector directory.
"""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import onnx
import onnx.compose
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn

from csflow.detector.model import Model
from csflow.features.entries import Shape
from csflow.features.trunk_graph import FEATURES, bind_weights, traced

_TYPES = {
    "F32": TensorProto.FLOAT,
    "F16": TensorProto.FLOAT16,
    "I16": TensorProto.INT16,
    "I64": TensorProto.INT64,
}


def model_graph(model: Model, shapes: Sequence[Shape], threshold: float | None) -> onnx.ModelProto:
    """Trace a model into a graph, whose weights are still to be given (:func:`leave_weights_in`).

    The input ``features`` is ``(N, values)`` float32; outputs are ``score`` ``(N,)``, ``map`` ``(N, h, w)``, both
    float32, and with a threshold ``defective`` ``(N,)`` bool.

    Args:
        model: The model.
        shapes: ``(C, h, w)`` of every feature map.
        threshold: The score above which a part is defective.

    Raises:
        ModelError: If the model has an operation ONNX does not know.
    """
    example = torch.zeros(2, sum(math.prod(shape) for shape in shapes))
    graph = traced(_FlatModel(model, shapes), {FEATURES: example}, ["score", "map"], type(model).__name__)
    if threshold is not None:
        _decide(graph.graph, threshold)
    return graph


def joined(trunk: onnx.ModelProto, model: onnx.ModelProto) -> onnx.ModelProto:
    """Join the graphs of trunk and model, with their weights inside, into one from sized images to score and map."""
    renamed = onnx.compose.add_prefix(trunk, "trunk/", rename_inputs=False, rename_outputs=False)
    del renamed.metadata_props[:]  # the model's describe the whole
    whole = onnx.compose.merge_models(renamed, model, io_map=[(FEATURES, FEATURES)])
    whole.ir_version = model.ir_version
    return whole


def leave_weights_in(model: onnx.ModelProto, files: Mapping[str, Path]) -> None:
    """Refer a graph's weights to safetensors files in its directory, so that they exist once.

    Args:
        model: A graph without weights.
        files: The file for each first part of a weight's name, ``model`` or ``backbone``.
    """
    tables = {part: (path.name, *_safetensors_table(path)) for part, path in files.items()}

    def stored(name: str) -> TensorProto:
        part, _, tensor = name.partition(".")
        file, table, start = tables[part]
        entry = table[tensor]
        first, last = entry["data_offsets"]
        proto = TensorProto(data_type=_TYPES[entry["dtype"]], dims=entry["shape"])
        proto.data_location = TensorProto.EXTERNAL
        for key, value in (("location", file), ("offset", start + first), ("length", last - first)):
            proto.external_data.add(key=key, value=str(value))
        return proto

    bind_weights(model, stored)


def with_weights(path: Path) -> onnx.ModelProto:
    """Read a graph, and put the weights in that are in files of its directory (:func:`leave_weights_in`)."""
    model = onnx.load(path, load_external_data=False)
    for tensor in model.graph.initializer:
        if tensor.data_location == TensorProto.EXTERNAL:
            stored = {entry.key: entry.value for entry in tensor.external_data}
            with (path.parent / stored["location"]).open("rb") as file:
                file.seek(int(stored["offset"]))
                tensor.raw_data = file.read(int(stored["length"]))
            del tensor.external_data[:]
            tensor.data_location = TensorProto.DEFAULT
    return model


class _FlatModel(nn.Module):
    """A model that reads features flattened and joined."""

    def __init__(self, model: Model, shapes: Sequence[Shape]) -> None:
        super().__init__()
        on_cpu = all(tensor.device.type == "cpu" for tensor in model.state_dict().values())
        self.model = model if on_cpu else copy.deepcopy(model).cpu()
        self.shapes = [tuple(shape) for shape in shapes]

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Return scores ``(N,)`` and maps ``(N, h, w)`` of features ``(N, values)``."""
        flat = torch.split_with_sizes(features, [math.prod(shape) for shape in self.shapes], dim=1)
        pyramid = [level.reshape(-1, *shape) for level, shape in zip(flat, self.shapes, strict=True)]
        return cast("tuple[Tensor, Tensor]", self.model(pyramid))


def _decide(graph: onnx.GraphProto, threshold: float) -> None:
    """Add the output ``defective``. A score that is not a number must not pass as good, hence the detour."""
    graph.initializer.append(numpy_helper.from_array(np.array(threshold, np.float32), "threshold"))
    graph.node.append(helper.make_node("LessOrEqual", ["score", "threshold"], ["good"]))
    graph.node.append(helper.make_node("Not", ["good"], ["defective"]))
    graph.output.append(helper.make_tensor_value_info("defective", TensorProto.BOOL, ["N"]))


def _safetensors_table(path: Path) -> tuple[dict[str, dict[str, Any]], int]:
    """Read dtype, shape and offsets of every tensor of a safetensors file, and the position of the first tensor."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        return json.loads(file.read(length)), 8 + length
