"""Turn a frozen trunk into an ONNX graph, so that features can be computed without torch.

A graph reads an image at every scale in 8 bit (:func:`csflow.data.images.to_pyramid_levels`) and is traced for any
number of images. Its weights keep their names.
"""

from __future__ import annotations

import copy
import tempfile
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import TypeAlias, cast

import onnx
import torch
import torch.nn.functional as F
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn

from csflow.config import FeatureConfig
from csflow.data.images import normalisation
from csflow.errors import ModelError
from csflow.features.backbone import Backbone
from csflow.system import seals

Weights: TypeAlias = Callable[[str], TensorProto]
"""Returns the stored tensor of a name; its type may be narrower than the graph's."""

FEATURES = "features"
"""Name of the output of a trunk's graph, and of the input of a model's."""

OPSET = 18
"""The first operator set whose ``Resize`` widens its filter when it shrinks an image, as Pillow does."""

IR_VERSION = 9
"""Version of the file format that belongs to the operator set; inference engines refuse newer ones than they know."""


def trunk_graph(backbone: Backbone, features: FeatureConfig) -> onnx.ModelProto:
    """Turn the trunk into a self-contained graph that reads every scale.

    Inputs ``level_0`` … are ``(N, s, s, 3)`` uint8; the output ``features`` is ``(N, values)`` float32, the scales
    flattened, finest first.

    Raises:
        ModelError: If the trunk has an operation ONNX does not know.
    """
    model = trunk_graph_without_weights(backbone, features)
    state = {f"backbone.{name}": tensor for name, tensor in backbone.state_dict().items()}
    bind_weights(model, lambda name: numpy_helper.from_array(state[name].cpu().numpy()))
    return model


