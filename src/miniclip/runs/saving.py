"""Checkpoints written beside the training: a copy of the state is taken, and a thread writes it while steps go on.

One thing is written at a time and in order, each file atomically, so that a kill at any moment leaves the files of
before or those of after. What a write raises (a full disk) is raised in the training at its next look, or at the end.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType

from torch import Tensor


class Writer:
    """Runs writes one after the other: in a thread of its own, or at once.

    As a context it waits for the last write at the end, and raises what that raised, but not over another error.

    Args:
        background: whether in a thread.
    """

    def __init__(self, background: bool) -> None:
        self.background = background
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="miniclip-writer")
        self._running: list[Future[None]] = []

    def __enter__(self) -> Writer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self.wait()
        except Exception:
            if error is None:
                raise

    def copy(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The tensors as they are now, for a write to come: copied, on the CPU, unless it comes at once."""
        if not self.background:
            return dict(tensors)
        return {name: tensor.detach().to("cpu", copy=True) for name, tensor in tensors.items()}

    def start(self, write: Callable[[], None]) -> None:
        """Let a write begin when those before it are done."""
        if not self.background:
            write()
            return
        self.look()
        self._running.append(self._pool.submit(write))

    def look(self) -> None:
        """Raise what a write has raised, without waiting for any."""
        while self._running and self._running[0].done():
            self._running.pop(0).result()

    def wait(self) -> None:
        """Wait for all writes.

        Raises:
            OSError: one could not be done; what was there before it is still there.
        """
        running, self._running = self._running, []
        errors = [future.exception() for future in running]  # of all, before the first is raised
        for error in filter(None, errors):
            raise error
