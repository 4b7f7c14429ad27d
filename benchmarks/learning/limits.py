"""The highest recall that the captions of a set allow: `python -m benchmarks.learning.limits`.

Captions with the same words cannot be told apart, and a word that no training caption has cannot be learned. So this is
the R@1 of a reader who recognizes in each image all words of its captions that N training images have, and no others.
A model can do better only where it guesses an unknown word from its parts.
"""

import argparse
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from benchmarks.learning import sets
from miniclip.data import Flickr30k

Captions = Sequence[Sequence[str]]
KNOWN_FROM = (1, 3, 10)  # training images


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"), help="folder that holds the sets")
    folder = parser.parse_args(arguments).data
    print("| dataset | known words | image to text | text to image | mean |\n| --- | --- | --- | --- | --- |")
    for name in ("emoji", "clipart"):
        if reason := sets.why_missing(name, folder):
            print(f"skipped {name}: {reason}")
            continue
        train, scored = (Flickr30k(folder / name, split).captions for split in ("train", sets.SCORED[name]))
        for row in rows(name, train, scored):
            print(row)


def rows(name: str, train: Captions, scored: Captions) -> list[str]:
    """Return the rows of a set, in Markdown."""
    result = []
    for count in (0, *KNOWN_FROM):
        to_text, to_image = highest(scored, None if count == 0 else known_words(train, count))
        words = "all" if count == 0 else f"in {count} training image{'' if count == 1 else 's'} or more"
        cells = (f"{100 * value:.1f}" for value in (to_text, to_image, (to_text + to_image) / 2))
        result.append(f"| {name}, {sets.SCORED[name]} | {words} | {' | '.join(cells)} |")
    return result


def words_of(caption: str) -> list[str]:
    return re.findall(r"\w+", caption.lower())


def known_words(captions: Captions, count: int) -> set[str]:
    """Return the words that the captions of at least `count` images have."""
    images = Counter(word for texts in captions for word in {word for text in texts for word in words_of(text)})
    return {word for word, number in images.items() if number >= count}


def highest(captions: Captions, known: set[str] | None) -> tuple[float, float]:
    """Return the highest R@1 from image to text and from text to image, of a reader of the known words (None: all)."""
    read = [
        Counter(frozenset(word for word in words_of(text) if known is None or word in known) for text in texts)
        for texts in captions
    ]
    images = Counter(caption for own in read for caption in own)
    texts = sum(read, Counter())
    to_text = [max(number / texts[caption] for caption, number in own.items()) for own in read]
    to_image = [1 / images[caption] for own in read for caption in own.elements()]
    return sum(to_text) / len(to_text), sum(to_image) / len(to_image)


if __name__ == "__main__":
    main()
