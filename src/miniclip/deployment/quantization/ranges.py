"""Ranges of activations in an ONNX graph, found by running it on calibration data. Letters: K channels."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor

from miniclip.deployment.verification import Arrays, session

Ranges: TypeAlias = dict[str, tuple[Tensor, Tensor]]  # activation to the least and greatest values of channels (K,)
AXIS = "ranges_axis"


def find_ranges(model: Any, names: Sequence[str], batches: Iterable[Arrays]) -> Ranges:
    """Run a model on calibration data, and return the ranges of some activations.

    Args:
        model: of onnx, with its weights inside.
        names: of activations (..., K).
        batches: inputs of the model by name.

    Raises:
        ValueError: there are no batches, or an activation is NaN or infinite.
    """
    found: Ranges = {}
    with tempfile.TemporaryDirectory() as folder:
        run = session(_with_ranges(model, names, Path(folder) / "ranges.onnx")).run
        for batch in batches:
            values = iter(run([_output(name, kind) for name in names for kind in ("Min", "Max")], dict(batch)))
            for name in names:
                low, high = torch.from_numpy(next(values)), torch.from_numpy(next(values))
                if name in found:
                    low, high = torch.minimum(low, found[name][0]), torch.maximum(high, found[name][1])
                found[name] = (low, high)
    if names and not found:
        raise ValueError("the calibration data are empty; expected a hundred or more images with captions")
    if not all(bool(bound.isfinite().all()) for pair in found.values() for bound in pair):
        raise ValueError("the model's activations are NaN or infinite on the calibration data; expected finite ones")
    return found


def _with_ranges(model: Any, names: Sequence[str], path: Path) -> Path:
    """Write a copy of a model whose last outputs are the ranges (K,) of activations."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    copied = onnx.ModelProto()
    copied.CopyFrom(model)
    copied.graph.initializer.append(numpy_helper.from_array(np.array([0]), AXIS))
    for name in names:
        rows = f"{name}_rows"
        copied.graph.node.append(helper.make_node("Flatten", [name], [rows], axis=-1))
        for kind in ("Min", "Max"):
            output = _output(name, kind)
            copied.graph.node.append(helper.make_node(f"Reduce{kind}", [rows, AXIS], [output], keepdims=0))
            copied.graph.output.append(helper.make_tensor_value_info(output, TensorProto.FLOAT, None))
    onnx.save(copied, str(path), save_as_external_data=True, location=f"{path.name}.data")
    return path


def _output(name: str, kind: str) -> str:
    return f"{name}_Reduce{kind}"
