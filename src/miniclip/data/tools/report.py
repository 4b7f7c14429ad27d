"""Result of an inspection, and its report as text."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

ELONGATED = 4.0  # ratio of the sides above which a center crop keeps less than a quarter of an image
MAX_REPORTED_CAPTIONS = 5
MAX_CAPTION_LENGTH = 80
CONTINUATION = "\n" + " " * 13


class Summary(NamedTuple):
    """Minimum, median, mean and maximum of some numbers."""

    min: float
    median: float
    mean: float
    max: float

    @classmethod
    def of(cls, values: Sequence[int]) -> Summary:
        """Summarise numbers, at least one."""
        return cls(min(values), statistics.median(values), statistics.fmean(values), max(values))

    def __str__(self) -> str:
        if self.min == self.max:
            return f"{self.min:,.0f}"
        return f"{self.min:,.0f} to {self.max:,.0f}, median {self.median:,.0f}, mean {self.mean:,.1f}"


@dataclass(frozen=True)
class Inspection:
    """Result of `inspect`.

    Attributes:
        folder: common folder of the images, to which their names are relative; "" if there is none.
        layout: layout of the dataset and origin of its split, or the dataset's `repr`.
        images: number of images, with those that cannot be read.
        captions: number of captions.
        captions_per_image: summary.
        words: summary of words per caption, split at white space.
        tokens: summary of tokens per caption, start and end tokens included.
        tokenizer: description of the tokenizer.
        context_length: length to which captions are truncated.
        truncated: number of captions that are longer.
        widths: summary in pixels; None if no image can be read.
        heights: likewise.
        elongated: name to (width, height) of images whose aspect ratio exceeds `ELONGATED`.
        duplicate_files: groups of names of images with identical files.
        duplicate_pixels: groups of names of images with different files and identical pixels.
        split_leaks: groups of names of images with identical pixels in different splits.
        repeated_captions: captions of several images and their number of images, most frequent first.
        unreadable: name to reason of images that cannot be read.
        skipped: name to reason of what the reader skipped.
        readable: indices of the images that can be read.
    """

    folder: str
    layout: str
    images: int
    captions: int
    captions_per_image: Summary
    words: Summary
    tokens: Summary
    tokenizer: str
    context_length: int
    truncated: int
    widths: Summary | None
    heights: Summary | None
    elongated: dict[str, tuple[int, int]]
    duplicate_files: list[list[str]]
    duplicate_pixels: list[list[str]]
    split_leaks: list[list[str]]
    repeated_captions: dict[str, int]
    unreadable: dict[str, str]
    skipped: dict[str, str]
    readable: list[int]

    def __str__(self) -> str:
        return self.report()

    def report(self, max_lines: int = 20) -> str:
        """Return the result as text.

        Args:
            max_lines: lines of each list; the rest is counted.
        """
        truncated = f"{self.truncated:,} ({self.truncated / self.captions:.1%})" if self.truncated else "none"
        lines = [
            f"layout       {self.layout.replace('; ', CONTINUATION)}",
            *([f"folder       {self.folder}"] if self.folder else []),
            f"images       {self.images:,}",
            f"captions     {self.captions:,}; {self.captions_per_image} per image",
            f"words        {self.words} per caption",
            f"tokens       {self.tokens} per caption, by {self.tokenizer}; {truncated} truncated to "
            f"{self.context_length}",
            f"widths       {self.widths or 'unknown'} pixels",
            f"heights      {self.heights or 'unknown'} pixels",
        ]
        sizes = [f"{name}: {width} x {height}" for name, (width, height) in self.elongated.items()]
        repeated = [f"{count:,} times {_shortened(caption)!r}" for caption, count in self.repeated_captions.items()]
        lines += _list(f"images with an aspect ratio above {ELONGATED:.0f}", sizes, max_lines)
        lines += _list("groups of identical files", map(", ".join, self.duplicate_files), max_lines)
        lines += _list("groups of files with identical pixels", map(", ".join, self.duplicate_pixels), max_lines)
        lines += _list("groups of identical images in different splits", map(", ".join, self.split_leaks), max_lines)
        lines += _list("captions of several images", repeated, min(max_lines, MAX_REPORTED_CAPTIONS))
        lines += _list("images that cannot be read", _reasons(self.unreadable), max_lines)
        lines += _list("rows and images that were skipped", _reasons(self.skipped), max_lines)
        return "\n".join(lines)


def _list(title: str, items: Iterable[str], max_lines: int) -> list[str]:
    rows = list(items)
    if not rows:
        return [f"none         {title}"]
    more = [f"  … and {len(rows) - max_lines:,} more"] if len(rows) > max_lines else []
    return [f"{f'{len(rows):,}':<12} {title}:", *(f"  {row}" for row in rows[:max_lines]), *more]


def _reasons(reasons: dict[str, str]) -> list[str]:
    return [f"{name}: {reason}" for name, reason in reasons.items()]


def _shortened(caption: str) -> str:
    return caption if len(caption) <= MAX_CAPTION_LENGTH else caption[:MAX_CAPTION_LENGTH] + "…"
