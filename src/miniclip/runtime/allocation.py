"""Memory of a step, counted operation by operation: the peak of any batch size from the traces of two small ones.

At the i-th operation of a step with n samples, a_i + n b_i bytes are alive. Traces at two sizes give every a_i and b_i:

    peak(n) = max_i (a_i + n b_i)
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

TRACED_SIZES = (2, 4)  # samples; kernels may differ for a single one


class AllocationTrace(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Bytes of the tensors that operations allocate: those alive after each operation, in `alive_bytes`.

    Memory that an operation allocates and frees internally is not counted.

    Args:
        existing: tensors that are already allocated, and do not count.
    """

    def __init__(self, existing: Iterable[Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.alive_bytes: list[int] = []
        self._bytes = 0
        self._addresses = {tensor.untyped_storage().data_ptr() for tensor in existing}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, (tuple, list)) else (out,):
            if isinstance(tensor, Tensor):
                self._count(tensor.untyped_storage())
        self.alive_bytes.append(self._bytes)
        return out

    def _count(self, storage: torch.UntypedStorage) -> None:
        address, size = storage.data_ptr(), storage.nbytes()
        if size and address not in self._addresses:  # otherwise a view, or changed in place
            self._addresses.add(address)
            self._bytes += size
            weakref.finalize(storage, self._free, address, size)

    def _free(self, address: int, size: int) -> None:
        self._addresses.discard(address)
        self._bytes -= size


def trace_two_sizes(existing: Sequence[Tensor], trial: Callable[[int], None]) -> tuple[list[int], list[int]]:
    """Trace a function of the number of samples at both `TRACED_SIZES`."""
    traces = []
    for samples in TRACED_SIZES:
        with AllocationTrace(existing) as trace:
            trial(samples)
        traces.append(trace.alive_bytes)
    return traces[0], traces[1]


def peak_bytes(small: Sequence[int], large: Sequence[int], samples: int) -> float:
    """Predict the peak memory of a step from the traces of the two small ones.

    For example `peak_bytes([10, 30], [10, 50], 6)` is 70: 10 bytes of any step, and 10 a sample.

    Args:
        small: bytes after each operation with `TRACED_SIZES[0]` samples.
        large: the same with `TRACED_SIZES[1]` samples.
        samples: size of the step to predict.
    """
    n_small, n_large = TRACED_SIZES
    if len(small) != len(large):  # the operations depend on the batch size: assume that all memory grows with it
        return max(large) / n_large * max(samples, n_large)
    return max(a + (b - a) * (samples - n_small) / (n_large - n_small) for a, b in zip(small, large, strict=True))
