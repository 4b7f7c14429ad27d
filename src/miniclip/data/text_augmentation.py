"""Random changes of captions that keep them true: words left out, and left and right exchanged for a mirrored image.

Word dropout is the random deletion of EDA (Wei and Zou 2019, https://arxiv.org/abs/1901.11196). Left and right are
exchanged only in English phrases that name a side, such as "left of" or "on the right". An image whose caption has
another use of the two words ("he left", "the right way") is not mirrored.

Letters: B images, N captions, S image side, T tokens.
"""

from __future__ import annotations

import re

import torch
from torch import Tensor

from miniclip.data.dataset import ImageCaptionDataset
from miniclip.data.given import as_dataset
from miniclip.data.options import LoaderOptions
from miniclip.data.sources.captions import CaptionTable
from miniclip.runtime.devices import send
from miniclip.tokenizer import TextTokenizer
from miniclip.utils.randomness import random_integer

SUFFIX = r"(?:most|wards?)"
BEFORE = r"\b(?:the|to|far|upper|lower|top|bottom|his|her|its|their|facing|pointing)[ -]"
AFTER = r"[ -](?:of|hand|side|corner|half|edge|arm|leg|foot|eye|ear|wing)\b"
WORD = re.compile(rf"\b(left|right)(?={SUFFIX}?\b)", re.IGNORECASE)
# the phrase ends after the word: "the right" before a noun can mean "correct", as in "the right way"
END = rf"{SUFFIX}?\s*(?:$|[^\w\s-]|\s(?:an?|the|there|and|or|is|are|in|at|with|while)\b)"
SIDE = re.compile(rf"{BEFORE}(left|right)(?={END})|\b(left|right)(?={SUFFIX}\b|{AFTER})", re.IGNORECASE)
OTHER = {"left": "right", "right": "left"}


def swap_left_right(caption: str) -> str | None:
    """Return the caption of the mirrored image; None if a "left" or "right" in it may not name a side."""
    if len(WORD.findall(caption)) != len(SIDE.findall(caption)):
        return None
    return WORD.sub(lambda match: _like(match[1], OTHER[match[1].lower()]), caption)


def _like(word: str, other: str) -> str:
    """Return the other word in capitals where the word has them."""
    return other.upper() if word.isupper() else other.capitalize() if word[0].isupper() else other


def drop_words(caption: str, probability: float, *key: int | str) -> str:
    """Leave out each word of a caption with a probability, but not all of them.

    Args:
        caption: words between spaces.
        probability: in [0, 1).
        key: the random numbers are functions of it.
    """
    words = caption.split()
    numbers = [random_integer(*key, position) / 2**63 for position in range(len(words))]
    kept = [word for word, number in zip(words, numbers, strict=True) if number >= probability]
    if kept or not words:
        return " ".join(kept) if len(kept) < len(words) else caption
    return words[numbers.index(max(numbers))]


class AugmentedCaptions(CaptionTable):
    """Captions that are changed at every draw, and tokenized again.

    Args:
        data: images with captions.
        tokenizer: for the captions.
        options: of the loader: `word_dropout`, `swap_left_right`.
    """

    def __init__(self, data: ImageCaptionDataset, tokenizer: TextTokenizer, options: LoaderOptions) -> None:
        super().__init__(data, tokenizer, options)
        self._tokenizer, self._options = tokenizer, options
        self._texts = [caption for captions in as_dataset(data).captions for caption in captions]

    def pair(self, pixels: Tensor, indices: Tensor, passes: Tensor) -> tuple[Tensor, Tensor]:
        """As `CaptionTable.pair`, with half of the images mirrored if left and right are exchanged."""
        options = self._options
        seed, per_image = options.seed, options.captions_per_image
        rows = self.rows.draw(indices, passes).tolist()
        texts = [self._texts[row] for row in rows]
        if options.swap_left_right:
            mirrored = []
            for number, (index, earlier) in enumerate(zip(indices.tolist(), passes.tolist(), strict=True)):
                own = slice(number * per_image, (number + 1) * per_image)
                swapped = [swap_left_right(text) for text in texts[own]]
                mirrored.append(None not in swapped and random_integer(seed, "mirror", earlier, index) % 2 == 0)
                texts[own] = [text for text in swapped if text is not None] if mirrored[-1] else texts[own]
            is_mirrored = send(torch.tensor(mirrored), pixels.device)[:, None, None, None]
            pixels = torch.where(is_mirrored, pixels.flip(3), pixels)
        if rate := options.word_dropout:
            drawn = zip(texts, rows, passes.repeat_interleave(per_image).tolist(), strict=True)
            texts = [drop_words(text, rate, seed, "words", earlier, row) for text, row, earlier in drawn]
        return pixels, self._tokenizer(texts, context_length=options.context_length, pad=options.pad)


def caption_table(data: ImageCaptionDataset, tokenizer: TextTokenizer, options: LoaderOptions) -> CaptionTable:
    """Return the captions of a dataset, changed at random if the options have it."""
    if options.word_dropout or options.swap_left_right:
        return AugmentedCaptions(data, tokenizer, options)
    return CaptionTable(data, tokenizer, options)
