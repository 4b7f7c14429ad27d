"""Smaller forms of an ONNX file, under the names of transformers.js: 8-bit and 4-bit weights.

- "int8" and "q8": weights of matrix products by output channel and of tokens, activations in 8 bits at run time
  (onnxruntime's dynamic quantization).
- "q4": weights in 4 bits, one scale for 32 inputs of an output (`MatMulNBits`); the arithmetic stays float32.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

BLOCK = 32  # inputs that share a scale


def write_int8(source: Path, target: Path) -> None:
    """Write a file with 8-bit weights, from one in float32."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    with _quiet():
        quantize_dynamic(
            source, target, per_channel=True, weight_type=QuantType.QInt8, op_types_to_quantize=["MatMul", "Gather"]
        )  # older versions of onnxruntime cannot run the integer convolution of the patches


def write_q4(source: Path, target: Path) -> None:
    """Write a file with 4-bit weights, from one in float32."""
    import onnx
    from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer

    with _quiet():
        quantizer = MatMulNBitsQuantizer(onnx.load(source), block_size=BLOCK, is_symmetric=True)
        quantizer.process()
        quantizer.model.save_model_to_file(str(target))


# name: how it is made, and the smallest cosine with the float32 embedding of the same noise. Trained models have more:
# a lower one means a broken file.
WEIGHT_FORMS: Mapping[str, tuple[Callable[[Path, Path], None], float]] = {
    "int8": (write_int8, 0.97),
    "q8": (write_int8, 0.97),
    "q4": (write_q4, 0.8),
}


@contextmanager
def _quiet() -> Iterator[None]:
    """Context without onnxruntime's advice and its line for each node, which go to the root logger too."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
