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

import gzip
import heapq
import html
import itertools
import json
import operator
import os
import unicodedata
import uuid
import warnings
import zlib
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import regex
import torch

from miniclip.errors import CheckpointError

Pair = tuple[str, str]

START, END, WORD_END = "<|startoftext|>", "<|endoftext|>", "</w>"
MIN_VOCAB_SIZE = 2 * 256 + 2
OPENAI_MERGES = 49152 - 256 - 2  # of the lines in OpenAI's file; the rest were never used

# Contractions, runs of letters, single digits, runs of anything else but whitespace.
PATTERN = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
_SPLIT = regex.compile(PATTERN)
_SPLIT_OPENAI = regex.compile(PATTERN, regex.IGNORECASE)  # tells, in lowercase text, for U+017F (as in 'ſ) and U+0345

_CACHED_WORDS, _CACHED_LENGTH = 1 << 20, 128  # words remembered at most, and the longest one worth remembering
_COUNTED_LENGTH = 256  # longer "words" are addresses or encoded data: they teach nothing, and cost training its speed

# tokenizer.json is written, and known again, by these rows. _MENDING is what the library can do of OpenAI's cleaning.
_MENDING = [
    {"type": "Replace", "pattern": pattern, "content": content}
    for pattern, content in [
        *[({"String": "&amp;"}, "&")] * 2,  # twice, as OpenAI unescaped
        ({"String": "&lt;"}, "<"),
        ({"String": "&gt;"}, ">"),
        ({"String": "&nbsp;"}, " "),
        ({"Regex": "&quot;|[\u201c-\u201f]"}, '"'),
        ({"Regex": "&apos;|&#0*39;|[\u02bc\u2018-\u201b]"}, "'"),
    ]
]
_SPACES = {"type": "Replace", "pattern": {"Regex": r"\s+"}, "content": " "}
_CLEANING = [{"type": "Lowercase"}, {"type": "NFC"}, _SPACES]
# transformers' files clean in this order, and name the special tokens first; they are read as if they were our own.
# The order tells for some capitals with a loose accent, such as T + U+0308: a letter here, a letter and a mark there.
_CLEANING_TRANSFORMERS = [{"type": "NFC"}, _SPACES, {"type": "Lowercase"}]
_PATTERN_TRANSFORMERS = r"<\|startoftext\|>|<\|endoftext\|>|" + PATTERN
_BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}

_DAMAGE = (gzip.BadGzipFile, EOFError, zlib.error, UnicodeDecodeError, json.JSONDecodeError, RecursionError)
_ODD_JSON = (AttributeError, KeyError, TypeError)  # other keys or types than a tokenizer.json has


