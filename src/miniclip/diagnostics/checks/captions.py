"""Caption checks: repeated, truncated and empty captions, and unknown tokens."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from miniclip.data.dataset import ImageCaptionDataset
from miniclip.diagnostics.checks.sampling import sample_indices
from miniclip.diagnostics.findings import Finding, Severity
from miniclip.diagnostics.rules.data import MAX_REPEATED_FRACTION, MAX_TRUNCATED_FRACTION

if TYPE_CHECKING:
    from miniclip.tokenizer import TextTokenizer

MAX_CAPTIONS = 200_000  # sample size
MAX_IMAGE_FRACTION = 0.01  # fraction of the images that may share one caption
MAX_CHARACTERS = 80  # characters of a caption in a message


def check_captions(
    data: ImageCaptionDataset, tokenizer: TextTokenizer, context_length: int, batch_size: int
) -> list[Finding]:
    """Check for repeated captions in all of the data, and for token problems in a sample of it."""
    captions = [caption for group in data.captions for caption in group]
    sample = [captions[i] for i in sample_indices(len(captions), MAX_CAPTIONS)]
    scope = "" if len(sample) == len(captions) else f" (sample of {len(sample):,} from {len(captions):,})"
    encode: Any = getattr(tokenizer, "encode", None)
    if encode is None or not sample:
        unknown = Finding("truncated captions", "note", "not checked: the tokenizer has no method `encode`")
        return [_repeated(data, batch_size), unknown]
    rows = [encode(caption) for caption in sample]
    special_tokens = len(getattr(tokenizer, "before", ())) + len(getattr(tokenizer, "after", ()))
    return [
        _repeated(data, batch_size),
        _truncated(sample, [len(row) + special_tokens for row in rows], context_length, scope),
        _empty(rows, scope),
        _unknown(sample, rows, getattr(tokenizer, "unknown_id", None), scope),
    ]


def _repeated(data: ImageCaptionDataset, batch_size: int) -> Finding:
    image_counts: Counter[str] = Counter()  # number of images that have the caption
    probability: defaultdict[str, float] = defaultdict(float)  # that a row of a batch has the caption
    for group in data.captions:
        image_counts.update(set(group))
        for caption in group:
            probability[caption] += 1 / len(group) / len(data)
    fraction = sum(p * (1 - (1 - p) ** (batch_size - 1)) for p in probability.values())
    caption, count = image_counts.most_common(1)[0]
    severity: Severity = "fine"
    observation = f"{len(image_counts):,} of {sum(map(len, data.captions)):,} captions are distinct"
    if count > 1:
        is_frequent = fraction > MAX_REPEATED_FRACTION or count > max(2, MAX_IMAGE_FRACTION * len(data))
        severity = "warning" if is_frequent else "note"
        observation += (
            f"; the most frequent, {_shortened(caption)}, has {count:,} of {len(data):,} images; in a batch of "
            f"{batch_size}, {fraction:.1%} of the pairs share their caption with another pair"
        )
    return Finding(
        "repeated captions",
        severity,
        observation,
        "If two pairs of a batch share a caption, the loss treats each image as wrong for the other's caption.",
        "Write captions that distinguish the images, remove generic ones, or use smaller batches.",
    )


def _truncated(captions: Sequence[str], lengths: Sequence[int], context_length: int, scope: str) -> Finding:
    count = sum(length > context_length for length in lengths)
    longest = max(range(len(lengths)), key=lengths.__getitem__)
    observation = f"{count:,} of {len(captions):,} are longer than the context of {context_length} tokens{scope}"
    if count:
        observation += f"; the longest has {lengths[longest]}: {_shortened(captions[longest])}"
    return Finding(
        "truncated captions",
        _severity(count, MAX_TRUNCATED_FRACTION * len(captions)),
        observation,
        "The model never receives the tokens after the limit.",
        "Shorten the captions, or use a model with a longer context.",
    )


def _empty(rows: Sequence[Sequence[int]], scope: str) -> Finding:
    count = sum(not row for row in rows)
    return Finding(
        "empty captions",
        "warning" if count else "fine",
        f"{count:,} have no tokens{scope}",
        "Empty captions do not describe their images, and all are the same.",
        "Remove them, or write captions.",
    )


def _unknown(captions: Sequence[str], rows: Sequence[Any], unknown_id: int | None, scope: str) -> Finding:
    counts = [row.count(unknown_id) for row in rows] if unknown_id is not None else [0]
    worst = max(range(len(counts)), key=counts.__getitem__)
    total = max(1, sum(map(len, rows)))
    example = f"; the worst caption: {_shortened(captions[worst])}" if any(counts) else ""
    return Finding(
        "unknown tokens",
        _severity(sum(counts), MAX_TRUNCATED_FRACTION * total),
        f"{sum(counts):,} of {total:,} tokens are unknown to the tokenizer{example}{scope}",
        "Different words become the same token, so the model cannot distinguish them.",
        "Use a tokenizer for the language of the captions; miniclip's `Tokenizer.train` covers every byte.",
    )


def _severity(count: int, limit: float) -> Severity:
    return "fine" if not count else "warning" if count >= limit else "note"


def _shortened(caption: str) -> str:
    return repr(caption if len(caption) <= MAX_CHARACTERS else caption[:MAX_CHARACTERS] + "…")
