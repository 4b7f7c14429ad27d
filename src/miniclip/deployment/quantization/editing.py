"""Lookup and replacement of nodes in a graph of onnx."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy.typing as npt


class Index:
    """Nodes and constants of a graph by the names of values.

    Attributes:
        producers: value to the node that makes it.
        users: value to the nodes that take it.
    """

    def __init__(self, graph: Any) -> None:
        self.producers: dict[str, Any] = {output: node for node in graph.node for output in node.output}
        self.users: dict[str, list[Any]] = {}
        for node in graph.node:
            for name in node.input:
                self.users.setdefault(name, []).append(node)
        self._constants = {tensor.name: tensor for tensor in graph.initializer}

    def is_constant(self, name: str, dims: int) -> bool:
        """Whether a value is a constant of float32 with a number of dimensions."""
        from onnx import TensorProto

        tensor = self._constants.get(name)
        return tensor is not None and tensor.data_type == TensorProto.FLOAT and len(tensor.dims) == dims

    def array(self, name: str) -> npt.NDArray[Any]:
        """Return a constant."""
        from onnx import numpy_helper

        return numpy_helper.to_array(self._constants[name])


def replace_nodes(graph: Any, replaced: Mapping[str, Sequence[Any]], added: Sequence[Any] = ()) -> None:
    """Replace nodes in place, and drop the nodes and constants that no output depends on.

    Args:
        graph: of onnx.
        replaced: first output of a node to the nodes in its place, in their order.
        added: constants of the new nodes.
    """
    needed, nodes = {output.name for output in graph.output}, []
    for node in reversed([new for old in graph.node for new in replaced.get(old.output[0], [old])]):
        if needed.intersection(node.output):
            needed.update(node.input)
            nodes.append(node)
    constants = [tensor for tensor in (*graph.initializer, *added) if tensor.name in needed]
    for field, entries in ((graph.node, nodes[::-1]), (graph.initializer, constants)):
        del field[:]
        field.extend(entries)
