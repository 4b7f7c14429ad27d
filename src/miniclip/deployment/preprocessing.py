"""Preprocessing inside an ONNX file: uint8 images of any size to the normalised pixels of `data/preprocess.py`.

`Resize` with `antialias` and a coefficient of -0.5 is Pillow's filter. For uint8, onnxruntime computes it in integers,
as Pillow does. Measured at S = 224, on noise and on smooth images with sides from 30 to 4,000: a pixel differs by at
most 2 of 255 grey levels, and on average by less than 0.06 (bicubic) or 0.21 (bilinear). Source:
https://onnx.ai/onnx/operators/onnx__Resize.html.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from miniclip.config import CLIPConfig

MODES = {"bicubic": "cubic", "bilinear": "linear"}
ROWS, COLUMNS = 2, 3  # axes of (B, 3, H, W)


def prepend_preprocessing(model: Any, config: CLIPConfig) -> None:
    """Replace the input of an image tower by uint8 images of one size, (B, H, W, 3), in RGB.

    Args:
        model: of the onnx_ir library, whose only input is the normalised pixels (B, 3, S, S).
        config: of the model.
    """
    import onnx_ir
    from onnx_ir.tape import Tape

    tape, pixels = Tape(), model.graph.inputs[0]
    images = onnx_ir.Value(
        name=pixels.name,
        type=onnx_ir.TensorType(onnx_ir.DataType.UINT8),
        shape=onnx_ir.Shape(["batch", "height", "width", 3]),
    )
    pixels.name = f"inner_{images.name}"
    normalised = _normalise(tape, _crop(tape, _resize(tape, images, config), config), config)
    onnx_ir.convenience.replace_all_uses_with(pixels, normalised)
    model.graph.inputs[0] = images
    for number, node in enumerate(tape.nodes):
        for output in node.outputs:
            output.name = f"preprocessing_{number}"
    model.graph.insert_before(model.graph[0], tape.nodes)


def _resize(tape: Any, images: Any, config: CLIPConfig) -> Any:
    """(B, H, W, 3) uint8 to (B, 3, at least S, at least S) uint8."""
    size = config.image.image_size
    x = tape.op("Transpose", [images], {"perm": [0, 3, 1, 2]})
    whole = tape.op("Shape", [x])
    kept = tape.op("Slice", [whole, _integers(tape, 0), _integers(tape, ROWS)])
    if config.resize == "squash":
        sides = _integers(tape, size, size)
    else:  # the shorter side to S, the other one in proportion and rounded down
        given = tape.op("Slice", [whole, _integers(tape, ROWS), _integers(tape, COLUMNS + 1)])
        shortest = tape.op("ReduceMin", [given], {"keepdims": 1})
        sides = tape.op("Div", [tape.op("Mul", [given, _integers(tape, size)]), shortest])
    filters = {
        "mode": MODES[config.interpolation],
        "cubic_coeff_a": -0.5,
        "antialias": 1,
        "exclude_outside": 1,
        "coordinate_transformation_mode": "half_pixel",
    }
    return tape.op("Resize", [x, None, None, tape.op("Concat", [kept, sides], {"axis": 0})], filters)


def _crop(tape: Any, x: Any, config: CLIPConfig) -> Any:
    """(B, 3, at least S, at least S) to its center (B, 3, S, S)."""
    size = _integers(tape, config.image.image_size)
    sides = tape.op("Slice", [tape.op("Shape", [x]), _integers(tape, ROWS), _integers(tape, COLUMNS + 1)])
    start = tape.op("Div", [excess := tape.op("Sub", [sides, size]), two := _integers(tape, 2)])
    if config.crop_rounding == "rounded":  # half a pixel to the even neighbour: up if the excess and the start are odd
        odd = tape.op("Mul", [tape.op("Mod", [excess, two]), tape.op("Mod", [start, two])])
        start = tape.op("Add", [start, odd])
    return tape.op("Slice", [x, start, tape.op("Add", [start, size]), _integers(tape, ROWS, COLUMNS)])


def _normalise(tape: Any, x: Any, config: CLIPConfig) -> Any:
    """(B, 3, S, S) uint8 to float32: divided by 255, minus the mean, divided by the standard deviation."""
    import onnx_ir

    x = tape.op("Cast", [x], {"to": onnx_ir.DataType.FLOAT})
    x = tape.op("Div", [x, _constant(tape, np.float32(255))])
    for op, values in (("Sub", config.mean), ("Div", config.std)):
        x = tape.op(op, [x, _constant(tape, np.array(values, np.float32).reshape(3, 1, 1))])
    return x


def _integers(tape: Any, *values: int) -> Any:
    return _constant(tape, np.array(values, np.int64))


def _constant(tape: Any, values: Any) -> Any:
    import onnx_ir

    return tape.op("Constant", [], {"value": onnx_ir.tensor(values)})
