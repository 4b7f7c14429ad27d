"""What a step's memory depends on: blocks that are computed again in backward, and the micro batch that fits.

How many pairs fit is found on the real model and device. A GPU says what a trial took, and that there was not enough.
A CPU does not: the system would begin to swap, or end the process. There two small trials are counted, operation by
operation. At the i-th operation a_i + n b_i bytes are alive for n pairs, and two counts give every a_i and b_i; so

    peak(n) = max_i (a_i + n b_i)

is known for any n, wherever in the step the peak may then be. Letters: B batch, E embedding, n pairs of a micro batch.
"""

from __future__ import annotations

import dataclasses
import os
import sys
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from miniclip.losses import CHUNKED_FROM
from miniclip.models.clip import CLIP
from miniclip.models.layers import Transformer
from miniclip.models.vision import draw_patches
from miniclip.runtime.distributed import all_ranks, ranks_here
from miniclip.train.config import TrainConfig
from miniclip.train.step import forward, random_state, set_random_state

GPU_SHARE, CPU_SHARE = 0.8, 0.5  # of the free memory: the rest is for augmentation, fragments and, on a CPU, others
COUNTED = (2, 4)  # pairs of the two trials that are counted; of one alone, kernels may differ
EMBEDDINGS = 8  # copies of both sides' embeddings (B, E) in float32: they, their gradients, what the loss makes of them
MATRICES = 8  # the same for the similarities, of which a loss holds at most CHUNKED_FROM x CHUNKED_FROM
PER_PARAMETER = 3  # copies of the trained weights: the gradient and AdamW's two moments
UNKNOWN = 4 << 30  # bytes of a machine that does not say what it has


def settle_memory(model: CLIP, config: TrainConfig, batch: int) -> TrainConfig:
    """Set the model's checkpointing as the settings say, and a micro batch of `auto` to a number.

    Args:
        model: on the device that it will be trained on.
        config: the settings, the precision being known.
        batch: B, the pairs of a step on this rank.

    Returns:
        The settings, whose `micro_batch_size` is a number, or None where the whole batch fits; with several ranks it
        is the same on all.

    Raises:
        ValueError: not a single pair fits, or the model has no blocks to checkpoint.
    """
    checkpoint_blocks(model, config.gradient_checkpointing)
    if config.micro_batch_size != "auto":
        return config
    found = fitting(model, config, batch)
    least, whole = (min(column) for column in zip(*all_ranks([found, found == batch]), strict=True))
    if not least:
        raise ValueError(
            f"micro_batch_size 'auto': not one pair fits into the free memory of {model.device}; free some, try "
            "gradient_checkpointing, or take a smaller model"
        )
    return dataclasses.replace(config, micro_batch_size=None if whole else least)


def checkpoint_blocks(model: nn.Module, on: bool = True) -> None:
    """Let the towers keep each block's input alone, and compute the rest again in backward; or no longer.

    Raises:
        ValueError: it shall be on, and the model has none of this library's transformers.
    """
    stacks = [module for module in model.modules() if isinstance(module, Transformer)]
    if on and not stacks:
        raise ValueError("gradient_checkpointing: the model has no miniclip.models.layers.Transformer to apply it to")
    for stack in stacks:
        stack.checkpointed = on


def fitting(model: CLIP, config: TrainConfig, batch: int) -> int:
    """The largest power of two of pairs whose forward and backward fit into the device's memory.

    Powers of two, so that a little more or less free memory gives the same number. The model, its gradients, its
    buffers and the random state are afterwards what they were.

    Returns:
        Pairs; the batch itself where it fits whole; 0 where not one does.
    """
    sizes = [2**i for i in range(batch.bit_length()) if 2**i < batch] + [batch]
    found = 0
    with _no_trace(model):
        fits = (_fits_by_trial if model.device.type == "cuda" else _fits_by_count)(model, config, batch)
        for size in sizes:
            if not fits(size):
                break
            found = size
    return found


def _fits_by_trial(model: CLIP, config: TrainConfig, batch: int) -> Callable[[int], bool]:
    """On a GPU: try it."""
    device = model.device
    torch.cuda.empty_cache()
    before = torch.cuda.memory_allocated(device)
    budget = GPU_SHARE * torch.cuda.mem_get_info(device)[0] - reserved_bytes(model, batch)

    def fits(size: int) -> bool:
        torch.cuda.reset_peak_memory_stats(device)
        try:
            _trial(model, config, size)
        except torch.OutOfMemoryError:
            return False
        return torch.cuda.max_memory_allocated(device) - before <= budget

    return fits


def _fits_by_count(model: CLIP, config: TrainConfig, batch: int) -> Callable[[int], bool]:
    """Elsewhere: count two small trials, and reckon the rest."""
    budget = CPU_SHARE * available_bytes() / ranks_here() - reserved_bytes(model, batch)
    few, more = _counts(model, config)
    return lambda size: peak(few, more, size) <= budget


def _counts(model: CLIP, config: TrainConfig) -> tuple[list[int], list[int]]:
    """The moments of the two counted trials."""
    traces = []
    for pairs in COUNTED:
        with Alive(model.parameters()) as alive:
            _trial(model, config, pairs)
        traces.append(alive.moments)
    return traces[0], traces[1]


