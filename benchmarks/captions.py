"""Synthetic captions for benchmarks, deterministic, and similar to real ones in the properties that cost time.

These properties are the number of words, the share of new words, and the number of tokens of a new word. Words
therefore follow Zipf's law: 155,000 captions have about 19,000 different words, as in Flickr30k, and 20,000 captions
have 8,000. The English words are those of OpenAI's vocabulary and compounds of them. Words of other languages are made
of syllables.
"""

import itertools
import random
from collections.abc import Callable, Sequence

SYLLABLES = {
    "german": "ge ver auf ein schö stra ße mäd chen grü ne kü che hun de spie len män ner fräu lein häu ser lau fen",
    "french": "dé pê che vé lo gar çon fê te fe nê tre rou ge pre mi è re jou er cô té ri viè re mar ché bleu en fant",
    "spanish": "ni ño ca lle pe que ña mon ta ña ro jo mú si ca per ro ár bol ver de so bre ju gan do ca mi nó ción",
    "russian": "ма ль чик со ба ка де ре во си дит на ра бо та кра сный го род бе жит с тре мя ок но ле жит у ли ца",
}
# The most frequent characters first.
HANZI = (
    "的一在人个着上和两有小穿男子女色白红黑蓝街孩站坐大中正他衣服狗手里头水车前面年轻走边树下拿戴帽跑草地黄绿条"
    "群球玩看起跳海滩路骑自行台拍照片食桌椅墙窗房屋门山雪河湖花猫鸟马船桥城市夜晚阳光天空云雨笑脸眼睛长发短裤裙鞋"
)
# The most frequent words of Flickr30k; `_english_words` adds the others.
COMMON = """
    a in the on of man and is with woman two are people to at an wearing shirt white young black his while blue red
    sitting girl boy standing dog men playing group street down walking her front one by as holding women water
    through green child up three brown their looking outside from children person for over little large next hat
"""
EMOJI = "😀 ❤️ 👍🏽 🐶 🚲 🌊 👨‍👩‍👧 🎉 ☀️ 🍕 🇫🇷 ✨"

Sampler = Callable[[int], list[str]]


def english(number: int, seed: int, tokens: Sequence[str]) -> list[str]:
    """Return ASCII captions of 12 words on average, with capitals, punctuation, possessives, hyphens and numbers.

    Args:
        number: number of captions.
        seed: seed of the captions; the words do not depend on it.
        tokens: tokens of OpenAI's vocabulary in the order of their ids.
    """
    rng = random.Random(seed)
    sample = zipf(_english_words(tokens), rng)
    return [_sentence(sample(max(4, round(rng.gauss(12, 4)))), rng) for _ in range(number)]


def not_ascii(number: int, seed: int, tokens: Sequence[str]) -> list[str]:
    """Return captions that are not ASCII: accents, curly quotes, dashes, emoji, five other languages."""
    rng = random.Random(seed)
    english_words = zipf(_english_words(tokens), rng)
    foreign_words = {name: zipf(_combine(parts.split()), rng) for name, parts in SYLLABLES.items()}
    characters = zipf(list(HANZI), rng)

    def curly(words: list[str]) -> str:
        words[rng.randrange(1, len(words))] += "’s"
        return _sentence(words, rng)

    def quoted(words: list[str]) -> str:
        index = rng.randrange(1, len(words))
        words[index] = f"“{words[index].capitalize()}”"
        return _sentence(words, rng)

    def accented(words: list[str]) -> str:
        words[rng.randrange(1, len(words))] = rng.choice(["café", "jalapeño", "fiancée", "entrée", "façade", "crêpe"])
        return _sentence(words, rng)

    def dashed(words: list[str]) -> str:
        words.insert(len(words) // 2, "—")
        return _sentence(words, rng)

    def foreign(name: str) -> Callable[[list[str]], str]:
        ends = {"german": " für dich.", "french": " à côté.", "spanish": " mañana.", "russian": "."}
        return lambda words: _sentence(foreign_words[name](len(words)), rng).removesuffix(".") + ends[name]

    def chinese(words: list[str]) -> str:
        return "，".join("".join(characters(rng.randint(4, 10))) for _ in range(rng.choice([1, 2]))) + "。"

    def smiling(words: list[str]) -> str:
        return f"{_sentence(words, rng)} {rng.choice(EMOJI.split())}"

    kinds = [curly, quoted, accented, dashed, *map(foreign, SYLLABLES), chinese, smiling]
    weights = [20, 8, 8, 4, 18, 12, 8, 8, 7, 7]
    chosen = rng.choices(kinds, weights, k=number)
    return [kind(english_words(max(4, round(rng.gauss(12, 4))))) for kind in chosen]


def zipf(words: Sequence[str], rng: random.Random) -> Sampler:
    """Return a sampler that draws the n-th word in proportion to 1 / (n + 2.7)^1.45 (Zipf-Mandelbrot law)."""
    sums = list(itertools.accumulate(1 / (n + 2.7) ** 1.45 for n in range(1, len(words) + 1)))
    return lambda number: rng.choices(words, cum_weights=sums, k=number)


def _english_words(tokens: Sequence[str]) -> list[str]:
    """Return 24,000 words, frequent ones first: whole tokens, and after the first 2,000 as many compounds."""
    known = [token.removesuffix("</w>") for token in tokens if token.endswith("</w>")]
    known = [word for word in known if len(word) > 3 and word.isascii() and word.isalpha()]
    rng = random.Random(0)
    endings = ["ing", "ed", "er", "ers", "ly", "board", "like", "less", *known[:300]]
    words = [*COMMON.split(), *known[:2_000]]
    for word in known[2_000:13_000]:
        words += [word, rng.choice(known[:6_000]) + rng.choice(endings)]
    return list(dict.fromkeys(words))


def _combine(syllables: list[str]) -> list[str]:
    rng = random.Random(0)
    words = ("".join(rng.choices(syllables, k=rng.choice([1, 2, 2, 3, 3, 4]))) for _ in range(20_000))
    return list(dict.fromkeys(words))


def _sentence(words: list[str], rng: random.Random) -> str:
    last = len(words) - 1
    varied = [_vary(word, rng) if index < last else word for index, word in enumerate(words)]
    return f"{varied[0].capitalize()} {' '.join(varied[1:])}{'.' if rng.random() < 0.8 else ''}"


def _vary(word: str, rng: random.Random) -> str:
    number = rng.random()
    if number < 0.03:
        return word + ","
    if number < 0.04:
        return word + "'s"
    if number < 0.05:
        return word + "-side"
    if number < 0.06:
        return str(rng.randint(2, 30))
    return word.capitalize() if number < 0.08 else word
