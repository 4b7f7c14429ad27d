"""Byte-level byte pair encoding (BPE): bytes as symbols, learning of merges, application of merges.

A word is spelled with one printable symbol per UTF-8 byte; `</w>` marks the last one. Learning joins the most frequent
pair of neighbours into a new token, again and again. Encoding joins the symbols of a word in the same order. Every
byte is a token, so every text has an encoding and no id stands for "unknown".

`fast_bpe.py` is faster. Sources: Sennrich et al. 2016, arXiv 1508.07909 (words); Radford et al. 2019, GPT-2 (bytes).
"""

import math
from collections import Counter
from collections.abc import Sequence
from itertools import pairwise

Pair = tuple[str, str]

START, END, WORD_END = "<|startoftext|>", "<|endoftext|>", "</w>"
MIN_VOCAB_SIZE = 2 * 256 + 2  # bytes inside a word, bytes at its end, start and end token
MAX_LEARNED_LENGTH = 256  # characters; longer words are addresses or encoded data, and no merges are learned from them

# Contractions, runs of letters, single digits, and runs of other characters except whitespace.
PATTERN = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"


def byte_symbols() -> dict[int, str]:
    """Return a printable character for every byte, in the order of OpenAI's ids.

    Bytes that are printable in Latin-1 stand for themselves and come first; the others get characters from U+0100 on.
    """
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in printable]
    return {byte: chr(byte) for byte in printable} | {byte: chr(256 + n) for n, byte in enumerate(others)}


def spell(word: str) -> list[str]:
    """Return the symbols of a word: "low" becomes ["l", "o", "w</w>"]."""
    symbols = byte_symbols()
    spelled = [symbols[byte] for byte in word.encode("utf-8")]
    spelled[-1] += WORD_END
    return spelled


def join_pair(spelled: list[str], pair: Pair) -> list[str]:
    """Join every occurrence of a pair, from the left: a b a b with (a, b) becomes ab ab."""
    joined: list[str] = []
    i = 0
    while i < len(spelled):
        if spelled[i] == pair[0] and i + 1 < len(spelled) and spelled[i + 1] == pair[1]:
            joined.append(spelled[i] + spelled[i + 1])
            i += 2
        else:
            joined.append(spelled[i])
            i += 1
    return joined


def learn_merges(words: Counter[str], max_merges: int) -> list[Pair]:
    """Return the pairs to join, the most frequent first; among equally frequent ones the alphabetically first."""
    spelled = [(spell(word), count) for word, count in words.items() if len(word) <= MAX_LEARNED_LENGTH]
    merges: list[Pair] = []
    tokens = set(vocabulary([]))
    while len(merges) < max_merges:
        counts: Counter[Pair] = Counter()
        for symbols, count in spelled:
            for pair in pairwise(symbols):
                counts[pair] += count
        usable = [pair for pair, count in counts.items() if count > 1 and "".join(pair) not in tokens]
        if not usable:
            break
        best = min(usable, key=lambda pair: (-counts[pair], pair))
        merges.append(best)
        tokens.add("".join(best))
        spelled = [(join_pair(symbols, best), count) for symbols, count in spelled]
    return merges


def apply_merges(spelled: list[str], ranks: dict[Pair, int]) -> list[str]:
    """Return the tokens of a word: the earliest learned merge (lowest rank) that fits is applied until none fits."""
    while len(spelled) > 1:
        first = min(pairwise(spelled), key=lambda pair: ranks.get(pair, math.inf))
        if first not in ranks:
            break
        spelled = join_pair(spelled, first)
    return spelled


def vocabulary(merges: Sequence[Pair]) -> dict[str, int]:
    """Return the ids of all tokens: bytes, bytes at the end of a word, one token per merge, start, end."""
    symbols = list(byte_symbols().values())
    tokens = [*symbols, *(symbol + WORD_END for symbol in symbols), *(a + b for a, b in merges), START, END]
    return {token: index for index, token in enumerate(tokens)}
