r"""Byte-level BPE, as CLIP uses it: captions to token ids and back.

A caption is cleaned and split into words (pre-tokens). Every word is written as its UTF-8 bytes, one printable symbol
per byte, the last one marked with ``</w>``. Learned merges then join neighbouring symbols, the earliest learned first.
Every text has an encoding, since every byte is a token; no id stands for "unknown".

The vocabulary, in OpenAI's order: 256 byte symbols, the same 256 with ``</w>``, one token per merge, then
``<|startoftext|>`` and ``<|endoftext|>``. The end token is the highest id, which text towers use to find it.

Three rules to know:

- The name of a special token is plain text inside a caption: no caption can start or end itself. (open_clip does the
  same with ``<|endoftext|>``, but takes its own spellings, ``<start_of_text>`` and ``<end_of_text>``, for special.)
- A trained tokenizer cleans by lowercase, NFC and whitespace alone. tokenizer.json says so in full: the tokenizers
  library gives the same ids from it, but for letters and accents younger than its Unicode tables: letters that it
  takes for symbols (since Unicode 15), accents that it leaves in another order (since Unicode 10).
- OpenAI's vocabulary cleans as OpenAI did, with ftfy and html. No file can say that, so its file says the nearest: the
  library gives other ids for what only those two mend (mojibake, full-width forms, ligatures, rare entities), and for
  a capital sigma that ends a word.

Sources: Sennrich et al. 2016, https://arxiv.org/abs/1508.07909 (BPE on words); Radford et al. 2019, GPT-2 (on bytes);
Radford et al. 2021, https://arxiv.org/abs/2103.00020, and clip/simple_tokenizer.py beside it (``</w>``, cleaning).
"""

import hashlib
import itertools
import operator
import os
import re
import unicodedata
import warnings
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Protocol

import regex
import torch

from miniclip.errors import CheckpointError
from miniclip.tokenizer import files, mending
from miniclip.tokenizer.bpe import (
    MIN_VOCAB_SIZE,
    PATTERN,
    WORD_END,
    Pair,
    byte_symbols,
    check_parts,
    index_merges,
    join,
    learn,
    token_bytes,
    vocabulary,
)
from miniclip.tokenizer.chunks import ID, Apart, Chunks, packed

_SPLIT = regex.compile(PATTERN)
_SPLIT_ASCII = re.compile(PATTERN.replace(r"\p{L}", "a-z").replace(r"\p{N}", "0-9"))  # of lowercase: twice as fast
_SPLIT_OPENAI = regex.compile(PATTERN, regex.IGNORECASE)  # tells, in lowercase text, for U+017F (as in 'ſ) and U+0345

# of the merges in https://github.com/openai/CLIP, clip/bpe_simple_vocab_16e6.txt.gz, a line each
OPENAI_MERGES_SHA256 = "f61f2adf497e6f5357c347aeb4646fabe82f341e946de5bdec5d2858e41bef4a"

_CACHED_WORDS, _CACHED_LENGTH = 1 << 20, 128  # words remembered at most, and the longest one worth remembering
_LONG = 10_000  # characters of a text that goes the plain way: ftfy cuts far longer ones, at any place


class TextTokenizer(Protocol):
    """What a model, and a loader of captions, need of a tokenizer.

    `Tokenizer` and `miniclip.tokenizer.LibraryTokenizer` have it; any other object that has it will do.
    """

    @property
    def vocab_size(self) -> int:
        """The highest id, plus 1."""

    @property
    def end_id(self) -> int | None:
        """The id that ends a caption; None if none does."""

    def __call__(self, texts: str | Sequence[str], context_length: int = 77, pad: bool = False) -> torch.Tensor:
        """Captions to one batch of ids, (N, T) int64; with pad, T is context_length."""

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the tokenizer's one file, or that file into a directory."""


