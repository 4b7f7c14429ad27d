"""What byte-level BPE is made of: the bytes' symbols, the vocabulary, and the learning of merges.

Sources: Sennrich et al. 2016, https://arxiv.org/abs/1508.07909; the bytes as symbols: Radford et al. 2019, GPT-2.
"""

import heapq
import itertools
from collections import Counter, defaultdict
from collections.abc import Sequence

Pair = tuple[str, str]
Merges = list[dict[int, int]]  # at the left id, by the right id: rank * vocab_size + the id of both together

START, END, WORD_END = "<|startoftext|>", "<|endoftext|>", "</w>"
MIN_VOCAB_SIZE = 2 * 256 + 2

# Contractions, runs of letters, single digits, runs of anything else but whitespace.
PATTERN = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"

_SHORT = 64  # bytes of a word whose pairs are quicker looked over in a row than kept in a heap
_COUNTED_LENGTH = 256  # longer "words" are addresses or encoded data: they teach nothing, and cost training its speed


def byte_symbols() -> dict[int, str]:
    """A printable character for every byte, in the order of OpenAI's ids.

    Bytes that are printable in Latin-1 stand for themselves and come first; the others take characters from U+0100 on.
    """
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in printable]
    return {byte: chr(byte) for byte in printable} | {byte: chr(256 + n) for n, byte in enumerate(others)}


def vocabulary(merges: Sequence[Pair]) -> dict[str, int]:
    """Token to id: the bytes, the bytes that end a word, a token a merge, start and end."""
    symbols = list(byte_symbols().values())
    tokens = [*symbols, *(s + WORD_END for s in symbols), *(a + b for a, b in merges), START, END]
    return {token: index for index, token in enumerate(tokens)}


def token_bytes(vocab: dict[str, int]) -> list[bytes]:
    """What every id decodes to: its bytes, with a space where a word ends."""
    byte_of = {symbol: byte for byte, symbol in byte_symbols().items()}
    table = [b""] * len(vocab)
    for token, index in vocab.items():
        if token not in (START, END):
            inner = token.removesuffix(WORD_END)
            if not byte_of.keys() >= set(inner):
                raise ValueError(f"the token {token!r} is not written in byte symbols")
            table[index] = bytes(byte_of[symbol] for symbol in inner) + b" " * (inner != token)
    return table


def check_parts(vocab: dict[str, int], merges: Sequence[Pair]) -> None:
    """Raise ValueError unless the parts make a tokenizer of CLIP's kind."""
    if sorted(vocab.values()) != list(range(len(vocab))):
        raise ValueError(f"the ids of the vocabulary are not 0 to {len(vocab) - 1}, each once")
    missing = [token for token in vocabulary([]) if token not in vocab]
    if missing:
        raise ValueError(f"the vocabulary lacks {len(missing)} of the tokens of byte-level BPE, such as {missing[0]!r}")
    if (vocab[START], vocab[END]) != (len(vocab) - 2, len(vocab) - 1):
        raise ValueError(f"{START} and {END} have the ids {vocab[START]} and {vocab[END]}, expected the last two")
    for rank, (a, b) in enumerate(merges):
        if not vocab.keys() >= {a, b, a + b}:
            raise ValueError(f"merge {rank}, {a!r} with {b!r}, joins or makes a token that the vocabulary lacks")


def learn(words: Counter[str], limit: int) -> list[Pair]:
    """The merges, at most limit of them: again and again the most frequent pair, among equals the first by spelling."""
    symbols = byte_symbols()
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


def index_merges(merges: Sequence[Pair], vocab: dict[str, int]) -> Merges:
    """The merges by ids, for `join`."""
    nothing: dict[int, int] = {}  # one for all ids that begin no merge
    table = [nothing] * len(vocab)
    for rank, (a, b) in enumerate(merges):
        if table[vocab[a]] is nothing:
            table[vocab[a]] = {}
        table[vocab[a]][vocab[b]] = rank * len(vocab) + vocab[a + b]
    return table


def join(ids: list[int], merges: Merges) -> list[int]:
    """Apply the merges to a word's bytes: always the earliest learned one that fits, the leftmost first."""
    if len(ids) > _SHORT:
        return _join_long(ids, merges)
    ids, size = ids[:], len(merges)
    never = size * size
    waiting = [merges[a].get(b, never) for a, b in itertools.pairwise(ids)]
    while waiting and (first := min(waiting)) < never:
        i, token = waiting.index(first), first % size
        ids[i : i + 2] = (token,)
        del waiting[i]
        if i > 0:
            waiting[i - 1] = merges[ids[i - 1]].get(token, never)
        if i < len(waiting):
            waiting[i] = merges[token].get(ids[i + 1], never)
    return ids


def _join_long(ids: list[int], merges: Merges) -> list[int]:
    """The same, for a word of any length.

    The symbols form a linked list and the pairs that can merge wait in a heap, so n bytes take O(n log n) steps.
    """
    n = len(ids)
    ids = [*ids, -1]  # right of the last; -1 is no id, so that nothing merges with it
    left, right = list(range(-1, n)), list(range(1, n + 2))

    def waiting(i: int) -> list[int]:
        found = merges[ids[i]].get(ids[right[i]])
        return [] if found is None else [found * n + i]  # one number that sorts by rank, then by place

    heap = [key for i in range(n) for key in waiting(i)]
    heapq.heapify(heap)
    while heap:
        merge, i = divmod(heapq.heappop(heap), n)
        j = right[i]
        if ids[i] < 0 or merges[ids[i]].get(ids[j]) != merge:
            continue  # one of the two has merged with another neighbour since
        ids[i], ids[j] = merge % len(merges), -1
        right[i] = right[j]
        left[right[i]] = i
        for start in (left[i], i) if left[i] >= 0 else (i,):
            for key in waiting(start):
                heapq.heappush(heap, key)
    return [token for token in ids if token >= 0]
