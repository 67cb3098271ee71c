r"""Resize images inside of an ONNX graph with Pillow's bilinear filter, exact to the last bit.

The ONNX operator ``Resize`` widens its filter likewise, but ONNX Runtime rounds its weights and sums in another way: up
to a fifth of the values then differ by one in 255, and a flow magnifies that to a hundredth of a score. So
every axis is multiplied by a matrix of weights in units of :math:`2^{-22}`, as in Pillow:

.. math:: y = \lfloor 2^{-22} (K x + 2^{21}) \rfloor, \quad
          K_{ij} = \lfloor 2^{22} w_{ij} + \tfrac12 \rfloor, \quad
          w_{ij} \propto \max(0, 1 - | j + \tfrac12 - (i + \tfrac12) r | / \max(r, 1))

with ``r`` the pixels of the image per pixel of the result. Double precision holds all of these integers exactly.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from numpy.typing import ArrayLike
from onnx import TensorProto, helper, numpy_helper

from csflow.config import FeatureConfig

_UNITS = float(1 << 22)


def put_sizing_in(model: onnx.ModelProto, features: FeatureConfig) -> None:
    """Replace the inputs of a graph by one, ``images`` ``(N, height, width, 3)`` uint8 RGB of any size, resized inside.

    Args:
        model: A graph whose inputs are the levels (:func:`csflow.data.images.to_pyramid_levels`), finest first.
        features: Image size of the levels.
    """
    graph = model.graph
    nodes = _Nodes()
    planes = nodes.add("Transpose", "images", perm=[0, 3, 1, 2])
    for value in graph.input:
        scale = int(value.name.removeprefix("level_"))
        level = _sized(nodes, planes, float(features.image_size // 2**scale))
        pixels = nodes.add("Cast", level, to=TensorProto.UINT8)
        nodes.add("Transpose", pixels, output=value.name, perm=[0, 2, 3, 1])
    rest = list(graph.node)
    del graph.node[:]
    graph.node.extend([*nodes.nodes, *rest])
    graph.initializer.extend(nodes.constants)
    del graph.input[:]
    graph.input.append(helper.make_tensor_value_info("images", TensorProto.UINT8, ["N", "height", "width", 3]))


class _Nodes:
    """A growing list of nodes; the index of a node names its result."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[TensorProto] = []

    def add(self, operator: str, *inputs: str, output: str = "", **attributes: Any) -> str:
        """Append a node and return the name of its result."""
        output = output or f"sizing:{len(self.nodes)}"
        self.nodes.append(helper.make_node(operator, inputs, [output], **attributes))
        return output

    def constant(self, value: ArrayLike, kind: type = np.float64) -> str:
        """Append a constant and return its name."""
        name = f"sizing:constant:{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(np.asarray(value, kind), name))
        return name


def _sized(nodes: _Nodes, planes: str, size: float) -> str:
    """Resize ``(N, 3, height, width)`` uint8 to ``(N, 3, size, size)`` float64."""
    height, width = (_length(nodes, planes, axis) for axis in (2, 3))
    upright_first = _upright_first(nodes, height, width, size)
    turned = _turned_if(nodes, upright_first, planes, TensorProto.UINT8)
    pixels = nodes.add("Cast", turned, to=TensorProto.DOUBLE)
    for _ in range(2):  # along the last axis, which then becomes the one before
        weights = _weights(nodes, _length(nodes, pixels, 3), size)
        sums = nodes.add("Add", nodes.add("MatMul", pixels, weights), nodes.constant(_UNITS / 2))
        rounded = nodes.add("Floor", nodes.add("Div", sums, nodes.constant(_UNITS)))
        pixels = nodes.add("Transpose", nodes.add("Min", rounded, nodes.constant(255.0)), perm=[0, 1, 3, 2])
    return _turned_if(nodes, upright_first, pixels, TensorProto.DOUBLE)


def _upright_first(nodes: _Nodes, height: str, width: str, size: float) -> str:
    """Test if Pillow shrinks the height first; the order matters, because each axis is rounded.

    It does so if that leaves less to do, ``height / size - 1 > 2 (width / size - 1)`` (Pillow 13, found by trying).
    """
    one, two = nodes.constant(1.0), nodes.constant(2.0)
    down, across = (
        nodes.add("Sub", nodes.add("Max", nodes.add("Div", length, nodes.constant(size)), one), one)
        for length in (height, width)
    )
    return nodes.add("Greater", down, nodes.add("Mul", two, across))


def _weights(nodes: _Nodes, length: str, size: float) -> str:
    """Compute Pillow's integer weights of an axis, ``(length, size)`` as float64."""
    one, half = nodes.constant(1.0), nodes.constant(0.5)
    ratio = nodes.add("Div", length, nodes.constant(size))
    centres = nodes.add("Mul", nodes.constant(np.arange(size) + 0.5), ratio)
    pixels = nodes.add("Add", nodes.add("Range", nodes.constant(0.0), length, one), half)
    column = nodes.add("Unsqueeze", pixels, nodes.constant([1], np.int64))
    distance = nodes.add("Abs", nodes.add("Sub", column, centres))
    slope = nodes.add("Sub", one, nodes.add("Div", distance, nodes.add("Max", ratio, one)))
    triangle = nodes.add("Max", slope, nodes.constant(0.0))
    total = nodes.add("ReduceSum", triangle, nodes.constant([0], np.int64), keepdims=1)
    share = nodes.add("Mul", nodes.add("Div", triangle, total), nodes.constant(_UNITS))
    return nodes.add("Floor", nodes.add("Add", share, half))


def _length(nodes: _Nodes, tensor: str, axis: int) -> str:
    """Return a side of a tensor as a float64 scalar."""
    side = nodes.add("Squeeze", nodes.add("Shape", tensor, start=axis, end=axis + 1))
    return nodes.add("Cast", side, to=TensorProto.DOUBLE)


def _turned_if(nodes: _Nodes, condition: str, tensor: str, kind: int) -> str:
    """Transpose height and width of a tensor if a condition holds that is known only at run time."""

    def branch(name: str, operator: str, **attributes: Any) -> onnx.GraphProto:
        result = f"{tensor}:{name}"
        node = helper.make_node(operator, [tensor], [result], **attributes)
        return helper.make_graph([node], name, [], [helper.make_tensor_value_info(result, kind, None)])

    turned, kept = branch("turned", "Transpose", perm=[0, 1, 3, 2]), branch("kept", "Identity")
    return nodes.add("If", condition, then_branch=turned, else_branch=kept)