class RowTokenizer:
    """Captions to rows of ids: what the tokenizers share. Each has its own `encode`, and what frames its rows.

    Attributes:
        before, after: the ids that begin and end every row.
        pad_id, pad_left: what makes rows equally long, and whether it stands before them.
        truncated: how many captions `__call__` has cut so far, in this process.
    """

    before: tuple[int, ...]
    after: tuple[int, ...]
    pad_id: int
    pad_left = False

    def __init__(self) -> None:
        self.truncated = 0
        self._warned = False

    def encode(self, text: str) -> list[int]:
        """The ids of a text alone, never cut."""
        raise NotImplementedError

    def __call__(self, texts: str | Sequence[str], context_length: int = 77, pad: bool = False) -> torch.Tensor:
        """Tokenize captions into one batch.

        A caption that does not fit is cut, and keeps the ids that end a row. `truncated` counts such captions, and the
        first one warns.

        Args:
            texts: a caption, or a sequence of N of them.
            context_length: tokens of a row at most, those that begin and end it included.
            pad: make rows as long as context_length, instead of as long as the longest of them.

        Returns:
            (N, T) int64: every row `before`, the caption's ids, `after`, then `pad_id` (or first, with `pad_left`).
            With no captions at all, T is the length of an empty caption's row (context_length with pad).

        Raises:
            ValueError: context_length leaves no room for a token of the caption.
            TypeError: a caption is not a string.
        """
        frame = len(self.before) + len(self.after)
        if context_length <= frame:
            least = f"{frame + 1} is the least (a token, and {frame} around it)"
            raise ValueError(f"context_length={context_length} is too small: {least}")
        captions = [texts] if isinstance(texts, str) or not hasattr(texts, "__iter__") else texts
        found = self._packed(_checked(text, index) for index, text in enumerate(captions))
        room = context_length - frame
        long = [len(ids) // ID + frame for ids in found if len(ids) > room * ID]
        if long:
            self._report(long, context_length)
        begin, end, padding = packed(self.before), packed(self.after), packed([self.pad_id])
        rows = [begin + ids[: room * ID] + end for ids in found]
        width = context_length if pad else max(map(len, rows), default=frame * ID) // ID
        padding *= width
        if self.pad_left:
            rows = [padding[len(row) :] + row for row in rows]
        else:
            rows = [row + padding[len(row) :] for row in rows]
        if not rows:
            return torch.zeros(0, width, dtype=torch.int64)
        return torch.frombuffer(bytearray().join(rows), dtype=torch.int64).view(len(rows), width)  # (N, T)

    def _packed(self, captions: Iterable[str]) -> list[bytes]:
        """The ids of every caption, 8 bytes each."""
        return [packed(self.encode(text)) for text in captions]

    def _report(self, lengths: list[int], limit: int) -> None:
        self.truncated += len(lengths)
        if not self._warned:
            self._warned = True
            warnings.warn(
                f"a caption of {lengths[0]} tokens, start and end included, was cut to context_length={limit}: shorten "
                "the captions, or raise context_length if the model allows. Said once; .truncated counts all of them.",
                UserWarning,
                stacklevel=3,
            )


class Tokenizer(RowTokenizer):
    """Text to ids and back. Get one by `Tokenizer.train` or `Tokenizer.load`.

    Args:
        vocab: token to id, the ids 0 to len(vocab) - 1, the start and the end token last.
        merges: pairs of tokens, the earliest learned first.
        openai_cleaning: mend the text as OpenAI did (ftfy, HTML entities) instead of NFC alone.

    Attributes:
        vocab_size: number of ids.
        start_id, end_id: the ids that begin and end every row; the last two.
        pad_id: what follows the end in a row: 0, which is also the token of "!" inside a word. (transformers pads with
            the end token. No tower of CLIP's kind looks beyond the first one.)
        truncated: how many captions a call has cut so far, in this process.

    Raises:
        ValueError: the vocabulary and the merges do not make a tokenizer of this kind.
    """

    pad_id = 0

    def __init__(self, vocab: dict[str, int], merges: Sequence[Pair], *, openai_cleaning: bool = False) -> None:
        super().__init__()
        check_parts(vocab, merges)
        self.vocab = dict(vocab)
        self.merges = list(merges)
        self.openai_cleaning = openai_cleaning
        self.vocab_size = len(vocab)
        self.start_id, self.end_id = len(vocab) - 2, len(vocab) - 1
        self.before, self.after = (self.start_id,), (self.end_id,)
        self._cache: dict[str, tuple[int, ...]] = {}
        self._chunks = Chunks(self._chunk)
        symbols = byte_symbols()
        self._inner = [vocab[symbols[byte]] for byte in range(256)]
        self._last = [vocab[symbols[byte] + WORD_END] for byte in range(256)]
        self._merges = index_merges(merges, vocab)
        # Words that are tokens need no merging, where every token is what its bytes merge to: the tests see that of
        # OpenAI's. It is not so of any list of merges.
        self._whole = self.vocab if self.is_openais else {}
        self._bytes = token_bytes(vocab)

    @classmethod
    def train(cls, captions: Iterable[str], vocab_size: int) -> "Tokenizer":
        """Learn the merges from captions.

        Args:
            captions: the texts; each is read once.
            vocab_size: tokens wanted, 514 or more. There are fewer if no pair of tokens is left that occurs twice.

        Raises:
            ValueError: vocab_size is below 514.
            TypeError: captions is a single string, or holds something else than strings.
        """
        if vocab_size < MIN_VOCAB_SIZE:
            least = f"{MIN_VOCAB_SIZE} is the least (256 bytes inside a word, 256 that end one, two special tokens)"
            raise ValueError(f"vocab_size={vocab_size} is too small: {least}")
        if isinstance(captions, str):
            raise TypeError("captions is a single str; give an iterable of captions")
        words: Counter[str] = Counter()
        for index, caption in enumerate(captions):
            words.update(_SPLIT.findall(_clean(_checked(caption, index))))
        merges = learn(words, vocab_size - MIN_VOCAB_SIZE)
        return cls(vocabulary(merges), merges)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "Tokenizer":
        """Read a tokenizer of CLIP's kind.

        Args:
            path: a tokenizer.json; or OpenAI's file of merges, gzipped or not; or a vocab.json with merges.txt beside
                it, as transformers wrote them; or the directory with one of these.

        Raises:
            FileNotFoundError: there is no such file.
            CheckpointError: the file is damaged, or holds another kind of tokenizer.
        """
        file = Path(path)
        if file.is_dir():
            file = files.find_tokenizer(file) or file / "tokenizer.json"
        if not file.is_file():
            raise FileNotFoundError(
                f"{file}: no such file; expected a tokenizer.json, vocab.json with merges.txt, or OpenAI's merges"
            )
        vocab, merges, openai_cleaning = files.read(file)
        try:
            return cls(vocab, merges, openai_cleaning=openai_cleaning)
        except ValueError as error:  # tokens that are no byte symbols
            raise CheckpointError(f"{file}: {error}") from error

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write tokenizer.json, in the format of the tokenizers library, at once or not at all.

        Args:
            path: the file, if the name ends in .json or a file is there; else a directory, made where it is missing.
        """
        files.write(path, files.to_json(self.vocab, self.merges, self.openai_cleaning))

    def encode(self, text: str) -> list[int]:
        """The ids of a text, without start and end, never cut."""
        ids: list[int] = []
        for word in self._words(text):
            ids += self._cache.get(word) or self._encode_word(word)
        return ids

    def decode(self, ids: Iterable[int]) -> str:
        """The text of ids in its normal form. Start, end, and padding that follows an end token are left out.

        Raises:
            ValueError: an id is not in the vocabulary.
        """
        row = [operator.index(token) for token in ids]  # also takes a one-dimensional tensor
        for token in row:
            if not 0 <= token < self.vocab_size:
                raise ValueError(f"id {token} is not in the vocabulary: ids go from 0 to {self.vocab_size - 1}")
        if self.end_id in row:
            after_end = len(row) - row[::-1].index(self.end_id)
            row = row if any(row[after_end:]) else row[:after_end]
        text = b"".join(self._bytes[token] for token in row).decode("utf-8", errors="replace")
        return text.removesuffix(" ")

    def normalize(self, text: str) -> str:
        """The normal form of a text: its cleaned words, joined by single spaces; what `decode` gives back.

        A normal form is its own normal form, but for OpenAI's cleaning, where ftfy may find more to mend.
        """
        return " ".join(self._words(text))

    @property
    def is_openais(self) -> bool:
        """Whether these are the merges of OpenAI's CLIP, whatever file they came from."""
        return hashlib.sha256("\n".join(map(" ".join, self.merges)).encode()).hexdigest() == OPENAI_MERGES_SHA256

    def __repr__(self) -> str:
        return f"Tokenizer(vocab_size={self.vocab_size}, openai_cleaning={self.openai_cleaning})"

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_cache": {}, "_chunks": None}  # they may hold a million words, and fill by themselves

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._chunks = Chunks(self._chunk)

    def _packed(self, captions: Iterable[str]) -> list[bytes]:
        """Every caption by its chunks, most of which are known; the ids are those of `encode`."""
        ids_of, joined, found = self._chunks.__getitem__, b"".join, []
        for text in captions:
            try:
                ids = joined(map(ids_of, text.split(" "))) if len(text) < _LONG else None
            except Apart:
                ids = None
            found.append(packed(self.encode(text)) if ids is None else ids)
        return found

    def _chunk(self, chunk: str) -> bytes:
        """The ids of what stands between two spaces: in any caption the same, or `Apart` is raised."""
        if chunk.isascii() and (chunk.isalpha() or (chunk.isprintable() and "&" not in chunk)):
            text = chunk.lower()  # no cleaning does more
            words = [text] if text.isalpha() else _SPLIT_ASCII.findall(text)
        elif self.openai_cleaning:
            words = _SPLIT_OPENAI.findall(" ".join(mending.chunk_mender()(chunk).split()).lower())
        else:
            words = _SPLIT.findall(_clean(chunk))
        ids = [self._cache.get(word) or self._encode_word(word) for word in words]
        return packed(ids[0] if len(ids) == 1 else itertools.chain.from_iterable(ids))

    def _words(self, text: str) -> list[str]:
        split, clean = (_SPLIT_OPENAI, _clean_openai) if self.openai_cleaning else (_SPLIT, _clean)
        words: list[str] = split.findall(clean(_checked(text, 0)))
        return words

    def _encode_word(self, word: str) -> tuple[int, ...]:
        whole = self._whole.get(word + WORD_END) if word.isascii() else None  # the symbols of ASCII are the characters
        if whole is None:
            data = word.encode("utf-8")
            merged = tuple(join([*map(self._inner.__getitem__, data[:-1]), self._last[data[-1]]], self._merges))
        else:
            merged = (whole,)
        if len(word) <= _CACHED_LENGTH and len(self._cache) < _CACHED_WORDS:
            self._cache[word] = merged
        return merged


# Cleaning


def _clean(text: str) -> str:
    """Lowercase, then NFC: in this order the result is its own normal form. Whitespace goes when the text is split."""
    if text.isascii():
        return text.lower()
    text = whole(text)
    # Python alone lowers a capital sigma by its place in the word; the library, and the file, have one answer.
    return unicodedata.normalize("NFC", text.replace("Σ", "σ").lower())


def _clean_openai(text: str) -> str:
    """OpenAI's cleaning, step by step: mend, unescape twice, collapse whitespace, lowercase."""
    return " ".join(mending.mend(text).split()).lower()


def whole(text: str) -> str:
    """The text without lone surrogates: a pair of them is one character, one alone is none (U+FFFD)."""
    if text.isascii():
        return text
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")  # UTF-16 tells them apart


def _checked(text: object, index: int) -> str:
    if not isinstance(text, str):
        raise TypeError(f"caption {index} is of type {type(text).__name__}; expected str")
    return text
