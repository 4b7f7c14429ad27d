"""Handling of images, rows and shards that cannot be used: raise, or log and skip them.

All readers, the image cache and training share this rule. With `on_error="raise"` the first problem raises. With
"skip", each one is logged with a warning. Too many of them raise all the same: the mistake is then probably elsewhere.
"""

from __future__ import annotations

import warnings
from typing import Literal, get_args

from miniclip.errors import DataError, UnreadableError
from miniclip.utils.option_names import option

OnError = Literal["raise", "skip"]
MAX_SKIP_FRACTION = 0.05  # default limit of the fraction of a dataset that may be skipped
MAX_WARNINGS = 10  # limit for one log; further ones are only counted


class SkipLog:
    """Log of the items of a dataset that were skipped.

    Args:
        on_error: "raise" or "skip".
        max_skip_fraction: fraction of the dataset, in [0, 1], above which `check_fraction` raises.

    Attributes:
        reasons: name to reason, in the order in which they were added.

    Raises:
        ValueError: an argument is out of its range.
    """

    def __init__(self, on_error: OnError = "raise", max_skip_fraction: float = MAX_SKIP_FRACTION) -> None:
        if on_error not in get_args(OnError):
            raise ValueError(f"on_error is {on_error!r}; expected 'raise' or 'skip'")
        if not 0 <= max_skip_fraction <= 1:
            raise ValueError(f"max_skip_fraction is {max_skip_fraction}; expected a number from 0 to 1")
        self.on_error = on_error
        self.max_skip_fraction = max_skip_fraction
        self.reasons: dict[str, str] = {}

    def __len__(self) -> int:
        return len(self.reasons)

    def __contains__(self, name: str) -> bool:
        return name in self.reasons

    def add(self, name: str, reason: str) -> None:
        """Skip an item. A name that is already in the log is not counted again.

        Args:
            name: as in `UnreadableError`.
            reason: likewise.

        Raises:
            UnreadableError: `on_error` is "raise".
        """
        if self.on_error == "raise":
            raise UnreadableError(name, reason)
        if name in self.reasons:
            return
        self.reasons[name] = reason
        if len(self) <= MAX_WARNINGS:
            more = "; further warnings are suppressed" if len(self) == MAX_WARNINGS else ""
            warnings.warn(f"{name}: {reason} (skipped){more}", stacklevel=3)

    def branch(self) -> SkipLog:
        """Return an empty log with the same settings, for items with a total of their own."""
        return SkipLog(self.on_error, self.max_skip_fraction)

    def merge(self, branch: SkipLog) -> None:
        """Take over the entries of a branch."""
        self.reasons |= branch.reasons

    def check_fraction(self, total: int) -> None:
        """Raise if too much was skipped.

        Args:
            total: number of items, including the skipped ones.

        Raises:
            DataError: the fraction is above the limit; the message has the first entry.
        """
        if len(self) > self.max_skip_fraction * total:
            name, reason = next(iter(self.reasons.items()))
            raise DataError(
                f"{len(self):,} of {total:,} cannot be used, more than {self.max_skip_fraction:.1%}; the first: "
                f"{name}: {reason}; fix them, or raise {option('max_skip_fraction')}"
            )


def reason_of(error: Exception) -> str:
    """Return the reason of an error in one line, without the name of the image."""
    return " ".join((error.reason if isinstance(error, UnreadableError) else str(error)).split())
