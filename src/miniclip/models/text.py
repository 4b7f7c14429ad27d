"""The text tower: one transformer, OpenAI's or BERT's by its configuration.

OpenAI's CLIP is causal and pooled at the end token; BERT (Devlin et al. 2019) is bidirectional, padding masked, pooled
at its first token. Either way what stands after a caption's end token never reaches its embedding: a batch may
be cut at its longest caption (`trim`) without changing a result. Letters: B batch, T tokens, D width, E embedding.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from miniclip.config import TextConfig
from miniclip.models.layers import Transformer


def lengths(tokens: Tensor, end_id: int) -> Tensor:
    """Tokens of each caption up to its first end token, that one included; T where a row has none.

    Args:
        tokens: (B, T) integer.
        end_id: the end token's id.

    Returns:
        (B,) int64, each in 1..T.
    """
    position = torch.arange(1, tokens.shape[1] + 1, device=tokens.device)
    return torch.where(tokens == end_id, position, tokens.shape[1]).amin(dim=1)


def trim(tokens: Tensor, end_id: int) -> Tensor:
    """The batch cut at its longest caption: (B, T) to (B, max of `lengths`), which is exact for both towers.

    On a GPU this waits for the device once, to learn the length.
    """
    return tokens[:, : int(lengths(tokens, end_id).max())] if tokens.numel() else tokens


class TextTransformer(nn.Module):
    """Token ids to embeddings."""

    def __init__(self, config: TextConfig, embed_dim: int) -> None:
        super().__init__()
        self.config = config
        self.tokens = nn.Embedding(config.vocab_size, config.width)
        self.positions = nn.Parameter(torch.zeros(config.context_length, config.width))
        self.blocks = Transformer(config.width, config.layers, config.heads, config.activation)
        self.norm_after = nn.LayerNorm(config.width)
        self.projection = nn.Linear(config.width, embed_dim, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        """Embed captions.

        Args:
            tokens: (B, T) integer, T at most the context length; start, words, end, then any padding.

        Returns:
            (B, E), not normalised.

        Raises:
            ValueError: T is greater than the context length.
        """
        if tokens.shape[1] > self.config.context_length:
            raise ValueError(
                f"{tokens.shape[1]} tokens in a row; this model's context is {self.config.context_length}: let the "
                "tokenizer cut (context_length=…), which keeps the end token"
            )
        if tokens.device.type == "cpu" and not torch.compiler.is_compiling():
            tokens = trim(tokens, self.config.end_id)  # elsewhere it would wait for the device: the loader has cut
        length = lengths(tokens, self.config.end_id)  # (B,)
        x = self.tokens(tokens) + self.positions[: tokens.shape[1]]  # (B, T, D)
        x = self.blocks(x, self._mask(length, tokens.shape[1]), self.config.causal)
        last = torch.zeros_like(length) if self.config.pooling == "first" else length - 1
        pooled = x[torch.arange(len(x), device=x.device), last]  # (B, D)
        return self.projection(self.norm_after(pooled))  # type: ignore[no-any-return]

    def _mask(self, length: Tensor, tokens: int) -> Tensor | None:
        """(B, 1, 1, T), True where a key is no padding; None for causal text, which never sees what comes after."""
        if self.config.causal:
            return None
        return (torch.arange(tokens, device=length.device) < length[:, None])[:, None, None, :]