def trunk_graph_without_weights(backbone: Backbone, features: FeatureConfig) -> onnx.ModelProto:
    """Trace the trunk into the graph of :func:`trunk_graph`, whose weights are still to be given (``backbone.…``).

    Raises:
        ModelError: If the trunk has an operation ONNX does not know.
    """
    module = _TrunkModule(backbone, features)
    kept = 1 if features.downscale == "nearest" else features.scales
    sizes = [features.image_size // 2**scale for scale in range(kept)]
    examples = {f"level_{scale}": torch.zeros(2, size, size, 3, dtype=torch.uint8) for scale, size in enumerate(sizes)}
    model = traced(module, examples, [FEATURES], backbone.name)
    _merge_padding(model.graph, module)
    return model


class _TrunkModule(nn.Module):
    """A trunk that reads images in 8 bit and returns its features flattened."""

    def __init__(self, backbone: Backbone, features: FeatureConfig) -> None:
        super().__init__()
        self.backbone = _with_fixed_padding(backbone)
        self.strides = [2**scale for scale in range(features.scales)] if features.downscale == "nearest" else None
        colours = normalisation(backbone.mean, backbone.std)
        self.factor, self.offset = (torch.from_numpy(values)[:, None, None] for values in colours)

    def forward(self, *levels: Tensor) -> Tensor:
        """Return the features of images in 8 bit, each level ``(N, s, s, 3)``: all scales flattened and joined."""
        if self.strides is not None:
            levels = tuple(levels[0][:, ::stride, ::stride] for stride in self.strides)
        inputs = [level.permute(0, 3, 1, 2).float() * self.factor - self.offset for level in levels]
        return torch.cat([level.flatten(1) for level in cast("list[Tensor]", self.backbone(inputs))], dim=1)


def _with_fixed_padding(backbone: Backbone) -> Backbone:
    """Copy a backbone, with constants for the padding that TensorFlow's "same" rule works out from each map's size.

    All sizes are multiples of the strides (:func:`csflow.features.backbone.check_pyramid`), for which that padding does
    not depend on the size. With sizes left open, a graph would work them out again for every image.
    """
    from timm.layers.conv2d_same import Conv2dSame

    fixed = copy.deepcopy(backbone).cpu()
    for name, layer in list(fixed.named_modules()):
        if isinstance(layer, Conv2dSame):
            parent, _, own_name = name.rpartition(".")
            setattr(fixed.get_submodule(parent), own_name, _PaddedConvolution(layer))
    return fixed


class _PaddedConvolution(nn.Module):
    """A convolution that pads its input by constants; an odd pixel goes below and to the right."""

    def __init__(self, layer: nn.Conv2d) -> None:
        super().__init__()
        self.weight, self.bias, self.stride = layer.weight, layer.bias, layer.stride
        self.dilation, self.groups = layer.dilation, layer.groups
        along = zip(layer.kernel_size, layer.stride, layer.dilation, strict=True)
        height, width = (max((kernel - 1) * dilation + 1 - stride, 0) for kernel, stride, dilation in along)
        self.padding = (width // 2, width - width // 2, height // 2, height - height // 2)

    def forward(self, images: Tensor) -> Tensor:
        padded = F.pad(images, self.padding)
        return F.conv2d(padded, self.weight, self.bias, self.stride, 0, self.dilation, self.groups)


def traced(module: nn.Module, examples: Mapping[str, Tensor], outputs: Sequence[str], name: str) -> onnx.ModelProto:
    """Trace a module into a graph whose inputs are the examples', then every weight by its name.

    Args:
        module: The trunk, or a model that reads its features.
        examples: A tensor for every argument; its first side, the number of images, is left open in the graph.
        outputs: Names of the outputs.
        name: Names the module in errors.

    Raises:
        ModelError: If the module has an operation that ONNX does not know.
    """
    arguments = tuple(examples.values())
    try:
        with tempfile.TemporaryDirectory() as folder, torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about sizes that become constants, as intended
            module.eval()(*arguments)  # tables that are computed on first use are constants from now on
            torch.onnx.export(
                module,
                arguments,
                f"{folder}/graph.onnx",
                dynamo=False,  # ten times as fast, and leaves the number of images open
                export_params=False,
                do_constant_folding=False,
                training=torch.onnx.TrainingMode.PRESERVE,  # EVAL would merge batch norm into nameless weights
                input_names=list(examples),
                output_names=list(outputs),
                dynamic_axes={each: {0: "N"} for each in (*examples, *outputs)},
                opset_version=OPSET,
            )
            model = onnx.load(f"{folder}/graph.onnx")
    except Exception as error:  # the exporter's errors have no common base
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        raise ModelError(
            f"{name} cannot be turned into an ONNX graph: {reason}. Use another backbone or stage."
        ) from error
    model.ir_version = IR_VERSION
    return model


def _merge_padding(graph: onnx.GraphProto, module: _TrunkModule) -> None:
    """Let convolutions pad their own input, unevenly, which torch cannot do; this saves a copy of the largest maps."""
    padded = {
        f"{name}.weight": layer.padding
        for name, layer in module.named_modules()
        if isinstance(layer, _PaddedConvolution)
    }
    sources = {node.output[0]: node.input[0] for node in graph.node if node.op_type == "Pad"}
    for node in graph.node:
        if node.op_type == "Conv" and node.input[1] in padded and node.input[0] in sources:
            left, right, top, bottom = padded[node.input[1]]
            node.input[0] = sources[node.input[0]]
            attributes = [attribute for attribute in node.attribute if attribute.name != "pads"]
            del node.attribute[:]
            node.attribute.extend([*attributes, helper.make_attribute("pads", [top, left, bottom, right])])
    _drop_unused(graph)


def _drop_unused(graph: onnx.GraphProto) -> None:
    used = {value.name for value in graph.output}
    kept = []
    for node in reversed(graph.node):
        if used.intersection(node.output):
            used.update(node.input)
            kept.append(node)
    del graph.node[:]
    graph.node.extend(reversed(kept))


def bind_weights(model: onnx.ModelProto, weights: Weights) -> None:
    """Turn the inputs that are weights into stored tensors, widened where they are stored narrower.

    Args:
        model: From :func:`traced`; changed in place.
        weights: Returns the stored tensor of a name.
    """
    graph = model.graph
    arguments = [value for value in graph.input if "." not in value.name]  # a weight belongs to a part of the module
    needed = [value for value in graph.input if value not in arguments]
    casts = []
    for value in needed:
        tensor, wanted = weights(value.name), value.type.tensor_type.elem_type
        tensor.name = value.name
        if tensor.data_type != wanted:
            tensor.name = f"{value.name}:stored"
            casts.append(helper.make_node("Cast", [tensor.name], [value.name], to=wanted))
        graph.initializer.append(tensor)
    del graph.input[:]
    graph.input.extend(arguments)
    _put_first(graph, casts)


def sealed_bytes(model: onnx.ModelProto) -> bytes:
    """Return the content of a graph's file, with a seal among its properties."""
    others = [entry for entry in model.metadata_props if entry.key != seals.KEY]
    del model.metadata_props[:]
    model.metadata_props.extend(others)
    model.metadata_props.add(key=seals.KEY, value=seals.OPEN)
    return seals.sealed(model.SerializeToString())


def _put_first(graph: onnx.GraphProto, nodes: Sequence[onnx.NodeProto]) -> None:
    rest = list(graph.node)
    del graph.node[:]
    graph.node.extend([*nodes, *rest])
