"""Speed of tokenizing with OpenAI's vocabulary: miniclip, open_clip, transformers and the tokenizers library.

All tokenizers use the merges in open_clip's package. miniclip and open_clip return rows of 77 ids, as does transformers
with padding="max_length"; with padding=True its rows are shorter. "tokenizers" is the library that transformers uses,
called directly; its lists become a tensor through numpy, which is faster than through torch. It can use all cores,
miniclip and open_clip use one.

The ids are compared before the measurement. transformers and its library do not fix text, so they are compared on the
captions that ftfy does not change.
"""

import os
import warnings
from collections.abc import Callable, Iterator
from functools import partial

import numpy as np
import torch

from benchmarks.captions import english, not_ascii
from benchmarks.harness import MINICLIP, Row, Scale, interleaved

OPEN_CLIP, TRANSFORMERS, LIBRARY = "open_clip", "transformers", "tokenizers"
TRANSFORMERS_LONGEST = "transformers, padding=True"
FIX_TEXT = (MINICLIP, OPEN_CLIP)  # the tokenizers that fix text with ftfy
CONTEXT_LENGTH = 77

Call = Callable[[list[str]], torch.Tensor]
Makers = dict[str, Callable[[], Call]]


def rows(scale: Scale) -> Iterator[Row]:
    warnings.filterwarnings("ignore", message="a caption of .* tokens")  # a few captions are too long
    makers, tokens = make_tokenizers()
    number = 300 if scale.small else 20_000
    ascii, ascii_before = (english(number, seed, tokens) for seed in (1, 2))
    unicode, unicode_before = (not_ascii(number, seed, tokens) for seed in (3, 4))
    check(makers, ascii)
    compared = check(makers, unicode)
    note = f"ids compared with transformers and tokenizers on the {compared / number:.0%} that ftfy does not change"
    baselines = [name for name in makers if name != MINICLIP]
    for case, captions, before, target, row_note in (
        ("cold", ascii, [], dict.fromkeys(baselines, 5.0), ""),
        ("unseen, after as many others", ascii, ascii_before, {OPEN_CLIP: 8.0}, ""),
        ("not ASCII, unseen, after as many others", unicode, unicode_before, dict.fromkeys(baselines, 4.0), note),
    ):
        values = measured(makers, captions, before, scale.rounds)
        yield Row("tokenizing", f"{number:,} captions, {case}", "captions/s", values, target, note=row_note)


def measured(makers: Makers, captions: list[str], before: list[str], rounds: int) -> dict[str, list[float]]:
    """Return captions per second of tokenizers that are new in every round and have encoded only `before`."""
    ready: dict[str, Call] = {}

    def prepare(name: str) -> None:
        ready[name] = makers[name]()
        if before:
            ready[name](before)

    return interleaved(
        {name: lambda name=name: ready[name](captions) for name in makers},  # type: ignore[misc]
        rounds,
        work=len(captions),
        setups={name: partial(prepare, name) for name in makers},
    )


def make_tokenizers() -> tuple[Makers, list[str]]:
    """Return functions that make tokenizers with empty caches, and OpenAI's tokens in the order of their ids."""
    import open_clip.tokenizer
    import transformers

    from miniclip.tokenizer import Tokenizer

    os.environ["TOKENIZERS_PARALLELISM"] = "true"  # open_clip disables it
    file = open_clip.tokenizer.default_bpe()
    openai = Tokenizer.load(file)

    def ours() -> Call:
        return partial(Tokenizer.load(file), context_length=CONTEXT_LENGTH, pad=True)

    def fast(padding: str | bool) -> Call:
        tokenizer = transformers.CLIPTokenizer(vocab=openai.vocab, merges=openai.merges)
        options = {"padding": padding, "truncation": True, "max_length": CONTEXT_LENGTH, "return_tensors": "pt"}
        return lambda captions: tokenizer(captions, **options)["input_ids"]

    def library() -> Call:
        tokenizer = transformers.CLIPTokenizer(vocab=openai.vocab, merges=openai.merges).backend_tokenizer
        tokenizer.enable_padding(pad_id=0)
        tokenizer.enable_truncation(CONTEXT_LENGTH)
        return lambda captions: torch.from_numpy(np.array([row.ids for row in tokenizer.encode_batch_fast(captions)]))

    makers: Makers = {
        MINICLIP: ours,
        OPEN_CLIP: open_clip.tokenizer.SimpleTokenizer,
        TRANSFORMERS: partial(fast, "max_length"),
        TRANSFORMERS_LONGEST: partial(fast, True),
        LIBRARY: library,
    }
    return makers, list(openai.vocab)


def check(makers: Makers, captions: list[str]) -> int:
    """Compare the ids of all tokenizers, and return the number of captions that were compared with every baseline."""
    import ftfy

    end = 49_407
    unfixed = [caption for caption in captions if ftfy.fix_text(caption) == caption]
    for name, make in makers.items():
        texts = captions if name in FIX_TEXT else unfixed
        expected, actual = makers[MINICLIP]()(texts), make()(texts)
        for text, row, baseline_row in zip(texts, expected.tolist(), actual.tolist(), strict=True):
            if row[: row.index(end)] != baseline_row[: baseline_row.index(end)]:  # the padding differs
                raise SystemExit(f"tokenizing: {name} and {MINICLIP} give different ids for {text!r}")
    return len(unfixed)
