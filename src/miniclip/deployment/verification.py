"""Check of an exported file: onnxruntime must give the embeddings of the model that was exported."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from miniclip.deployment import Precision
from miniclip.errors import CheckpointError

MAX_ERROR = 1e-5  # largest difference of unit vectors in float32, where only the order of sums differs
MAX_HALF_ERROR = 1e-2  # in float16
MAX_RAW_ERROR = 2e-3  # with preprocessing inside, where single pixels differ by one grey level of 255
REFUSED = "the export was checked and refused: {problem}; please report this, with config.json"

Arrays = Mapping[str, npt.NDArray[Any]]
Case = tuple[Arrays, npt.NDArray[Any] | Sequence[npt.NDArray[Any]]]  # inputs by name, and the first expected outputs


def limit_of(precision: Precision) -> float:
    """Return the largest difference of unit vectors that an export in a precision may have."""
    return MAX_ERROR if precision == "float32" else MAX_HALF_ERROR


def session(path: Path) -> Any:
    """Return onnxruntime's session of a file on the CPU.

    Raises:
        CheckpointError: onnxruntime cannot open the file.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors only
    options.intra_op_num_threads = torch.get_num_threads()
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # the library has a class for each of its codes
        raise CheckpointError(REFUSED.format(problem=f"onnxruntime cannot open {path.name} ({error})")) from error


def verify(path: Path, cases: Iterable[Case], limit: float = MAX_ERROR) -> float:
    """Compare the outputs of a file with expected values.

    Args:
        path: an ONNX file.
        cases: inputs by name, and the expected output, or the first ones of several.
        limit: largest difference of any element, as a fraction of the length of its row.

    Returns:
        The largest difference.

    Raises:
        CheckpointError: it exceeds the limit, or an output has another shape.
    """
    run, largest = session(path).run, 0.0
    for inputs, expected in cases:
        shapes = ", ".join(f"{name} {array.shape}" for name, array in inputs.items())
        try:
            outputs = run(None, dict(inputs))
        except Exception as error:
            raise CheckpointError(REFUSED.format(problem=f"{path.name} fails for {shapes} ({error})")) from error
        expected = [expected] if isinstance(expected, np.ndarray) else expected
        for output, values in zip(outputs, expected, strict=False):
            if output.shape != values.shape:
                problem = f"{path.name} gives {output.shape} for {shapes}; expected {values.shape}"
                raise CheckpointError(REFUSED.format(problem=problem))
            difference = _difference(output, values)
            if not difference <= limit:
                problem = f"{path.name} differs by {difference:.1e} for {shapes} (the limit is {limit:.0e})"
                raise CheckpointError(REFUSED.format(problem=problem))
            largest = max(largest, difference)
    return largest


def require_cosine(path: Path, exact: Path, inputs: Arrays, least: float) -> float:
    """Compare the embeddings of two files on the same inputs; return the smallest cosine.

    Raises:
        CheckpointError: it is below `least`, or not a number.
    """
    given, expected = (session(file).run(None, dict(inputs))[0].astype(np.float64) for file in (path, exact))
    lengths = np.linalg.norm(given, axis=-1) * np.linalg.norm(expected, axis=-1)
    cosine = float(((given * expected).sum(-1) / lengths).min())
    if not cosine >= least:
        problem = f"{path.name} has a cosine of {cosine:.3f} with {exact.name} (at least {least} is expected)"
        raise CheckpointError(REFUSED.format(problem=problem))
    return cosine


def _difference(output: npt.NDArray[Any], expected: npt.NDArray[Any]) -> float:
    lengths = np.linalg.norm(expected.astype(np.float64), axis=-1, keepdims=True)
    return float((np.abs(output.astype(np.float64) - expected) / lengths).max())
