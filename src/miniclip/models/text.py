"""Text tower: one transformer that is OpenAI's, BERT's or SigLIP's by its configuration.

- OpenAI's CLIP is causal and pools the end token.
- BERT (Devlin et al. 2019) is bidirectional, masks padding and pools the first token.
- SigLIP (Zhai et al. 2023) is bidirectional, attends to padding and pools the last position; its rows always have the
  whole context length.
In the first two, tokens after the end token never reach the embedding.
Letters: B batch, T tokens, D width, E embedding.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from miniclip.config import TextConfig
from miniclip.models.layers import Transformer, projection


def sequence_lengths(tokens: Tensor, end_id: int | None) -> Tensor:
    """Length of each row (B, T) up to its first end token (None: its highest id); T if it has none: (B,) in 1..T."""
    end = tokens.amax(dim=1, keepdim=True) if end_id is None else end_id
    position = torch.arange(1, tokens.shape[1] + 1, device=tokens.device)
    return torch.where(tokens == end, position, tokens.shape[1]).amin(dim=1)


class TextTransformer(nn.Module):
    """Token ids to embeddings."""

    def __init__(self, config: TextConfig, embed_dim: int) -> None:
        super().__init__()
        self.config = config
        # avoids nn.Embedding's random weights, which on the meta device import sympy
        table = torch.zeros(config.vocab_size, config.width)
        self.tokens: nn.Embedding = nn.Embedding.from_pretrained(table, freeze=False)  # type: ignore[no-untyped-call]
        self.positions = nn.Parameter(torch.zeros(config.context_length, config.width))
        self.blocks = Transformer(config)
        self.norm_after = nn.LayerNorm(config.width, config.norm_eps)
        self.projection = projection(config.width, embed_dim, config.projection)

    def forward(self, tokens: Tensor) -> Tensor:
        """Embed texts: (B, T) ids of start token, text, end token and padding to (B, E), not normalized.

        Raises:
            ValueError: T exceeds the context length, or is shorter although padding is attended to.
        """
        B, T = tokens.shape
        self.check_length(T)
        lengths = sequence_lengths(tokens, self.config.end_id)
        x = self.tokens(tokens) + self.positions[:T]  # (B, T, D)
        x = self.blocks(x, self.key_padding_mask(lengths, T), self.config.causal)
        x = x[torch.arange(B, device=x.device), self.pool_indices(lengths, T)]  # (B, D)
        return self.projection(self.norm_after(x))  # type: ignore[no-any-return]

    def check_length(self, T: int) -> None:
        """Raise ValueError if rows of T tokens do not fit the context."""
        context, attended = self.config.context_length, self.config.padding == "attended"
        if context < T:
            raise ValueError(f"{T} tokens in a row, the context length is {context}: tokenize with context_length=")
        if attended and context > T:
            raise ValueError(f"{T} tokens in a row; this model takes rows of {context} tokens: tokenize with pad=True")

    def key_padding_mask(self, lengths: Tensor, T: int) -> Tensor | None:
        """(B, 1, 1, T), True for tokens that are not padding; None if no mask is needed."""
        if self.config.causal or self.config.padding == "attended":
            return None
        return (torch.arange(T, device=lengths.device) < lengths[:, None])[:, None, None, :]

    def pool_indices(self, lengths: Tensor, T: int) -> Tensor:
        """(B,) position of the token that is pooled."""
        if self.config.pooling == "first":
            return torch.zeros_like(lengths)
        return lengths - 1 if self.config.pooling == "end" else torch.full_like(lengths, T - 1)
