"""`scaled_dot_product_attention`, in the precision that suits the device.

Letters: B batch, T tokens, D width, H heads.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

SHORT = 512  # tokens up to which the matrix of attention is kept


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, causal: bool) -> Tensor:
    """`scaled_dot_product_attention` of (B, H, T, D / H) each; on a CPU, bfloat16 is trained through float32.

    torch's bfloat16 gradient of it is slower there than the float32 one, which is the more exact one too: by what
    factor, `python -m benchmarks.attention` says. Training is told by autocast too, since gradient caching embeds each
    picture twice, first without a graph, and both must give the same.
    """
    training = q.requires_grad or torch.is_autocast_enabled("cpu")
    if q.dtype != torch.bfloat16 or q.device.type != "cpu" or torch.compiler.is_compiling():
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=causal)
    if not training:
        plain = mask is None and not causal and k.shape[2] <= SHORT
        return by_products(q, k, v) if plain else F.scaled_dot_product_attention(q, k, v, mask, is_causal=causal)
    with torch.autocast("cpu", enabled=False):
        y = F.scaled_dot_product_attention(q.float(), k.float(), v.float(), attn_mask=mask, is_causal=causal)
    return y.to(q.dtype)


def by_products(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """softmax(q k^T / sqrt(D / H)) v as it is written: in bfloat16 on a CPU faster than the fused operator.

    By what factor, `python -m benchmarks.attention` says.
    """
    weights = (q * q.shape[-1] ** -0.5 @ k.mT).softmax(dim=-1)  # summed in float32, kept in bfloat16
    found: Tensor = weights @ v
    return found
