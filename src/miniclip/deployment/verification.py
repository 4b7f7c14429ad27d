"""Check of an exported file: onnxruntime must give the embeddings of the model that was exported."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from miniclip.errors import CheckpointError

MAX_ERROR = 1e-5  # largest difference of unit vectors in float32, where only the order of sums differs
MAX_HALF_ERROR = 1e-2  # in float16
MAX_RAW_ERROR = 2e-3  # with preprocessing inside, where single pixels differ by one grey level of 255
REFUSED = "the export was checked and refused: {problem}; please report this, with config.json"

Arrays = Mapping[str, npt.NDArray[Any]]


def session(path: Path, threads: int = 0) -> Any:
    """Return onnxruntime's session of a file on the CPU.

    Raises:
        CheckpointError: onnxruntime cannot open the file.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors only
    options.intra_op_num_threads = threads or torch.get_num_threads()
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # the library has a class for each of its codes
        raise CheckpointError(REFUSED.format(problem=f"onnxruntime cannot open {path.name} ({error})")) from error


def verify(path: Path, cases: Iterable[tuple[Arrays, npt.NDArray[Any]]], limit: float = MAX_ERROR) -> float:
    """Compare the first output of a file with expected values.

    Args:
        path: an ONNX file.
        cases: inputs by name, and the expected output.
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
            output = run(None, dict(inputs))[0]
        except Exception as error:
            raise CheckpointError(REFUSED.format(problem=f"{path.name} fails for {shapes} ({error})")) from error
        if output.shape != expected.shape:
            raise CheckpointError(
                REFUSED.format(problem=f"{path.name} gives {output.shape} for {shapes}; expected {expected.shape}")
            )
        lengths = np.linalg.norm(expected.astype(np.float64), axis=-1, keepdims=True)
        difference = float((np.abs(output.astype(np.float64) - expected) / lengths).max())
        if not difference <= limit:
            problem = f"{path.name} differs by {difference:.1e} for {shapes} (the limit is {limit:.0e})"
            raise CheckpointError(REFUSED.format(problem=problem))
        largest = max(largest, difference)
    return largest