class Tokenizer:
    """Text to ids and back. Get one by `Tokenizer.train` or `Tokenizer.load`.

    Args:
        vocab: token to id, the ids 0 to len(vocab) - 1, the start and the end token last.
        merges: pairs of tokens, the earliest learned first.
        openai_cleaning: mend the text as OpenAI did (ftfy, HTML entities) instead of NFC alone.

    Attributes:
        vocab_size: number of ids.
        start_id, end_id: the ids that begin and end every row; the last two.
        pad_id: what follows the end in a row: 0, which is also the token of "!" inside a word.
        truncated: how many captions `__call__` has cut so far, in this process.

    Raises:
        ValueError: the vocabulary and the merges do not make a tokenizer of this kind.
    """

    pad_id = 0

    def __init__(self, vocab: dict[str, int], merges: Sequence[Pair], *, openai_cleaning: bool = False) -> None:
        _check(vocab, merges)
        self.vocab = dict(vocab)
        self.merges = list(merges)
        self.openai_cleaning = openai_cleaning
        self.vocab_size = len(vocab)
        self.start_id, self.end_id = len(vocab) - 2, len(vocab) - 1
        self.truncated = 0
        self._warned = False
        self._cache: dict[str, tuple[int, ...]] = {}
        symbols = _byte_symbols()
        self._inner = [vocab[symbols[byte]] for byte in range(256)]
        self._last = [vocab[symbols[byte] + WORD_END] for byte in range(256)]
        self._merge = {(vocab[a], vocab[b]): (rank, vocab[a + b]) for rank, (a, b) in enumerate(merges)}
        self._bytes = _token_bytes(vocab)

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
        merges = _learn(words, vocab_size - MIN_VOCAB_SIZE)
        return cls(_vocabulary(merges), merges)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "Tokenizer":
        """Read a tokenizer.json of CLIP's kind (or the directory with it), or OpenAI's file of merges, gzipped or not.

        Raises:
            FileNotFoundError: there is nothing at the path.
            CheckpointError: the file is damaged, or holds another kind of tokenizer.
        """
        file = Path(path)
        file = file / "tokenizer.json" if file.is_dir() else file
        if not file.is_file():
            raise FileNotFoundError(f"{file}: no such file; expected a tokenizer.json or OpenAI's file of merges")
        try:
            data = file.read_bytes()
            text = (gzip.decompress(data) if data.startswith(b"\x1f\x8b") else data).decode("utf-8")
            if "#version" in text.partition("\n")[0]:  # the content tells, not the name
                merges, openai_cleaning = _parse_merges(text), True
                vocab = _vocabulary(merges)
            else:
                vocab, merges, openai_cleaning = _parse_json(text)
            return cls(vocab, merges, openai_cleaning=openai_cleaning)
        except (*_DAMAGE, *_ODD_JSON) as error:
            raise CheckpointError(
                f"{file}: damaged, or neither a tokenizer.json nor OpenAI's file of merges ({error!r})"
            ) from error
        except ValueError as error:
            raise CheckpointError(f"{file}: {error}") from error

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write tokenizer.json, in the format of the tokenizers library, at once or not at all.

        Args:
            path: the file, if the name ends in .json or a file is there; else a directory, made where it is missing.
        """
        file = Path(path)
        if file.is_dir() or not (file.is_file() or file.suffix == ".json"):
            file = file / "tokenizer.json"
        file.parent.mkdir(parents=True, exist_ok=True)
        temporary = file.with_name(f".{file.name}.{uuid.uuid4().hex}")
        try:
            with temporary.open("x", encoding="utf-8", newline="\n") as stream:
                json.dump(self._to_json(), stream, ensure_ascii=False, indent=2)
                stream.flush()
                os.fsync(stream.fileno())
            temporary.replace(file)
        finally:
            temporary.unlink(missing_ok=True)

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

    def __call__(self, texts: str | Sequence[str], context_length: int = 77, pad: bool = False) -> torch.Tensor:
        """Tokenize captions into one batch.

        A caption that does not fit is cut, and keeps the end token as its last. `truncated` counts such captions, and
        the first one warns.

        Args:
            texts: a caption, or a sequence of N of them.
            context_length: tokens of a row at most, start and end included.
            pad: make rows as long as context_length, instead of as long as the longest of them.

        Returns:
            (N, T) int64: start, ids, end, then zeros. With no captions at all, T is 2 (context_length with pad).

        Raises:
            ValueError: context_length is below 3.
            TypeError: a caption is not a string.
        """
        if context_length < 3:
            raise ValueError(f"context_length={context_length} is too small: 3 is the least (start, one token, end)")
        captions = [texts] if isinstance(texts, str) or not hasattr(texts, "__iter__") else texts
        rows = [[self.start_id, *self.encode(_checked(text, i)), self.end_id] for i, text in enumerate(captions)]
        long = [len(row) for row in rows if len(row) > context_length]
        if long:
            self._report(long, context_length)
            rows = [row if len(row) <= context_length else [*row[: context_length - 1], self.end_id] for row in rows]
        width = context_length if pad else max(map(len, rows), default=2)
        flat: list[int] = []
        for row in rows:
            flat += row
            flat += [self.pad_id] * (width - len(row))
        return torch.tensor(flat, dtype=torch.int64).view(len(rows), width)  # (N, T)

    def __repr__(self) -> str:
        return f"Tokenizer(vocab_size={self.vocab_size}, openai_cleaning={self.openai_cleaning})"

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_cache": {}}  # the cache may hold a million words, and fills again by itself

    def _words(self, text: str) -> list[str]:
        split, clean = (_SPLIT_OPENAI, _clean_openai) if self.openai_cleaning else (_SPLIT, _clean)
        words: list[str] = split.findall(clean(_checked(text, 0)))
        return words

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

    def _encode_word(self, word: str) -> tuple[int, ...]:
        data = word.encode("utf-8")
        ids = [self._inner[byte] for byte in data[:-1]] + [self._last[data[-1]]]
        merged = tuple(self._join(ids))
        if len(word) <= _CACHED_LENGTH and len(self._cache) < _CACHED_WORDS:
            self._cache[word] = merged
        return merged

    def _join(self, ids: list[int]) -> list[int]:
        """Apply the merges to a word: always the earliest learned one that fits, the leftmost first.

        The symbols form a linked list and the pairs that can merge wait in a heap, so n bytes take O(n log n) steps.
        """
        n = len(ids)
        ids.append(-1)  # right of the last; -1 is no id, so that nothing merges with it
        left, right = list(range(-1, n)), list(range(1, n + 2))

        def waiting(i: int) -> list[int]:
            found = self._merge.get((ids[i], ids[right[i]]))
            return [found[0] * n + i] if found else []  # one number that sorts by rank, then by place

        heap = [key for i in range(n) for key in waiting(i)]
        heapq.heapify(heap)
        while heap:
            rank, i = divmod(heapq.heappop(heap), n)
            j = right[i]
            found = self._merge.get((ids[i], ids[j]))
            if found is None or found[0] != rank:
                continue  # one of the two has merged with another neighbour since
            ids[i], ids[j] = found[1], -1
            right[i] = right[j]
            left[right[i]] = i
            for start in (left[i], i) if left[i] >= 0 else (i,):
                for key in waiting(start):
                    heapq.heappush(heap, key)
        return [token for token in ids if token >= 0]

    def _to_json(self) -> dict[str, Any]:
        specials = {START: self.start_id, END: self.end_id}
        start, end = ({"SpecialToken": {"id": token, "type_id": 0}} for token in specials)
        first, second = ([start, {"Sequence": {"id": text, "type_id": 0}}, end] for text in "AB")
        splitting = {"type": "Split", "pattern": {"Regex": PATTERN}, "behavior": "Removed", "invert": True}
        cleaning = [*(_MENDING if self.openai_cleaning else []), *_CLEANING]
        erase = [{"type": "Replace", "pattern": {"String": token}, "content": ""} for token in specials]
        space = {"type": "Replace", "pattern": {"String": WORD_END}, "content": _byte_symbols()[ord(" ")]}
        strip = {"type": "Replace", "pattern": {"Regex": r" \z"}, "content": ""}  # type Strip panics on empty text
        return {
            "version": "1.0",
            "truncation": None,
            "padding": None,
            "added_tokens": [],  # the library would find the special tokens in the middle of captions if they were here
            "normalizer": {"type": "Sequence", "normalizers": cleaning},
            "pre_tokenizer": {"type": "Sequence", "pretokenizers": [splitting, _BYTE_LEVEL]},
            "post_processor": {
                "type": "TemplateProcessing",
                "single": first,
                "pair": first + second,
                "special_tokens": {name: {"id": name, "ids": [i], "tokens": [name]} for name, i in specials.items()},
            },
            "decoder": {"type": "Sequence", "decoders": [*erase, space, _BYTE_LEVEL, strip]},
            "model": {
                "type": "BPE",
                "dropout": None,
                "unk_token": None,
                "continuing_subword_prefix": None,
                "end_of_word_suffix": WORD_END,
                "fuse_unk": False,
                "byte_fallback": False,
                "vocab": self.vocab,
                "merges": [" ".join(pair) for pair in self.merges],
            },
        }


# Cleaning


def _clean(text: str) -> str:
    """Lowercase, then NFC: in this order the result is its own normal form. Whitespace goes when the text is split."""
    if text.isascii():
        return text.lower()
    # A surrogate pair is one character, a lone surrogate none at all: UTF-16 tells them apart.
    text = text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    # Python alone lowers a capital sigma by its place in the word; the library, and the file, have one answer.
    return unicodedata.normalize("NFC", text.replace("Σ", "σ").lower())


def _clean_openai(text: str) -> str:
    """OpenAI's cleaning, step by step: mend, unescape twice, collapse whitespace, lowercase."""
    if not (text.isascii() and text.isprintable() and "&" not in text):  # else there is nothing to mend
        import ftfy  # slow to import, and most captions do without

        text = html.unescape(html.unescape(ftfy.fix_text(text)))
    return " ".join(text.split()).lower()


