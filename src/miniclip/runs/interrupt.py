"""Ctrl-C and SIGTERM as a request that the loop reads between two steps, so that no step is torn in the middle."""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType
from typing import Any

from miniclip.runtime.distributed import any_rank

SIGNALS = (signal.SIGINT, signal.SIGTERM)  # a person's Ctrl-C; a scheduler's notice


class GracefulStop:
    """A context in which the first of these signals sets `requested`, and a second one stops at once.

    Outside of the main thread, where Python delivers no signals, it does nothing.
    """

    def __init__(self) -> None:
        self.requested = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> GracefulStop:
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._handle) for number in SIGNALS}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def agreed(self) -> bool:
        """Whether it was requested of any rank: all must ask this, and stop after the same step."""
        return any_rank(self.requested)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.requested:
            raise KeyboardInterrupt
        self.requested = True
