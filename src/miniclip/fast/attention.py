"""Scaled dot-product attention with the algorithm and precision that are fastest on the device.

Letters: B batch, T tokens, D width, H heads.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from miniclip.fast.private import has_amx

MAX_MATERIALIZED = 512  # tokens up to which the attention matrix is kept in memory


def attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, causal: bool) -> Tensor:
    """`scaled_dot_product_attention` of (B, H, T, D / H) each, with another algorithm for bfloat16 on a CPU.

    With gradients it computes in float32, which is faster there than torch's bfloat16 backward, and more accurate.
    Without gradients it materializes the attention matrix, unless the processor has matrix units: torch's operator uses
    them, and is not slower then. `python -m benchmarks.attention` measures both.
    """
    if q.dtype != torch.bfloat16 or q.device.type != "cpu" or torch.compiler.is_compiling():
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=causal)
    # Autocast means training too: gradient caching runs a first pass without a graph, which must give the same values.
    if q.requires_grad or torch.is_autocast_enabled("cpu"):
        with torch.autocast("cpu", enabled=False):
            y = F.scaled_dot_product_attention(q.float(), k.float(), v.float(), attn_mask=mask, is_causal=causal)
        return y.to(q.dtype)
    if mask is None and not causal and k.shape[2] <= MAX_MATERIALIZED and not has_amx():
        return materialized_attention(q, k, v)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=causal)


def materialized_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """softmax(q k^T / sqrt(D / H)) v as written; in bfloat16 faster than the fused operator on a CPU without AMX."""
    weights = (q * q.shape[-1] ** -0.5 @ k.mT).softmax(dim=-1)  # summed in float32, stored in bfloat16
    y: Tensor = weights @ v
    return y
