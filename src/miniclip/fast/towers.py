"""Fast forms of the two towers: pooling inside the last block, captions without padding, prompts with a shared prefix.

Letters: B batch, T tokens, P prefix tokens, D width, E embedding.
"""

from __future__ import annotations

import torch
from torch import Tensor

from miniclip.fast.layers import FastTransformer, PackedLayout, is_exact
from miniclip.fast.matmul import apply_linear
from miniclip.fast.prefix import SharedPrefix
from miniclip.fast.private import has_hooks, is_compiled
from miniclip.fast.unpadding import PackedSequences
from miniclip.models.text import TextTransformer, sequence_lengths
from miniclip.models.vision import VisionTransformer

MAX_DENSITY = 0.85  # fraction of tokens that are not padding, above which unpadding does not pay


class FastVisionTransformer(VisionTransformer):
    """Image tower that computes only the class token in the last block."""

    def forward(self, pixels: Tensor, patch_indices: Tensor | None = None) -> Tensor:
        """As `VisionTransformer.forward`."""
        x = self.norm_before(self.embed(pixels, patch_indices))
        return apply_linear(self.projection, self.encode(x))

    def encode(self, x: Tensor) -> Tensor:
        """Blocks, pooling and norm: (B, T, D) to (B, D)."""
        if self.config.pooling != "class" or not is_exact(self.blocks):
            return super().encode(x)
        first = torch.zeros(x.shape[0], dtype=torch.int64, device=x.device)
        return self.norm_after(self.blocks(x, pool_indices=first))  # type: ignore[no-any-return]


class FastTextTransformer(TextTransformer):
    """Text tower that computes only the pooled token in the last block, and on a CPU no padding."""

    def forward(self, tokens: Tensor) -> Tensor:
        """As `TextTransformer.forward`."""
        self.check_length(tokens.shape[1])
        if not is_exact(self.blocks):
            return super().forward(tokens)
        if not self._can_unpad(tokens):
            return self._forward(tokens, sequence_lengths(tokens, self.config.end_id), None)
        tokens = trim(tokens, self.config.end_id)
        lengths = sequence_lengths(tokens, self.config.end_id)
        layout = None
        if not is_compiled(self.blocks[0]) and 0 < int(lengths.sum()) <= MAX_DENSITY * tokens.numel():
            layout = PackedSequences.from_lengths(lengths, tokens.shape[1], self.config.causal)
        return self._forward(tokens, lengths, layout)

    def forward_shared(self, tokens: Tensor, prefix: int) -> Tensor:
        """Embed texts with a common prefix, without gradient.

        Args:
            tokens: (B, T) integer, equal in their first `prefix` columns.
            prefix: P, less than the length of the shortest text.

        Returns:
            (B, E), equal to `forward(tokens)`.
        """
        if prefix == 0 or not self.can_share_prefix():
            return self(tokens)  # type: ignore[no-any-return]
        B, T = tokens.shape
        self.check_length(T)
        return self._forward(tokens, sequence_lengths(tokens, self.config.end_id), SharedPrefix(prefix, B, T - prefix))

    def can_share_prefix(self) -> bool:
        """Whether a common prefix may be computed once: the tower is causal and does not pool inside the prefix.

        With stochastic depth, the texts of a batch in training differ in their prefixes.
        """
        pools_later = self.config.pooling != "first" and self.config.end_id is not None
        stochastic = self.training and any(getattr(block, "drop_rate", 0.0) for block in self.blocks)
        return self.config.causal and pools_later and not has_hooks(self) and is_exact(self.blocks) and not stochastic

    def _forward(self, tokens: Tensor, lengths: Tensor, layout: PackedLayout | None) -> Tensor:
        T = tokens.shape[1]
        x = self.tokens(tokens) + self.positions[:T]  # (B, T, D)
        pool_indices = self.pool_indices(lengths, T)
        if layout is None:
            pooled = self.blocks(x, self.key_padding_mask(lengths, T), self.config.causal, pool_indices)
        else:
            pooled = self.blocks(layout.pack(x), layout, False, pool_indices)
        return apply_linear(self.projection, self.norm_after(pooled))

    def _can_unpad(self, tokens: Tensor) -> bool:
        """On a CPU, reading lengths is free and padding is not; a GPU would have to wait for them."""
        return self.config.padding == "masked" and tokens.device.type == "cpu" and not torch.compiler.is_compiling()


def trim(tokens: Tensor, end_id: int | None) -> Tensor:
    """Cut a batch at its longest text: (B, T) to (B, max of `sequence_lengths`). Waits for a GPU once."""
    return tokens[:, : int(sequence_lengths(tokens, end_id).max())] if tokens.numel() else tokens


__all__ = ["FastTextTransformer", "FastTransformer", "FastVisionTransformer", "trim"]