def _checked(text: object, index: int) -> str:
    if not isinstance(text, str):
        raise TypeError(f"caption {index} is of type {type(text).__name__}; expected str")
    return text


# The vocabulary


def _byte_symbols() -> dict[int, str]:
    """A printable character for every byte, in the order of OpenAI's ids.

    Bytes that are printable in Latin-1 stand for themselves and come first; the others take characters from U+0100 on.
    """
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in printable]
    return {byte: chr(byte) for byte in printable} | {byte: chr(256 + n) for n, byte in enumerate(others)}


def _vocabulary(merges: Sequence[Pair]) -> dict[str, int]:
    symbols = list(_byte_symbols().values())
    tokens = [*symbols, *(s + WORD_END for s in symbols), *(a + b for a, b in merges), START, END]
    return {token: index for index, token in enumerate(tokens)}


def _token_bytes(vocab: dict[str, int]) -> list[bytes]:
    """What every id decodes to: its bytes, with a space where a word ends."""
    byte_of = {symbol: byte for byte, symbol in _byte_symbols().items()}
    table = [b""] * len(vocab)
    for token, index in vocab.items():
        if token not in (START, END):
            inner = token.removesuffix(WORD_END)
            if not byte_of.keys() >= set(inner):
                raise ValueError(f"the token {token!r} is not written in byte symbols")
            table[index] = bytes(byte_of[symbol] for symbol in inner) + b" " * (inner != token)
    return table


