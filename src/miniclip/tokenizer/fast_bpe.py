"""Fast form of `bpe.py`: the same merges and the same ids, by incremental counts, heaps, and tables of ids."""

import heapq
from collections import Counter, defaultdict
from collections.abc import Sequence
from itertools import pairwise

from miniclip.tokenizer.bpe import END, MAX_LEARNED_LENGTH, START, WORD_END, Pair, byte_symbols, join_pair, vocabulary

# Table of merges: at the left id, by the right id: rank * vocab_size + id of the joined token.
MergeTable = list[dict[int, int]]

MAX_SCANNED_IDS = 64  # up to this length, a scan of all pairs is faster than a heap


def learn_merges(words: Counter[str], max_merges: int) -> list[Pair]:
    """Return the merges of `bpe.learn_merges`; after each merge, only the words that contain its pair are counted."""
    symbols = byte_symbols()
    tokens = set(vocabulary([]))
    learned = {word: count for word, count in words.items() if len(word) <= MAX_LEARNED_LENGTH}
    counts = list(learned.values())
    spelled = [[symbols[byte] for byte in word.encode()] for word in learned]
    pairs: Counter[Pair] = Counter()
    words_of: defaultdict[Pair, set[int]] = defaultdict(set)  # indices of the words that have, or had, the pair
    for index, word in enumerate(spelled):
        word[-1] += WORD_END
        for pair in pairwise(word):
            pairs[pair] += counts[index]
            words_of[pair].add(index)

    heap = [(-count, pair) for pair, count in pairs.items()]
    heapq.heapify(heap)
    merges: list[Pair] = []
    while heap and len(merges) < max_merges:
        negative_count, pair = heapq.heappop(heap)
        if pairs[pair] != -negative_count:  # other merges have changed the count since the push
            heapq.heappush(heap, (-pairs[pair], pair))
            continue
        if pairs[pair] < 2:
            break
        token = "".join(pair)
        if token in tokens:
            continue  # "ab" + "c" made it before "a" + "bc" could: a token has one merge
        tokens.add(token)
        merges.append(pair)
        new_pairs: set[Pair] = set()
        for index in words_of.pop(pair):
            before, after = spelled[index], join_pair(spelled[index], pair)
            spelled[index] = after
            for old in pairwise(before):
                pairs[old] -= counts[index]
            for new in pairwise(after):
                pairs[new] += counts[index]
                if token in new:
                    new_pairs.add(new)
                    words_of[new].add(index)
        for new in new_pairs:
            heapq.heappush(heap, (-pairs[new], new))
    return merges


def merge_table(merges: Sequence[Pair], vocab: dict[str, int]) -> MergeTable:
    """Return the merges as a table of ids for `apply_merges`."""
    empty: dict[int, int] = {}  # shared by all ids that begin no merge
    table = [empty] * len(vocab)
    for rank, (a, b) in enumerate(merges):
        if table[vocab[a]] is empty:
            table[vocab[a]] = {}
        table[vocab[a]][vocab[b]] = rank * len(vocab) + vocab[a + b]
    return table


def apply_merges(ids: list[int], merges: MergeTable) -> list[int]:
    """Return the ids of a word's tokens, from the ids of its bytes."""
    if len(ids) > MAX_SCANNED_IDS:
        return apply_merges_to_long_word(ids, merges)
    ids, size = ids[:], len(merges)
    no_merge = size * size
    keys = [merges[a].get(b, no_merge) for a, b in pairwise(ids)]  # lower keys merge first
    while keys and (first := min(keys)) < no_merge:
        i, token = keys.index(first), first % size
        ids[i : i + 2] = (token,)
        del keys[i]
        if i > 0:
            keys[i - 1] = merges[ids[i - 1]].get(token, no_merge)
        if i < len(keys):
            keys[i] = merges[token].get(ids[i + 1], no_merge)
    return ids


def apply_merges_to_long_word(ids: list[int], merges: MergeTable) -> list[int]:
    """Return the ids of a word's tokens in O(n log n) steps for n bytes.

    The symbols form a linked list, and a heap holds the pairs that can merge.
    """
    n = len(ids)
    ids = [*ids, -1]  # a sentinel after the last one, with which nothing merges
    left, right = list(range(-1, n)), list(range(1, n + 2))

    def key_at(i: int) -> list[int]:
        merge = merges[ids[i]].get(ids[right[i]])
        return [] if merge is None else [merge * n + i]  # sorts by rank, then by position

    heap = [key for i in range(n) for key in key_at(i)]
    heapq.heapify(heap)
    while heap:
        merge, i = divmod(heapq.heappop(heap), n)
        j = right[i]
        if ids[i] < 0 or merges[ids[i]].get(ids[j]) != merge:
            continue  # one of the two has already merged with another neighbour
        ids[i], ids[j] = merge % len(merges), -1
        right[i] = right[j]
        left[right[i]] = i
        for start in (left[i], i) if left[i] >= 0 else (i,):
            for key in key_at(start):
                heapq.heappush(heap, key)
    return [token for token in ids if token >= 0]


def token_bytes(vocab: dict[str, int]) -> list[bytes]:
    """Return the bytes of every id, with a space after the end of a word.

    Raises:
        ValueError: a token is not written in byte symbols.
    """
    byte_of = {symbol: byte for byte, symbol in byte_symbols().items()}.__getitem__
    table = [b""] * len(vocab)
    for token, index in vocab.items():
        if token not in (START, END):
            spelled = token.removesuffix(WORD_END)
            try:
                table[index] = bytes(map(byte_of, spelled)) + b" " * (spelled != token)
            except KeyError:
                raise ValueError(f"the token {token!r} is not written in byte symbols") from None
    return table
