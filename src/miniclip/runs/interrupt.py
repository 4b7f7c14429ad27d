"""Graceful stop: Ctrl-C and SIGTERM are noted, and the training loop stops after the current step."""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType
from typing import Any

from miniclip.runtime.distributed import any_rank

SIGNALS = (signal.SIGINT, signal.SIGTERM)  # Ctrl-C; a scheduler's notice


class StopAtOnce(KeyboardInterrupt):  # not an error, like its base class
    """A second Ctrl-C: the run ends without waiting for the step, a checkpoint or a plot."""


class GracefulStop:
    """Context in which the first signal sets `requested` and a second one stops at once.

    It has no effect outside the main thread, to which Python delivers signals.
    """

    def __init__(self) -> None:
        self.requested = False
        self._handlers: dict[int, Any] = {}

    def __enter__(self) -> GracefulStop:
        if threading.current_thread() is threading.main_thread():
            self._handlers = {number: signal.signal(number, self._handle) for number in SIGNALS}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)

    def agreed(self) -> bool:
        """Return whether any rank received a signal. All ranks must call it, so that they stop after the same step."""
        return any_rank(self.requested)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.requested:
            raise StopAtOnce
        self.requested = True
