"""Relevance of patches and of tokens for the similarity of an image and a text, by two methods.

- Grad-ECLIP (Zhao et al. 2024, arXiv 2502.18816): in the last attention layer, each value vector times the gradient of
  the similarity, weighted by the normalized similarity of query and key instead of the sparse softmax.
- LeGrad (Bousselham et al. 2024, arXiv 2404.03214): in every layer, the positive gradient of the similarity with
  respect to the attention weights, where the layer's output is pooled as if it were the last.
Both work for class-token, mean and attention pooling of images, and for every pooling of texts.
Letters: B pairs, H heads, T tokens, P patches, D width, E embedding.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, NamedTuple, cast, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from miniclip.explanation.recording import Record, RecordingAttention, recording
from miniclip.models.text import TextTransformer, sequence_lengths
from miniclip.models.vision import VisionTransformer

Method = Literal["legrad", "grad_eclip"]
METHODS: tuple[Method, ...] = get_args(Method)


class Pass(NamedTuple):
    """One recorded forward pass of a tower."""

    layers: list[Record]  # attention of each block
    outputs: list[Tensor]  # output (B, T, D) of each block
    pool: Callable[[Tensor], tuple[Tensor, Record | None]]  # a block's output to (B, E), and the pooling's attention
    items: Tensor  # (B, T) bool: the tokens to explain


def image_relevance(tower: VisionTransformer, pixels: Tensor, texts: Tensor, method: Method) -> Tensor:
    """Relevance of each patch for the similarity with a text.

    Args:
        tower: image tower; its parameters get no gradient.
        pixels: (B, 3, S, S), normalized.
        texts: (B, E) text embeddings.
        method: "grad_eclip" or "legrad".

    Returns:
        (B, P) float32, at least 0, in reading order.
    """
    with torch.enable_grad(), recording(tower):
        relevance = _FUNCTIONS[method](_image_pass(tower, pixels), texts)
    return relevance[:, -tower.config.patches :]


def text_relevance(tower: TextTransformer, tokens: Tensor, items: Tensor, images: Tensor, method: Method) -> Tensor:
    """Relevance of each token for the similarity with an image.

    Args:
        tower: text tower; its parameters get no gradient.
        tokens: (B, T) integer.
        items: (B, T) bool, the tokens to explain.
        images: (B, E) image embeddings.
        method: "grad_eclip" or "legrad".

    Returns:
        (B, T) float32, at least 0; 0 for other tokens.
    """
    with torch.enable_grad(), recording(tower):
        return _FUNCTIONS[method](_text_pass(tower, tokens, items), images)


def _image_pass(tower: VisionTransformer, pixels: Tensor) -> Pass:
    x = tower.norm_before(tower.embed(pixels, None))
    items = torch.ones(x.shape[:2], dtype=torch.bool, device=x.device)
    items[:, : int(tower.config.class_token)] = False

    def pool(x: Tensor) -> tuple[Tensor, Record | None]:
        if tower.pool is not None:
            embedding = tower.projection(tower.pool(tower.norm_after(x)))
            return embedding, _record(tower.pool.attention)
        pooled = x[:, 0] if tower.config.pooling == "class" else x[:, int(tower.config.class_token) :].mean(dim=1)
        return tower.projection(tower.norm_after(pooled)), None

    return _record_blocks(tower, x, (None, False), pool, items)


def _text_pass(tower: TextTransformer, tokens: Tensor, items: Tensor) -> Pass:
    B, T = tokens.shape
    lengths = sequence_lengths(tokens, tower.config.end_id)
    x = tower.tokens(tokens) + tower.positions[:T]
    rows, columns = torch.arange(B, device=x.device), tower.pool_indices(lengths, T)
    mask = tower.key_padding_mask(lengths, T)

    def pool(x: Tensor) -> tuple[Tensor, Record | None]:
        return tower.projection(tower.norm_after(x[rows, columns])), None

    return _record_blocks(tower, x, (mask, tower.config.causal), pool, items)


def _record_blocks(
    tower: VisionTransformer | TextTransformer,
    x: Tensor,
    mask: tuple[Tensor | None, bool],
    pool: Callable[[Tensor], tuple[Tensor, Record | None]],
    items: Tensor,
) -> Pass:
    x = x.detach().requires_grad_()  # gradients also flow through a frozen tower
    outputs, layers = [], []
    for block in tower.blocks:
        x = block(x, *mask)
        outputs.append(x)
        layers.append(_record(block.attention))
    return Pass(layers, outputs, pool, items)


def _record(attention: Any) -> Record:
    return cast(RecordingAttention, attention).record


def _grad_eclip(recorded: Pass, others: Tensor) -> Tensor:
    embedding, record = recorded.pool(recorded.outputs[-1])
    layer, items = record or recorded.layers[-1], recorded.items
    (gradient,) = torch.autograd.grad(_similarity(embedding, others), layer.output)
    q, k, v, g = (part.detach().transpose(1, 2).flatten(2) for part in (layer.query, layer.key, layer.value, gradient))
    if record is not None:  # the pooling's query stands before the tokens
        q, k, v, g = q[:, :1], k[:, 1:], v[:, 1:], g[:, :1]
    cosine = F.normalize(q, dim=2) @ F.normalize(k, dim=2).transpose(1, 2)  # (B, queries, T)
    low = cosine.masked_fill(~items[:, None], torch.inf).amin(dim=2, keepdim=True)
    high = cosine.masked_fill(~items[:, None], -torch.inf).amax(dim=2, keepdim=True)
    weight = (cosine - low) / (high - low).clamp_min(torch.finfo(cosine.dtype).eps)
    relevance = (weight * (g @ v.transpose(1, 2))).sum(dim=1)  # (B, T); g is zero for queries that are not pooled
    return relevance.relu().masked_fill(~items, 0).float()


def _legrad(recorded: Pass, others: Tensor) -> Tensor:
    total = torch.zeros(recorded.items.shape, device=others.device)
    for layer, output in zip(recorded.layers, recorded.outputs, strict=True):
        embedding, record = recorded.pool(output)
        weights = (record or layer).weights
        (gradient,) = torch.autograd.grad(_similarity(embedding, others), weights, retain_graph=True)
        positive = gradient.relu().mean(dim=1)  # (B, T, T), mean over the heads
        total += positive[:, 0, 1:] if record is not None else positive.mean(dim=1)
    return total.masked_fill(~recorded.items, 0)


def _similarity(embedding: Tensor, others: Tensor) -> Tensor:
    """Sum of the cosines of B pairs; the pairs are independent, so each gets its own gradient."""
    return F.cosine_similarity(embedding, others.detach().to(embedding.dtype), dim=1).sum()


_FUNCTIONS: dict[str, Callable[[Pass, Tensor], Tensor]] = {"grad_eclip": _grad_eclip, "legrad": _legrad}