def step_bytes(model: CLIP, config: TrainConfig, batch: int) -> float:
    """About what a step of a batch takes besides the weights, counted on any device; the model is left as it was.

    Args:
        model: on its device.
        config: with a micro batch of a number, or none.
        batch: B, of this rank.
    """
    pairs = config.micro_batch_size if isinstance(config.micro_batch_size, int) else batch
    with _no_trace(model):
        few, more = _counts(model, config)
    return peak(few, more, min(pairs, batch)) + reserved_bytes(model, batch)


def free_bytes(device: torch.device) -> int:
    """Memory of a device that this process may still take."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
        return int(torch.cuda.mem_get_info(device)[0])
    return available_bytes()


def peak(small: Sequence[int], large: Sequence[int], pairs: int) -> float:
    """The most bytes alive at any moment of a step of so many pairs, from the moments of the two counted trials.

    For example `peak([10, 30], [10, 50], 6)` is 70: 10 bytes of anything and 10 a pair.
    """
    few, more = COUNTED
    if len(small) != len(large):  # a model that computes otherwise for other pairs: all of it is taken to grow
        return max(large) / more * max(pairs, more)
    return max(a + (b - a) * (pairs - few) / (more - few) for a, b in zip(small, large, strict=True))


class Alive(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the bytes of the tensors that operations make: those alive after each operation, in `moments`.

    What an operation allocates and frees within itself is not seen.

    Args:
        known: tensors that are there already, and do not count.
    """

    def __init__(self, known: Iterable[Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.moments: list[int] = []
        self._bytes = 0
        self._known = {tensor.untyped_storage().data_ptr() for tensor in known}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, (tuple, list)) else (out,):
            if isinstance(tensor, Tensor):
                self._count(tensor.untyped_storage())
        self.moments.append(self._bytes)
        return out

    def _count(self, storage: torch.UntypedStorage) -> None:
        where, size = storage.data_ptr(), storage.nbytes()
        if size and where not in self._known:  # else a view, or changed in place
            self._known.add(where)
            self._bytes += size
            weakref.finalize(storage, self._free, where, size)

    def _free(self, where: int, size: int) -> None:
        self._known.discard(where)
        self._bytes -= size


def _trial(model: CLIP, config: TrainConfig, pairs: int) -> None:
    """Forward and backward of random pictures and captions as long as they get; no gradient stays."""
    out = forward(model, _random_inputs(model, config, pairs), config)
    sides = [side for side in out[:2] if side.requires_grad]
    if sides:
        torch.autograd.backward(sides, [torch.ones_like(side) for side in sides])
    for parameter in model.parameters():
        parameter.grad = None


def _random_inputs(model: CLIP, config: TrainConfig, pairs: int) -> tuple[Tensor, Tensor, Tensor | None]:
    image, text, random = model.config.image, model.config.text, torch.Generator().manual_seed(0)
    pixels = torch.randn(pairs, 3, image.image_size, image.image_size, generator=random)
    tokens = torch.randint(text.vocab_size, (pairs, text.context_length), generator=random)
    tokens = torch.where(tokens == text.end_id, (text.end_id + 1) % text.vocab_size, tokens)  # it comes last alone
    tokens[:, -1] = text.end_id
    kept = None
    if config.patch_dropout:
        kept = draw_patches(pairs, image.patches, config.patch_dropout, random).to(model.device)
    return pixels.to(model.device), tokens.to(model.device), kept


def reserved_bytes(model: CLIP, batch: int) -> int:
    """What a step holds beside the micro batch: gradients, the optimizer's state, and the loss of the whole batch."""
    weights = sum(p.numel() * p.element_size() for p in model.parameters() if p.requires_grad)
    embeddings = 2 * batch * model.config.embed_dim * 4
    similarities = 4 * min(batch, CHUNKED_FROM) ** 2
    return PER_PARAMETER * weights + EMBEDDINGS * embeddings + MATRICES * similarities


def available_bytes() -> int:
    """Memory of the machine that this process may still take, or of its container.

    Where the system does not say, half of the memory that it has; where it does not say that either, `UNKNOWN`.
    """
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        free = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
        used = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, StopIteration):
        try:
            return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2
        except (AttributeError, ValueError, OSError):
            return UNKNOWN
    return max(0, min(free, _container_limit() - used))


def _container_limit() -> int:
    for path in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):  # versions 2 and 1
        try:
            return int(Path(path).read_text(encoding="ascii"))
        except (OSError, ValueError):  # no such file, or "max"
            continue
    return sys.maxsize


@contextmanager
def _no_trace(model: CLIP) -> Iterator[None]:
    """Leave gradients, buffers, the random state and the allocator's cache as they were."""
    state, buffers = random_state(model.device), [buffer.clone() for buffer in model.buffers()]
    gradients = [parameter.grad for parameter in model.parameters()]
    for parameter in model.parameters():
        parameter.grad = None
    try:
        yield
    finally:
        for parameter, gradient in zip(model.parameters(), gradients, strict=True):
            parameter.grad = gradient
        with torch.no_grad():
            for buffer, before in zip(model.buffers(), buffers, strict=True):
                buffer.copy_(before)
        set_random_state(model.device, state)
        if model.device.type == "cuda":
            torch.cuda.empty_cache()
