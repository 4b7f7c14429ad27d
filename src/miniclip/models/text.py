"""The text tower: one transformer, OpenAI's, BERT's or SigLIP's by its configuration.

OpenAI's CLIP is causal and pooled at the end token; BERT (Devlin et al. 2019) is bidirectional, padding masked, pooled
at its first token. Either way what stands after a caption's end token never reaches its embedding: a batch may
be cut at its longest caption (`trim`) without changing a result. SigLIP (Zhai et al. 2023) is bidirectional and attends
to padding: its rows have the context's whole length, always. Letters: B batch, T tokens, D width, E embedding.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from miniclip.config import TextConfig
from miniclip.fast.prefix import SharedPrefix
from miniclip.fast.unpadded import Unpadded
from miniclip.models.layers import Layout, Transformer, projection

MOST_WORDS = 0.85  # the share of a batch that is no padding, from which on it is not worth to leave the padding out


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
        # nn.Embedding draws weights, which `initialise` or a file replaces; on the meta device it imports sympy for it
        table = torch.zeros(config.vocab_size, config.width)
        self.tokens: nn.Embedding = nn.Embedding.from_pretrained(table, freeze=False)  # type: ignore[no-untyped-call]
        self.positions = nn.Parameter(torch.zeros(config.context_length, config.width))
        self.blocks = Transformer(config)
        self.norm_after = nn.LayerNorm(config.width, config.norm_eps)
        self.projection = projection(config.width, embed_dim, config.projection)

    def forward(self, tokens: Tensor, shared: int = 0) -> Tensor:
        """Embed captions.

        Args:
            tokens: (B, T) integer, T at most the context length; start, words, end, then any padding. A tower that
                attends to its padding takes rows of the context length alone, padded by its tokenizer.
            shared: in a causal tower not pooled at its first token, without gradient: how many tokens all rows begin
                with alike, fewer than the shortest has. They are then computed once; the embeddings are the same.

        Returns:
            (B, E), not normalised.

        Raises:
            ValueError: T is greater than the context length, or less and padding is attended to.
        """
        self._check_length(tokens.shape[1])
        if self.config.padding == "masked" and tokens.device.type == "cpu" and not torch.compiler.is_compiling():
            tokens = trim(tokens, self.config.end_id)  # elsewhere it would wait for the device: the loader has cut
        length = lengths(tokens, self.config.end_id)  # (B,)
        x = self.tokens(tokens) + self.positions[: tokens.shape[1]]  # (B, T, D)
        at = self._pooled(length, tokens.shape[1])
        layout = self._layout(length, tokens, shared)
        if layout is None:
            pooled = self.blocks(x, self._mask(length, tokens.shape[1]), self.config.causal, at)  # (B, D)
        else:
            pooled = self.blocks(layout.lay(x), layout, False, at)
        return self.projection(self.norm_after(pooled))  # type: ignore[no-any-return]

    def _layout(self, length: Tensor, tokens: Tensor, shared: int) -> Layout | None:
        """How to lay the tokens so that less is computed; None: as they are."""
        rows, width = tokens.shape
        if shared:
            return SharedPrefix(shared, rows, width - shared)
        if tokens.device.type != "cpu" or self.config.padding == "attended" or torch.compiler.is_compiling():
            return None
        if self.blocks.compiled or int(length.sum()) > MOST_WORDS * tokens.numel():
            return None
        return Unpadded.of(length, width, self.config.causal)

    def _check_length(self, found: int) -> None:
        expected = self.config.context_length
        if found > expected:
            raise ValueError(
                f"{found} tokens in a row; this model's context is {expected}: let the tokenizer cut "
                "(context_length=…), which keeps the end token"
            )
        if found < expected and self.config.padding == "attended":
            raise ValueError(
                f"{found} tokens in a row; this model attends to padding too, and takes rows of its whole context, "
                f"{expected}: tokenize with pad=True"
            )

    def _mask(self, length: Tensor, tokens: int) -> Tensor | None:
        """(B, 1, 1, T), True where a key is no padding; None where nothing is masked, or causality does it."""
        if self.config.causal or self.config.padding == "attended":
            return None
        return (torch.arange(tokens, device=length.device) < length[:, None])[:, None, None, :]

    def _pooled(self, length: Tensor, tokens: int) -> Tensor:
        """(B,), the position whose output stands for the caption."""
        if self.config.pooling == "first":
            return torch.zeros_like(length)
        return length - 1 if self.config.pooling == "end" else torch.full_like(length, tokens - 1)
