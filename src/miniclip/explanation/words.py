"""Words of a text, and the tokens that each consists of."""

from __future__ import annotations

from typing import Any, NamedTuple

from torch import Tensor


class Word(NamedTuple):
    """One word of a text."""

    text: str
    positions: tuple[int, ...]  # where its tokens are in the row
    relevance: float = 0.0  # in 0..1


def group_words(tokenizer: Any, text: str, row: Tensor) -> list[Word]:
    """Group a text's tokens into words, without the tokens that begin and end a row and without padding.

    Consecutive tokens form a word if together they spell a word of the normalized text. Otherwise each token is a word.

    Args:
        tokenizer: a tokenizer with `encode` and `decode`.
        text: the text.
        row: (T,) its token ids, which may be cut.
    """
    start = len(tokenizer.before)
    if tokenizer.pad_left:
        start += int((row == tokenizer.pad_id).cumprod(0).sum())
    ids = tokenizer.encode(text)[: len(row) - start - len(tokenizer.after)]
    grouped: list[Word] = []
    index = 0
    for word in tokenizer.normalize(text).split():
        end = index + 1
        while end <= len(ids) and tokenizer.decode(ids[index:end]).strip() != word:
            end += 1
        if end > len(ids):
            break
        grouped.append(Word(word, tuple(range(start + index, start + end))))
        index = end
    rest = [Word(tokenizer.decode([ids[i]]).strip(), (start + i,)) for i in range(index, len(ids))]
    return grouped + rest
