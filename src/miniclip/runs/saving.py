"""Background writer of checkpoints: a thread writes a copy of the tensors while training continues.

Writes run one at a time and in order. Each file is replaced atomically, so that a kill at any moment leaves a complete
old file or a complete new one. An error of a write, such as a full disk, is raised in the training loop later. The
writes after it are left out, since a later file may depend on an earlier one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType

from torch import Tensor


class BackgroundWriter:
    """Queue of writes in a thread. As a context, it waits for the last write and raises its error, if it is the first.

    Args:
        background: False: each write is done at once, without a thread.
    """

    def __init__(self, background: bool) -> None:
        self.background = background
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="miniclip-writer")
        self._running: list[Future[None]] = []
        self._failed = False  # since the last `wait`

    def __enter__(self) -> BackgroundWriter:
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
        """Return tensors for a later write: copies on the CPU if the writer has a thread, else the tensors."""
        if not self.background:
            return dict(tensors)
        return {name: tensor.detach().to("cpu", copy=True) for name, tensor in tensors.items()}

    def start(self, write: Callable[[], None]) -> None:
        """Run a write after those before it."""
        if not self.background:
            write()
            return
        self.raise_errors()
        self._running.append(self._pool.submit(self._run, write))

    def _run(self, write: Callable[[], None]) -> None:
        if self._failed:
            return
        try:
            write()
        except BaseException:
            self._failed = True
            raise

    def raise_errors(self) -> None:
        """Raise the error of a finished write, without waiting for unfinished ones."""
        while self._running and self._running[0].done():
            self._running.pop(0).result()

    def wait(self) -> None:
        """Wait for all writes.

        Raises:
            OSError: a write failed; the file that it would have replaced is intact.
        """
        running, self._running = self._running, []
        errors = [future.exception() for future in running]  # wait for all before raising the first
        self._failed = False
        for error in filter(None, errors):
            raise error
