"""Attention of an ONNX graph as one operator of onnxruntime, `MultiHeadAttention`, which needs fewer copies.

The exporter writes scaled_dot_product_attention as some twenty nodes around two products and a softmax. An attention
whose nodes are of other kinds stays as it is. Their constants, such as which third of the columns are keys, are not
read. So that other constants give no wrong file, the outputs of the new file are compared with the former ones.
Source: https://github.com/microsoft/onnxruntime/blob/main/docs/ContribOperators.md.
Letters: B batch, T tokens, D width.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from miniclip.deployment.quantization.editing import Index, replace_nodes
from miniclip.deployment.verification import Arrays, session, verify

RUNTIME = "com.microsoft"  # domain of onnxruntime's own operators


def write_fused(source: Path, target: Path, heads: int, causal: bool, inputs: Arrays) -> None:
    """Write a file with fused attention, its weights beside it, and compare it with the source.

    Args:
        source: of a float32 tower that miniclip exported.
        target: the new file.
        heads: of the tower.
        causal: whether the tower is causal.
        inputs: a sample, by name.

    Raises:
        CheckpointError: the files give different outputs.
    """
    import onnx

    model = onnx.load(str(source))
    if fuse_attention(model.graph, heads, causal):
        model.opset_import.append(onnx.helper.make_opsetid(RUNTIME, 1))
    onnx.save(model, str(target), save_as_external_data=True, location=f"{target.name}.data")
    verify(target, [(inputs, session(source).run(None, dict(inputs))[0])])


def fuse_attention(graph: Any, heads: int, causal: bool) -> int:
    """Replace self-attention in a graph of onnx, in place.

    Args:
        graph: of a tower that miniclip exported.
        heads: of the tower.
        causal: whether the tower is causal, so that a mask is the causal one; other masks are left alone.

    Returns:
        The number of attentions that were replaced.
    """
    from onnx import helper

    index, fused = Index(graph), {}
    for node in graph.node:
        names = _attention(node, index, causal) if node.op_type == "Softmax" else None
        if names is not None:
            qkv, y = names
            parts = [f"{y}_{part}" for part in "qkv"]
            fused[y] = [
                helper.make_node("Split", [qkv], parts, axis=-1, num_outputs=3, name=f"{y}_split"),
                helper.make_node(
                    "MultiHeadAttention",
                    parts,
                    [y],
                    domain=RUNTIME,
                    name=f"{y}_attention",
                    num_heads=heads,
                    unidirectional=int(causal),
                ),
            ]
    replace_nodes(graph, fused)
    return len(fused)


def _attention(softmax: Any, index: Index, causal: bool) -> tuple[str, str] | None:
    """Return the names of packed queries, keys and values (B, T, 3 D) and of the result (B, T, D), or None."""
    producers = index.producers
    scores: Any = producers.get(softmax.input[0])
    is_masked = scores is not None and scores.op_type == "Add"
    if is_masked:
        scores = producers.get(scores.input[0])
    if scores is None or scores.op_type != "MatMul" or is_masked != causal:
        return None
    y = softmax.output[0]
    for kind in ("MatMul", "Transpose", "Reshape"):
        following = index.users.get(y, [])
        if [node.op_type for node in following] != [kind] or (kind == "MatMul" and following[0].input[0] != y):
            return None
        (node,) = following
        if kind == "MatMul":
            values = node.input[1]
        y = node.output[0]
    query = _walk(scores.input[0], producers, ("Mul", "Squeeze", "Slice", "Transpose", "Reshape"))
    transposed = ("Mul", "Reshape", "Transpose", "Reshape")
    key = _walk(scores.input[1], producers, (*transposed, "Squeeze", "Slice", "Transpose", "Reshape"))
    value = _walk(values, producers, ("Squeeze", "Slice", "Transpose", "Reshape"))
    if query is None or not query == key == value:  # another query, for one token per sequence
        return None
    return query, y


def _walk(name: str, producers: Any, kinds: Sequence[str]) -> str | None:
    """Return the first input of the last node, if the producers upwards are of these kinds."""
    for kind in kinds:
        node = producers.get(name)
        if node is None or node.op_type != kind:
            return None
        name = node.input[0]
    return name
