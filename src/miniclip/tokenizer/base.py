"""Interface of a tokenizer, and the making of batches that all tokenizers share."""

import operator
import os
import warnings
from collections.abc import Iterable, Sequence
from typing import Protocol

import torch

from miniclip.tokenizer.chunk_cache import BYTES_PER_ID, pack_ids
from miniclip.utils.checks import whole_number
from miniclip.utils.items import TEXTS, listed


class TextTokenizer(Protocol):
    """Interface that models and caption loaders need.

    `Tokenizer` and `LibraryTokenizer` have it; any other object with it can be used too.
    """

    @property
    def vocab_size(self) -> int:
        """Highest id plus 1."""

    @property
    def end_id(self) -> int | None:
        """Id that ends a caption, or None."""

    def __call__(self, texts: str | Sequence[str], context_length: int = 77, pad: bool = False) -> torch.Tensor:
        """Tokenize captions into ids (N, T), int64; with pad, T is context_length."""

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the tokenizer to a file, or to a file in a directory."""


class BatchTokenizer:
    """Base class that turns the ids of captions into a batch; subclasses define `encode` and the attributes.

    Attributes:
        before, after: ids at the beginning and the end of every row.
        pad_id, pad_left: id of the padding, and whether it precedes the caption.
        truncated: number of captions that `__call__` has cut in this process.
    """

    before: tuple[int, ...]
    after: tuple[int, ...]
    pad_id: int
    pad_left = False

    def __init__(self) -> None:
        self.truncated = 0
        self._warned = False

    def encode(self, text: str) -> list[int]:
        """Return the ids of a text, without those that begin and end a row, never cut."""
        raise NotImplementedError

    def __call__(self, texts: str | Sequence[str], context_length: int = 77, pad: bool = False) -> torch.Tensor:
        """Tokenize captions into a batch.

        A caption that does not fit is cut and keeps the ids that end a row. `truncated` counts such captions, and the
        first one warns.

        Args:
            texts: one caption, or a sequence of N captions.
            context_length: maximum number of tokens of a row, including those that begin and end it.
            pad: pad to context_length instead of to the longest row.

        Returns:
            Ids (N, T), int64. A row is `before`, the caption's ids, `after`, then `pad_id`; with `pad_left` the
            padding comes first. Without captions, T is the length of an empty caption's row (context_length with pad).

        Raises:
            ValueError: context_length has no room for a token of the caption.
            TypeError: a caption is not a string, or the captions are a table, a dict or a set.
        """
        context_length = whole_number("context_length", context_length)
        num_special = len(self.before) + len(self.after)
        if context_length <= num_special:
            raise ValueError(
                f"context_length={context_length} is too small: {num_special + 1} is the least "
                f"(one token, and {num_special} around it)"
            )
        one = isinstance(texts, str) or not hasattr(texts, "__iter__")
        captions = [texts] if one else listed(texts, "captions", f"a string, or {TEXTS}")
        packed = self._encode_packed(check_caption(text, index) for index, text in enumerate(captions))
        room = (context_length - num_special) * BYTES_PER_ID
        too_long = [len(ids) // BYTES_PER_ID + num_special for ids in packed if len(ids) > room]
        if too_long:
            self._count_truncated(too_long, context_length)
        begin, end, padding = pack_ids(self.before), pack_ids(self.after), pack_ids([self.pad_id])
        rows = [begin + ids[:room] + end for ids in packed]
        longest = max(map(len, rows), default=num_special * BYTES_PER_ID) // BYTES_PER_ID
        width = context_length if pad else max(1, longest)  # an empty caption may have no token
        padding *= width
        if self.pad_left:
            rows = [padding[len(row) :] + row for row in rows]
        else:
            rows = [row + padding[len(row) :] for row in rows]
        if not rows:
            return torch.zeros(0, width, dtype=torch.int64, device="cpu")
        return torch.frombuffer(bytearray().join(rows), dtype=torch.int64).view(len(rows), width)  # (N, T)

    def _encode_packed(self, captions: Iterable[str]) -> list[bytes]:
        """Return the ids of every caption as bytes; see `pack_ids`."""
        return [pack_ids(self.encode(text)) for text in captions]

    def _count_truncated(self, lengths: list[int], context_length: int) -> None:
        self.truncated += len(lengths)
        if not self._warned:
            self._warned = True
            warnings.warn(
                f"a caption of {lengths[0]} tokens, start and end included, was cut to "
                f"context_length={context_length}: shorten the captions, or raise context_length if the model allows. "
                "This warning appears once; .truncated counts all such captions.",
                UserWarning,
                stacklevel=3,
            )


def check_caption(text: object, index: int) -> str:
    """Return a caption.

    Raises:
        TypeError: it is not a string.
    """
    if not isinstance(text, str):
        raise TypeError(f"caption {index} is of type {type(text).__name__}; expected str")
    return text


def check_ids(ids: Iterable[int], vocab_size: int) -> list[int]:
    """Return ids, of an iterable or a 1-D tensor, as a list.

    Raises:
        ValueError: an id is not in the vocabulary.
    """
    row = [operator.index(index) for index in ids]
    for index in row:
        if not 0 <= index < vocab_size:
            raise ValueError(f"id {index} is not in the vocabulary: ids go from 0 to {vocab_size - 1}")
    return row
