"""One tower to one ONNX file, through torch's exporter.

The opset is 18, the first with `Resize(antialias=1)`; onnxruntime has it since 1.14. A file holds its weights up to
the limit of protobuf, 2 GiB. Larger weights are written beside it. Source: https://onnx.ai/onnx/intro/concepts.html.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from miniclip.version import __version__

OPSET = 18
MAX_FILE = 2_000_000_000  # bytes of weights in one file; the graph needs the rest of 2 GiB
LOGGERS = ("torch.onnx", "torch.export", "onnxscript", "onnx_ir")

Axes = Mapping[int, str]  # dynamic dimensions of an input, and their names in the file


def require_onnx() -> None:
    """Check that the libraries of the extra `onnx` are installed.

    Raises:
        ImportError: one is missing.
    """
    try:
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401
        import tokenizers  # noqa: F401
    except ImportError as error:
        raise ImportError(
            f"{error.name} is not installed, and an export to ONNX needs it: pip install 'miniclip[onnx]'"
        ) from error


def trace(
    module: nn.Module, inputs: Mapping[str, Tensor], outputs: Sequence[str], axes: Mapping[str, Axes], longest: int = 0
) -> Any:
    """Translate a module to an ONNX model in memory.

    Args:
        module: takes the inputs in their order.
        inputs: an example of each input, by its name in the file; a dynamic dimension has at least 2 elements.
        outputs: names of the outputs.
        axes: dynamic dimensions by the name of their input, as in `{"text": {0: "batch", 1: "length"}}`.
        longest: upper bound of a dimension named "length"; 0: none.

    Returns:
        A model of the onnx_ir library.
    """
    bounds = {"length": {"min": 1, "max": longest}} if longest else {}
    dims = {name: torch.export.Dim(name, **bounds.get(name, {})) for part in axes.values() for name in part.values()}
    shapes = tuple({axis: dims[dim] for axis, dim in axes.get(name, {}).items()} for name in inputs)
    with _quiet(), _interruptible(), torch.no_grad():
        program = torch.onnx.export(
            module, tuple(inputs.values()), dynamo=True, opset_version=OPSET, dynamic_shapes=shapes, verbose=False
        )
    assert program is not None
    _rename(program.model, list(inputs), outputs)
    program.model.producer_name, program.model.producer_version = "miniclip", __version__
    return program.model


def _rename(model: Any, inputs: Sequence[str], outputs: Sequence[str]) -> None:
    """Give inputs and outputs their names, which no other value of the graph may have."""
    given = {*inputs, *outputs}
    for node in model.graph:
        for value in node.outputs:
            if value.name in given:
                value.name = f"inner_{value.name}"
    for values, names in ((model.graph.inputs, inputs), (model.graph.outputs, outputs)):
        for value, name in zip(values, names, strict=True):
            value.name = name


@contextmanager
def _interruptible() -> Iterator[None]:
    """Context in which Ctrl-C ends the export: the exporter can turn it into an error of its own."""
    try:
        yield
    except Exception as error:
        cause: BaseException | None = error
        while cause is not None:
            if isinstance(cause, KeyboardInterrupt):
                raise cause from None
            cause = cause.__cause__ or cause.__context__
        raise


@contextmanager
def _quiet() -> Iterator[None]:
    """Context without the exporter's messages about its own parts; an error is raised all the same."""
    loggers = [logging.getLogger(name) for name in LOGGERS]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)


def save(model: Any, path: Path, external: str | None = None) -> list[Path]:
    """Write an ONNX model, with its weights beside it if they exceed the limit of a file.

    Args:
        model: of the onnx_ir library.
        path: the file; its folder is made.
        external: name of the file of weights; None: the file's name with `.data` at its end.

    Returns:
        The files that were written.
    """
    import onnx_ir

    path.parent.mkdir(parents=True, exist_ok=True)
    weights = sum(value.const_value.nbytes for value in model.graph.initializers.values() if value.const_value)
    if weights <= MAX_FILE:
        onnx_ir.save(model, path)
        return [path]
    beside = path.with_name(external or f"{path.name}.data")
    onnx_ir.save(model, path, external_data=beside.name)
    return [path, beside]
