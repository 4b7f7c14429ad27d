"""Options that every reader shares."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypedDict

from miniclip.data.skipping import MAX_SKIP_FRACTION, OnError, SkipLog


class ReadKeywords(TypedDict, total=False):
    """Keyword arguments of every reader, apart from `split`; `ReadOptions` describes them."""

    seed: int
    on_error: OnError
    max_skip_fraction: float


@dataclass(frozen=True)
class ReadOptions:
    """Options that every reader shares.

    Attributes:
        split: "train", "val", "test" or "all".
        seed: of a drawn split; ignored if the dataset has its own.
        on_error: for a row or an image that cannot be used: "raise", or "skip" to list it in `skip_log`.
        max_skip_fraction: limit of the fraction that may be skipped, in [0, 1].
    """

    split: str = "all"
    seed: int = 0
    on_error: OnError = "raise"
    max_skip_fraction: float = MAX_SKIP_FRACTION

    def new_skip_log(self) -> SkipLog:
        """Return an empty log with these settings."""
        return SkipLog(self.on_error, self.max_skip_fraction)
