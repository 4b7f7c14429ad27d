"""int8 with constant scales for ONNX files: a product in two nodes, its bias inside.

    q = clamp(round(x / step) + zero_point, 0, 255)               QuantizeLinear
    y = (q - zero_point) @ weights * channel_scale + bias         MatMulIntegerToFloat

The inputs of these products are made by a norm, by attention or by an activation function. Steps and centers of
channels are folded into the weights around x, as in `fast/calibrated.py`, so that the node has the step 1; the hidden
layer of an MLP has one step. Other products are left to the dynamic form.
Source: Xiao et al. 2022, SmoothQuant (arXiv 2211.10438), for steps by channel.
Letters: K inputs, N outputs, D width.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from miniclip.deployment.quantization.attention import RUNTIME
from miniclip.deployment.quantization.editing import Index, replace_nodes
from miniclip.deployment.quantization.ranges import find_ranges
from miniclip.deployment.verification import Arrays
from miniclip.fast.calibrated import Steps, channel_steps, folded, one_step, through_attention
from miniclip.fast.int8 import quantize_weight

NORM, ATTENTION, ACTIVATION = "LayerNormalization", "MultiHeadAttention", "Mul"  # an activation function ends in Mul


class Product(NamedTuple):
    """A linear layer of a graph."""

    name: str  # output of the product, before the bias
    x: str  # input (..., K)
    y: str  # output (..., N), after the bias
    source: Any  # node that makes x
    values: str  # if attention makes x: its packed queries, keys and values (..., 3 K)
    weight: Tensor  # (N, K)
    bias: Tensor  # (N,)


def quantize_constant(model: Any, batches: Iterable[Arrays]) -> int:
    """Replace products in a model of onnx, in place.

    Args:
        model: a tower with fused attention, its weights inside.
        batches: calibration data, inputs of the tower by name.

    Returns:
        The number of products that were replaced.

    Raises:
        ValueError: the calibration data are empty, or give activations that are not finite.
    """
    index = Index(model.graph)
    products = find_products(model.graph, index)
    ranges = find_ranges(model, [product.x for product in products], batches)
    steps = {product.name: _steps_of(product, ranges[product.x]) for product in products}
    # steps of attention's result, by the name of its packed values
    passed = {product.values: steps[product.name] for product in products if product.values}
    replaced: dict[str, list[Any]] = {}
    added: list[Any] = []
    for product in products:
        nodes, constants = _nodes(product, index, steps[product.name], passed.get(product.y))
        replaced[product.name], replaced[product.y] = [], nodes
        added += constants
    replace_nodes(model.graph, replaced, added)
    return len(products)


def find_products(graph: Any, index: Index) -> list[Product]:
    """Return the products that can have constant scales."""
    products: list[Product] = []
    for node in graph.node:
        source = index.producers.get(node.input[0]) if node.op_type == "MatMul" else None
        if source is None or source.op_type not in (NORM, ATTENTION, ACTIVATION):
            continue
        following = index.users.get(node.output[0], [])
        if [user.op_type for user in following] != ["Add"] or not index.is_constant(node.input[1], 2):
            continue
        biases = [name for name in following[0].input if index.is_constant(name, 1)]
        constants = all(index.is_constant(name, 1) for name in source.input[1:])
        values = _packed(source, index) if source.op_type == ATTENTION else ""
        if not biases or (source.op_type == NORM and not constants):
            continue
        if source.op_type == ATTENTION and values not in {product.y for product in products}:
            continue
        weight, bias = (torch.from_numpy(index.array(name).T.copy()) for name in (node.input[1], biases[0]))
        products.append(Product(node.output[0], node.input[0], following[0].output[0], source, values, weight, bias))
    return products


def _steps_of(product: Product, bounds: tuple[Tensor, Tensor]) -> Steps:
    return one_step(bounds) if product.source.op_type == ACTIVATION else channel_steps(bounds, product.weight)


def _packed(attention: Any, index: Index) -> str:
    """Return the name of the packed queries, keys and values of an attention, or "" if another node uses them too."""
    split = index.producers.get(attention.input[2])
    if split is None or split.op_type != "Split" or list(split.output) != list(attention.input[:3]):
        return ""
    return str(split.input[0]) if len(index.users[split.input[0]]) == 1 else ""


def _nodes(product: Product, index: Index, steps: Steps, passed: Steps | None) -> tuple[list[Any], list[Any]]:
    """Return the nodes in place of a product and its bias, and their constants.

    Args:
        product: the product.
        index: of its graph.
        steps: scales of its input.
        passed: scales of attention's result, if the outputs are queries, keys and values.
    """
    from onnx import helper, numpy_helper

    constants = []

    def constant(name: str, value: Any) -> str:
        constants.append(numpy_helper.from_array(np.ascontiguousarray(value), f"{product.name}_{name}"))
        return constants[-1].name

    nodes, x = [], product.x
    outputs = () if passed is None else through_attention(passed)
    weight, bias = folded(product.weight, product.bias, steps, *outputs)
    if product.source.op_type == NORM:
        gain, *offset = (torch.from_numpy(index.array(name).copy()) for name in product.source.input[1:])
        x, inputs = f"{product.name}_norm", [product.source.input[0], constant("gain", gain / steps.step)]
        inputs.append(constant("offset", (sum(offset) - steps.center) / steps.step))
        settings = {entry.name: helper.get_attribute_value(entry) for entry in product.source.attribute}
        nodes.append(helper.make_node(NORM, inputs, [x], name=x, **settings))
    # `folded` multiplies the weight by the steps; only an activation function's output is not divided before
    step = steps.step[0].numpy() if product.source.op_type == ACTIVATION else np.float32(1)
    values, scale = quantize_weight(weight)
    zero_point, integers = constant("zero_point", np.uint8(steps.zero_point)), f"{product.name}_uint8"
    nodes.append(helper.make_node("QuantizeLinear", [x, constant("step", step), zero_point], [integers], name=integers))
    tensors = [constant("int8", values.numpy().T), constant("one", np.float32(1)), constant("scale", scale.numpy())]
    nodes.append(
        helper.make_node(
            "MatMulIntegerToFloat",
            [integers, *tensors, zero_point, "", constant("bias", bias.numpy())],
            [product.y],
            name=product.y,
            domain=RUNTIME,
        )
    )
    return nodes, constants