def _check(vocab: dict[str, int], merges: Sequence[Pair]) -> None:
    """Raise ValueError unless the parts make a tokenizer of CLIP's kind."""
    if sorted(vocab.values()) != list(range(len(vocab))):
        raise ValueError(f"the ids of the vocabulary are not 0 to {len(vocab) - 1}, each once")
    missing = [token for token in _vocabulary([]) if token not in vocab]
    if missing:
        raise ValueError(f"the vocabulary lacks {len(missing)} of the tokens of byte-level BPE, such as {missing[0]!r}")
    if (vocab[START], vocab[END]) != (len(vocab) - 2, len(vocab) - 1):
        raise ValueError(f"{START} and {END} have the ids {vocab[START]} and {vocab[END]}, expected the last two")
    for rank, (a, b) in enumerate(merges):
        if not vocab.keys() >= {a, b, a + b}:
            raise ValueError(f"merge {rank}, {a!r} with {b!r}, joins or makes a token that the vocabulary lacks")


# Training


def _learn(words: Counter[str], limit: int) -> list[Pair]:
    """The merges, at most limit of them: again and again the most frequent pair, among equals the first by spelling."""
    symbols = _byte_symbols()
    tokens = {symbol + mark for symbol in symbols.values() for mark in ("", WORD_END)}
    counts = [count for word, count in words.items() if len(word) <= _COUNTED_LENGTH]
    spelled = [[symbols[b] for b in word.encode()] for word in words if len(word) <= _COUNTED_LENGTH]
    pairs: Counter[Pair] = Counter()
    where: defaultdict[Pair, set[int]] = defaultdict(set)  # the words that have, or had, the pair
    for index, word in enumerate(spelled):
        word[-1] += WORD_END
        for pair in itertools.pairwise(word):
            pairs[pair] += counts[index]
            where[pair].add(index)

    heap = [(-count, pair) for pair, count in pairs.items()]
    heapq.heapify(heap)
    merges: list[Pair] = []
    while heap and len(merges) < limit:
        negative, pair = heapq.heappop(heap)
        if pairs[pair] != -negative:  # other merges have used some up since it was pushed
            heapq.heappush(heap, (-pairs[pair], pair))
            continue
        if pairs[pair] < 2:
            break
        token = "".join(pair)
        if token in tokens:
            continue  # "ab" + "c" made it before "a" + "bc" could: a token has one merge
        tokens.add(token)
        merges.append(pair)
        fresh: set[Pair] = set()
        for index in where.pop(pair):
            old, new = spelled[index], _replace(spelled[index], pair, token)
            spelled[index] = new
            for gone in itertools.pairwise(old):
                pairs[gone] -= counts[index]
            for come in itertools.pairwise(new):
                pairs[come] += counts[index]
                if token in come:
                    fresh.add(come)
                    where[come].add(index)
        for come in fresh:
            heapq.heappush(heap, (-pairs[come], come))
    return merges


