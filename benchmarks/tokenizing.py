"""Captions to a tensor of ids, with OpenAI's vocabulary: miniclip, open_clip, transformers, the tokenizers library.

All tokenizers are made from the merges in open_clip's package. miniclip and open_clip give rows of 77 ids; so does
transformers with padding="max_length", and shorter ones with padding=True. "tokenizers" is the library below
transformers, called directly, and its lists made a tensor through numpy, which is faster than through torch. It may use
all cores; miniclip and open_clip use one.

The ids are compared first. transformers and its library do not mend text, so they are compared with us on the captions
that ftfy leaves as they are.
"""

import os
import warnings
from collections.abc import Callable, Iterator
from functools import partial

import numpy as np
import torch

from benchmarks.captions import english, not_ascii
from benchmarks.frame import OURS, Row, Scale, in_turns

OPEN_CLIP, MAX_LENGTH, LONGEST, LIBRARY = "open_clip", "transformers", "transformers, padding=True", "tokenizers"
MENDING = (OURS, OPEN_CLIP)
LENGTH = 77

Call = Callable[[list[str]], torch.Tensor]
Makers = dict[str, Callable[[], Call]]


def rows(scale: Scale) -> Iterator[Row]:
    warnings.filterwarnings("ignore", message="a caption of .* tokens")  # a few do not fit
    makers, tokens = tokenizers_to_make()
    number = 300 if scale.small else 20_000
    ascii, ascii_before = (english(number, seed, tokens) for seed in (1, 2))
    other, other_before = (not_ascii(number, seed, tokens) for seed in (3, 4))
    check(makers, ascii)
    same = check(makers, other)
    note = f"ids compared with transformers and tokenizers on the {same / number:.0%} that ftfy leaves as they are"
    peers = [name for name in makers if name != OURS]
    for case, captions, before, reach, said in (
        ("cold", ascii, [], dict.fromkeys(peers, 5.0), ""),
        ("unseen, after as many others", ascii, ascii_before, {OPEN_CLIP: 8.0}, ""),
        ("none in ASCII, unseen, after as many others", other, other_before, dict.fromkeys(peers, 4.0), note),
    ):
        values = measured(makers, captions, before, scale.rounds)
        yield Row("tokenizing", f"{number:,} captions, {case}", "captions/s", values, reach, note=said)


def measured(makers: Makers, captions: list[str], before: list[str], rounds: int) -> dict[str, list[float]]:
    """Captions a second of tokenizers that are new in every round, and have seen only what was before."""
    ready: dict[str, Call] = {}

    def prepare(name: str) -> None:
        ready[name] = makers[name]()
        if before:
            ready[name](before)

    return in_turns(
        {name: lambda name=name: ready[name](captions) for name in makers},  # type: ignore[misc]
        rounds,
        work=len(captions),
        before={name: partial(prepare, name) for name in makers},
    )


def tokenizers_to_make() -> tuple[Makers, list[str]]:
    """What makes a tokenizer, with nothing in its caches; and OpenAI's tokens in order."""
    import open_clip.tokenizer
    import transformers

    from miniclip.tokenizer import Tokenizer

    os.environ["TOKENIZERS_PARALLELISM"] = "true"  # open_clip turns it off
    file = open_clip.tokenizer.default_bpe()
    known = Tokenizer.load(file)

    def ours() -> Call:
        return partial(Tokenizer.load(file), context_length=LENGTH, pad=True)

    def fast(padding: str | bool) -> Call:
        tokenizer = transformers.CLIPTokenizer(vocab=known.vocab, merges=known.merges)
        options = {"padding": padding, "truncation": True, "max_length": LENGTH, "return_tensors": "pt"}
        return lambda captions: tokenizer(captions, **options)["input_ids"]

    def library() -> Call:
        tokenizer = transformers.CLIPTokenizer(vocab=known.vocab, merges=known.merges).backend_tokenizer
        tokenizer.enable_padding(pad_id=0)
        tokenizer.enable_truncation(LENGTH)
        return lambda captions: torch.from_numpy(np.array([row.ids for row in tokenizer.encode_batch_fast(captions)]))

    makers: Makers = {
        OURS: ours,
        OPEN_CLIP: open_clip.tokenizer.SimpleTokenizer,
        MAX_LENGTH: partial(fast, "max_length"),
        LONGEST: partial(fast, True),
        LIBRARY: library,
    }
    return makers, list(known.vocab)


def check(makers: Makers, captions: list[str]) -> int:
    """Fail where the ids differ that should not; returns how many captions could be compared with every peer."""
    import ftfy

    end = 49_407
    plain = [caption for caption in captions if ftfy.fix_text(caption) == caption]
    for name, make in makers.items():
        texts = captions if name in MENDING else plain
        expected, found = makers[OURS]()(texts), make()(texts)
        for text, own, theirs in zip(texts, expected.tolist(), found.tolist(), strict=True):
            if own[: own.index(end)] != theirs[: theirs.index(end)]:  # what pads differs
                raise SystemExit(f"tokenizing: {name} has other ids of {text!r}")
    return len(plain)
