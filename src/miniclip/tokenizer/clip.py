r"""CLIP's tokenizer: captions are cleaned, split into words, and encoded by byte-level BPE (`bpe.py`).

The vocabulary, in OpenAI's order: 256 byte symbols, the same 256 with ``</w>``, one token per merge, then
``<|startoftext|>`` and ``<|endoftext|>``. The end token is the highest id, which text towers use to find it.

Differences from other libraries:

- The name of a special token inside a caption is plain text, so a caption cannot start or end itself. (open_clip
  does the same with ``<|endoftext|>``, but its own ``<start_of_text>`` and ``<end_of_text>`` are special.)
- A trained tokenizer cleans by lowercase, NFC and whitespace only, all of which tokenizer.json describes. The
  tokenizers library gives the same ids from it, except for characters newer than its Unicode tables: letters that it
  treats as symbols (since Unicode 15), and accents that it orders differently (since Unicode 10).
- With OpenAI's vocabulary, texts are cleaned by ftfy and html as OpenAI did. A file cannot describe that, so
  tokenizer.json has the nearest steps. The library gives other ids for texts that only ftfy and html fix (mojibake,
  full-width forms, ligatures, rare entities), and for a capital sigma at the end of a word.

Source: Radford et al. 2021, https://arxiv.org/abs/2103.00020, and its clip/simple_tokenizer.py.
"""

import hashlib
import itertools
import os
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import regex

from miniclip.errors import CheckpointError
from miniclip.tokenizer import files
from miniclip.tokenizer.base import BatchTokenizer, check_caption, check_ids
from miniclip.tokenizer.bpe import MIN_VOCAB_SIZE, PATTERN, WORD_END, Pair, byte_symbols, vocabulary
from miniclip.tokenizer.chunk_cache import ChunkCache, ContextDependent, pack_ids
from miniclip.tokenizer.cleaning import chunk_fixer, clean, clean_openai
from miniclip.tokenizer.fast_bpe import apply_merges, learn_merges, merge_table, token_bytes
from miniclip.tokenizer.tokenizer_json import build, check_vocabulary
from miniclip.utils.checks import whole_number
from miniclip.utils.items import TEXTS, describe, refuse_tables

WORDS = regex.compile(PATTERN)
WORDS_ASCII = re.compile(PATTERN.replace(r"\p{L}", "a-z").replace(r"\p{N}", "0-9"))  # lowercase only; twice as fast
WORDS_OPENAI = regex.compile(PATTERN, regex.IGNORECASE)  # differs in lowercase text for U+017F (as in 'ſ) and U+0345

# SHA-256 of the merges, one per line, of https://github.com/openai/CLIP, clip/bpe_simple_vocab_16e6.txt.gz
OPENAI_MERGES_SHA256 = "f61f2adf497e6f5357c347aeb4646fabe82f341e946de5bdec5d2858e41bef4a"

MAX_CACHED_WORDS = 1 << 20
MAX_CACHED_LENGTH = 128  # longer words are not cached
MAX_CHUNKED_LENGTH = 10_000  # ftfy cuts much longer texts at any place, so these are not cleaned chunk by chunk


