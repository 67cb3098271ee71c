"""Turn a whole detector into an ONNX graph, its weights inside or in the detector's other files.

The graph begins with that of the trunk (:mod:`csflow.features.trunk_graph`) and ends with score and map. Its weights
keep their names, so that they can stay in the safetensors files of the detector directory.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor

from csflow.config import FeatureConfig
from csflow.detector.model import Model
from csflow.features.backbone import Backbone
from csflow.features.trunk_graph import TrunkModule, bind_weights, traced

_TYPES = {
    "F32": TensorProto.FLOAT,
    "F16": TensorProto.FLOAT16,
    "I16": TensorProto.INT16,
    "I64": TensorProto.INT64,
}


def detector_graph(
    backbone: Backbone, model: Model, features: FeatureConfig, threshold: float | None
) -> onnx.ModelProto:
    """Trace trunk and model into one graph, whose weights are still to be given (:func:`leave_weights_in`).

    Inputs ``level_0`` … are ``(N, s, s, 3)`` uint8; outputs are ``score`` ``(N,)``, ``map`` ``(N, h, w)``, both
    float32, and with a threshold ``defective`` ``(N,)`` bool.

    Raises:
        ModelError: If trunk or model has an operation ONNX does not know.
    """
    graph = traced(_Scorer(backbone, model, features), features, ["score", "map"])
    if threshold is not None:
        _decide(graph.graph, threshold)
    return graph


def leave_weights_in(model: onnx.ModelProto, files: Mapping[str, Path]) -> None:
    """Refer a graph's weights to safetensors files in its directory, so that they exist once.

    Args:
        model: From :func:`detector_graph`.
        files: The file for each first part of a weight's name, ``model`` and ``backbone``.
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


def put_weights_in(model: onnx.ModelProto, directory: Path) -> None:
    """Make a graph self-contained: read the weights that are in files of ``directory`` (:func:`leave_weights_in`)."""
    for tensor in model.graph.initializer:
        if tensor.data_location == TensorProto.EXTERNAL:
            stored = {entry.key: entry.value for entry in tensor.external_data}
            with (directory / stored["location"]).open("rb") as file:
                file.seek(int(stored["offset"]))
                tensor.raw_data = file.read(int(stored["length"]))
            del tensor.external_data[:]
            tensor.data_location = TensorProto.DEFAULT


class _Scorer(TrunkModule):
    """A detector that reads images in 8 bit and returns score and map."""

    def __init__(self, backbone: Backbone, model: Model, features: FeatureConfig) -> None:
        super().__init__(backbone, features)
        on_cpu = all(tensor.device.type == "cpu" for tensor in model.state_dict().values())
        self.model = model if on_cpu else copy.deepcopy(model).cpu()

    def forward(self, *levels: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        return cast("tuple[Tensor, Tensor]", self.model(self.pyramid(levels)))


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
