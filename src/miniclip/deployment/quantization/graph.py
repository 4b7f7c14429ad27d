"""Dynamic int8 for ONNX files: weights by output channel, activations by token. Needs onnxruntime's own operators.

Each product of activations with constant weights becomes

    scale = max |x| / 127                                       per token
    y = (round(x / scale) + 128 - 128) @ weights * channel_scale * scale     in integers, then float32

The file multiplies by max |x| instead of the token's scale, and its scales of channels are divided by 127.

Attention, norms, patches and the projection stay in float32. The product of two activations has no constant weights.
Source: https://onnxruntime.ai/docs/performance/model-optimizations/quantization.html.
Letters: K inputs, N outputs.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from miniclip.deployment.quantization.attention import RUNTIME
from miniclip.deployment.quantization.constant import quantize_constant
from miniclip.deployment.quantization.editing import Index, replace_nodes
from miniclip.deployment.verification import Arrays
from miniclip.fast.int8 import LEVELS, SMALLEST, ZERO_POINT, quantize_weight


def quantize_file(source: Path, target: Path, batches: Iterable[Arrays] | None = None) -> int:
    """Write an int8 form of a float32 ONNX file.

    Args:
        source: an ONNX file with opset 18, and weights inside or beside it.
        target: the new file, whose weights are inside it.
        batches: calibration data, inputs of the file by name. Products that can have constant scales get them.

    Returns:
        The number of products that are computed in int8.

    Raises:
        ValueError: no product has constant weights, or the calibration data are empty or give activations that are not
            finite.
    """
    import onnx

    model = onnx.load(str(source))
    count = 0 if batches is None else quantize_constant(model, batches)
    index = Index(model.graph)
    replaced, added = {}, {}
    for node in model.graph.node:
        if node.op_type == "MatMul" and index.is_constant(node.input[1], 2):
            weight, output = node.input[1], node.output[0]
            if weight not in added:
                values, channel_scale = _quantize(index.array(weight))
                added[weight] = [
                    onnx.numpy_helper.from_array(values, f"{weight}_int8"),
                    onnx.numpy_helper.from_array(channel_scale / np.float32(LEVELS), f"{weight}_scale"),
                ]
            replaced[output] = _product(node.input[0], output, weight)
    count += len(replaced)
    if not count:
        raise ValueError(f"{source}: no product with constant weights; expected a tower that miniclip exported")
    replace_nodes(model.graph, replaced, [*chain.from_iterable(added.values()), *_constants()])
    if RUNTIME not in {opset.domain for opset in model.opset_import}:
        model.opset_import.append(onnx.helper.make_opsetid(RUNTIME, 1))
    onnx.save(model, str(target))
    return count


def _quantize(weight: npt.NDArray[np.float32]) -> tuple[npt.NDArray[np.int8], npt.NDArray[np.float32]]:
    """Quantize a weight (K, N): its integers (K, N), and a scale per output (N,)."""
    values, scale = quantize_weight(torch.from_numpy(weight.T.copy()))
    return np.ascontiguousarray(values.numpy().T), scale.numpy()


def _constants() -> list[Any]:
    from onnx import numpy_helper

    values = {
        "int8_one": np.float32(1),
        "int8_zero_point": np.uint8(ZERO_POINT),
        "int8_levels": np.float32(LEVELS),
        "int8_smallest": np.float32(SMALLEST),
        "int8_last": np.array([-1]),
    }
    return [numpy_helper.from_array(np.asarray(value), name) for name, value in values.items()]


def _product(x: str, y: str, weight: str) -> list[Any]:
    """Nodes of x (..., K) times a quantized weight (K, N) to y (..., N)."""
    from onnx import helper

    def node(kind: str, inputs: list[str], output: str, **attributes: Any) -> Any:
        return helper.make_node(kind, inputs, [output], name=output, **attributes)

    def inner(name: str) -> str:
        return f"{y}_{name}"

    return [
        node("ReduceMax", [x, "int8_last"], inner("max")),  # (..., 1)
        node("ReduceMin", [x, "int8_last"], inner("min")),
        node("Neg", [inner("min")], inner("negative")),
        node("Max", [inner("max"), inner("negative"), "int8_smallest"], inner("range")),
        node("Div", ["int8_levels", inner("range")], inner("inverse")),
        # a multiplication first: a scale per token inside QuantizeLinear needs x in two dimensions
        node("Mul", [x, inner("inverse")], inner("values")),
        node("QuantizeLinear", [inner("values"), "int8_one", "int8_zero_point"], inner("uint8")),
        node(
            "MatMulIntegerToFloat",
            [inner("uint8"), f"{weight}_int8", "int8_one", f"{weight}_scale", "int8_zero_point"],
            inner("product"),
            domain=RUNTIME,
        ),
        node("Mul", [inner("product"), inner("range")], y),  # (..., N)
    ]
