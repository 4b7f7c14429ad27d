"""What cannot be read, and what becomes of it: the run ends there, or it is named once, left out, and counted.

One rule for every reader, for packing and for training: `on_error="raise"` raises at the first thing that cannot be
read; "skip" warns of each by its name and reason, leaves it out, and raises when more than a share of all is gone,
since a set of which much is broken is a mistake of another kind.
"""

from __future__ import annotations

import warnings
from typing import Literal, get_args

from miniclip.errors import DataError

OnError = Literal["raise", "skip"]
MAX_SKIP_FRACTION = 0.05  # share of a set that may be left out
SHOWN = 10  # warnings for single things; a list of thousands helps nobody


class SkipLog:
    """The things of a data set that cannot be used, by name, each with its reason.

    Args:
        on_error: "raise" or "skip".
        max_skip_fraction: the share of a set, in [0, 1], that may be left out before `require_few` raises.

    Attributes:
        reasons: name to reason, in the order in which they were found.

    Raises:
        ValueError: another word, or a share out of its range.
    """

    def __init__(self, on_error: OnError = "raise", max_skip_fraction: float = MAX_SKIP_FRACTION) -> None:
        if on_error not in get_args(OnError):
            raise ValueError(f"on_error is {on_error!r}; expected 'raise' or 'skip'")
        if not 0 <= max_skip_fraction <= 1:
            raise ValueError(f"the share that may be left out is {max_skip_fraction}; expected a number in 0..1")
        self.on_error = on_error
        self.max_skip_fraction = max_skip_fraction
        self.reasons: dict[str, str] = {}

    def __len__(self) -> int:
        return len(self.reasons)

    def __contains__(self, name: str) -> bool:
        return name in self.reasons

    def add(self, name: str, reason: str) -> None:
        """Leave a thing out; the second time it is known already.

        Args:
            name: what a user finds it by: a path, "captions.csv, line 7", "shard-0003.tar: 000123.jpg".
            reason: what is wrong with it and what to do, without the name.

        Raises:
            DataError: on_error is "raise".
        """
        if self.on_error == "raise":
            raise DataError(f"{name}: {reason}")
        if name in self.reasons:
            return
        self.reasons[name] = reason
        if len(self) <= SHOWN:
            more = "; further ones are counted, not shown" if len(self) == SHOWN else ""
            warnings.warn(f"{name}: {reason} (left out){more}", stacklevel=3)

    def require_few(self, total: int) -> None:
        """See that no more than the share is gone.

        Args:
            total: how many there were, with those that are left out.

        Raises:
            DataError: too many are gone; the message names the first and its reason.
        """
        if len(self) > self.max_skip_fraction * total:
            first, reason = next(iter(self.reasons.items()))
            raise DataError(
                f"{len(self):,} of {total:,} cannot be used, more than {self.max_skip_fraction:.1%}; the first: {first}: "
                f"{reason}; mend them, or allow a larger share"
            )