class Tokenizer(BatchTokenizer):
    """CLIP's tokenizer, made by `Tokenizer.train` or `Tokenizer.load`.

    Args:
        vocab: token to id; the ids are 0 to len(vocab) - 1, the start and the end token have the last two.
        merges: pairs of tokens in the order in which they were learned.
        openai_cleaning: clean texts as OpenAI did (ftfy, HTML entities) instead of by NFC only.

    Attributes:
        vocab_size: number of ids.
        start_id, end_id: ids at the beginning and the end of every row; the last two.
        pad_id: id after the end of a row: 0, which is also the token of "!" inside a word. (transformers pads with the
            end token. Text towers of CLIP's kind ignore what follows the first end token.)
        truncated: number of captions that a call has cut in this process.

    Raises:
        ValueError: the vocabulary and the merges do not fit each other.
    """

    pad_id = 0

    def __init__(self, vocab: dict[str, int], merges: Sequence[Pair], *, openai_cleaning: bool = False) -> None:
        super().__init__()
        check_vocabulary(vocab, merges)
        self.vocab = dict(vocab)
        self.merges = list(merges)
        self.openai_cleaning = openai_cleaning
        self.vocab_size = len(vocab)
        self.start_id, self.end_id = len(vocab) - 2, len(vocab) - 1
        self.before, self.after = (self.start_id,), (self.end_id,)
        self._word_cache: dict[str, tuple[int, ...]] = {}
        self._chunk_cache = ChunkCache(self._encode_chunk)
        symbols = byte_symbols()
        self._inner_ids = [vocab[symbols[byte]] for byte in range(256)]
        self._last_ids = [vocab[symbols[byte] + WORD_END] for byte in range(256)]
        self._merge_table = merge_table(merges, vocab)
        # In OpenAI's vocabulary, the bytes of every token merge to this token (tested), so a word that is a token needs
        # no merging. This does not hold for any list of merges.
        self._whole_words = self.vocab if self.is_openai else {}
        self._bytes = token_bytes(vocab)

    @classmethod
    def train(cls, captions: Iterable[str], vocab_size: int) -> "Tokenizer":
        """Learn the merges from captions.

        Args:
            captions: texts; each is read once.
            vocab_size: number of tokens, 514 or more. The result has fewer if no more pair occurs twice.

        Raises:
            ValueError: vocab_size is below 514.
            TypeError: captions is a single string, a table or a dict, or contains something else than strings.
        """
        if whole_number("vocab_size", vocab_size) < MIN_VOCAB_SIZE:
            raise ValueError(
                f"vocab_size={vocab_size} is too small: {MIN_VOCAB_SIZE} is the least "
                "(256 bytes inside a word, 256 that end one, two special tokens)"
            )
        if isinstance(captions, str):
            raise TypeError("captions is a single str; expected an iterable of captions")
        refuse_tables(captions, "captions", TEXTS)
        if not hasattr(captions, "__iter__"):
            raise TypeError(f"captions: found {describe(captions)}; expected {TEXTS}")
        words: Counter[str] = Counter()
        for index, caption in enumerate(captions):
            words.update(WORDS.findall(clean(check_caption(caption, index))))
        merges = learn_merges(words, vocab_size - MIN_VOCAB_SIZE)
        return cls(vocabulary(merges), merges)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "Tokenizer":
        """Read a tokenizer of CLIP's kind.

        Args:
            path: a tokenizer.json; OpenAI's file of merges, gzipped or not; a vocab.json with merges.txt beside it, as
                older versions of transformers wrote them; or a directory with one of these.

        Raises:
            FileNotFoundError: no such file.
            CheckpointError: the file is damaged, or contains another kind of tokenizer.
        """
        file = Path(path)
        if file.is_dir():
            file = files.find_tokenizer(file) or file / "tokenizer.json"
        if not os.path.lexists(file):
            raise FileNotFoundError(
                f"{file}: no such file; expected a tokenizer.json, vocab.json with merges.txt, or OpenAI's merges"
            )
        vocab, merges, openai_cleaning = files.read(file)
        try:
            return cls(vocab, merges, openai_cleaning=openai_cleaning)
        except ValueError as error:
            raise CheckpointError(f"{file}: {error}") from error

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write tokenizer.json atomically, in the format of the tokenizers library.

        Args:
            path: a file if the name ends in .json or the file exists; else a directory, created if it does not exist.
        """
        files.write(path, build(self.vocab, self.merges, self.openai_cleaning))

    def encode(self, text: str) -> list[int]:
        """Return the ids of a text, without start and end, never cut."""
        ids: list[int] = []
        for word in self._words(text):
            ids += self._word_cache.get(word) or self._encode_word(word)
        return ids

    def decode(self, ids: Iterable[int]) -> str:
        """Return the text of ids in its normal form, without start, end, and padding after an end token.

        Raises:
            ValueError: an id is not in the vocabulary.
        """
        row = check_ids(ids, self.vocab_size)
        if self.end_id in row:
            after_end = len(row) - row[::-1].index(self.end_id)
            row = row if any(row[after_end:]) else row[:after_end]
        text = b"".join(self._bytes[token] for token in row).decode("utf-8", errors="replace")
        return text.removesuffix(" ")

    def normalize(self, text: str) -> str:
        """Return the normal form of a text, which `decode` returns: its cleaned words, joined by single spaces.

        A normal form is its own normal form, except with OpenAI's cleaning, where ftfy may fix more in it.
        """
        return " ".join(self._words(text))

    @property
    def is_openai(self) -> bool:
        """True if the merges are those of OpenAI's CLIP, in any file format."""
        return hashlib.sha256("\n".join(map(" ".join, self.merges)).encode()).hexdigest() == OPENAI_MERGES_SHA256

    def __repr__(self) -> str:
        return f"Tokenizer(vocab_size={self.vocab_size}, openai_cleaning={self.openai_cleaning})"

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_word_cache": {}, "_chunk_cache": None}  # large, and refilled by use

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._chunk_cache = ChunkCache(self._encode_chunk)

    def _encode_packed(self, captions: Iterable[str]) -> list[bytes]:
        """Return the packed ids of `encode`, from cached chunks if possible."""
        chunk_ids, join = self._chunk_cache.__getitem__, b"".join
        packed = []
        for text in captions:
            try:
                ids = join(map(chunk_ids, text.split(" "))) if len(text) < MAX_CHUNKED_LENGTH else None
            except ContextDependent:
                ids = None
            packed.append(pack_ids(self.encode(text)) if ids is None else ids)
        return packed

    def _encode_chunk(self, chunk: str) -> bytes:
        """Return the packed ids that a chunk has in every caption.

        Raises:
            ContextDependent: the ids may depend on the caption.
        """
        if chunk.isascii() and (chunk.isalpha() or (chunk.isprintable() and "&" not in chunk)):
            text = chunk.lower()  # no cleaning does more to such a chunk
            words = [text] if text.isalpha() else WORDS_ASCII.findall(text)
        elif self.openai_cleaning:
            words = WORDS_OPENAI.findall(" ".join(chunk_fixer()(chunk).split()).lower())
        else:
            words = WORDS.findall(clean(chunk))
        ids = [self._word_cache.get(word) or self._encode_word(word) for word in words]
        return pack_ids(ids[0] if len(ids) == 1 else itertools.chain.from_iterable(ids))

    def _words(self, text: str) -> list[str]:
        pattern, cleaner = (WORDS_OPENAI, clean_openai) if self.openai_cleaning else (WORDS, clean)
        words: list[str] = pattern.findall(cleaner(check_caption(text, 0)))
        return words

    def _encode_word(self, word: str) -> tuple[int, ...]:
        token = self._whole_words.get(word + WORD_END) if word.isascii() else None  # ASCII characters are their symbols
        if token is None:
            data = word.encode("utf-8")
            byte_ids = [*map(self._inner_ids.__getitem__, data[:-1]), self._last_ids[data[-1]]]
            ids = tuple(apply_merges(byte_ids, self._merge_table))
        else:
            ids = (token,)
        if len(word) <= MAX_CACHED_LENGTH and len(self._word_cache) < MAX_CACHED_WORDS:
            self._word_cache[word] = ids
        return ids