def _replace(word: list[str], pair: Pair, token: str) -> list[str]:
    """The word with token for every occurrence of the pair, from the left: a b a b with ab gives ab ab."""
    new: list[str] = []
    i = 0
    while i < len(word):
        found = word[i] == pair[0] and i + 1 < len(word) and word[i + 1] == pair[1]
        new.append(token if found else word[i])
        i += 2 if found else 1
    return new


# Reading


def _parse_merges(text: str) -> list[Pair]:
    """OpenAI's bpe_simple_vocab_16e6.txt, or the merges.txt made from it: a line of version, then a pair a line."""
    merges = [_pair(line) for line in text.splitlines()[1 : OPENAI_MERGES + 1]]
    if not any(second.endswith(WORD_END) for _, second in merges):
        raise ValueError(f"no merge ends a word with {WORD_END}; expected CLIP's merges (these could be GPT-2's)")
    return merges


def _pair(merge: str | list[str]) -> Pair:
    parts = merge.split(" ") if isinstance(merge, str) else merge
    if len(parts) != 2:
        raise ValueError(f"the merge {merge!r} is damaged; expected two tokens")
    return parts[0], parts[1]


def _parse_json(text: str) -> tuple[dict[str, int], list[Pair], bool]:
    """The vocabulary, the merges and openai_cleaning of a tokenizer.json; ValueError if it is of another kind."""
    data = json.loads(text)
    model, pre_tokenizer = data["model"], _steps(data["pre_tokenizer"], "pretokenizers")
    cleaning = _steps(data["normalizer"], "normalizers")
    plain = [step for step in cleaning if step not in _MENDING]
    known = plain in (_CLEANING, _CLEANING_TRANSFORMERS)
    if not (known and _is_clip_model(model) and _is_clip_splitting(pre_tokenizer)):
        normalizer, splitter = (" + ".join(step["type"] for step in x) or "none" for x in (cleaning, pre_tokenizer))
        raise ValueError(
            f"another kind of tokenizer: model {model.get('type')} with end_of_word_suffix "
            f"{model.get('end_of_word_suffix')!r}, normalizer {normalizer}, pre_tokenizer {splitter}; expected "
            f"byte-level BPE as CLIP's, with {WORD_END!r}. Tokenize with transformers.AutoTokenizer and pass the ids"
        )
    return model["vocab"], [_pair(merge) for merge in model["merges"]], cleaning[:1] == _MENDING[:1]


def _steps(part: dict[str, Any] | None, name: str) -> list[dict[str, Any]]:
    """The steps of a normalizer or pre_tokenizer: of a sequence, of a single one, of none."""
    return list(part.get(name, [part])) if part else []


def _is_clip_model(model: dict[str, Any]) -> bool:
    unwanted = ("dropout", "continuing_subword_prefix", "byte_fallback", "ignore_merges")
    kind = (model.get("type", "BPE"), model.get("end_of_word_suffix"))  # old files do not say their type
    return kind == ("BPE", WORD_END) and not any(model.get(key) for key in unwanted)


def _is_clip_splitting(steps: list[dict[str, Any]]) -> bool:
    if [step["type"] for step in steps] != ["Split", "ByteLevel"]:
        return False
    pattern = steps[0]["pattern"].get("Regex")
    return pattern in (PATTERN, _PATTERN_TRANSFORMERS) and not steps[1].get("add_prefix_space")
