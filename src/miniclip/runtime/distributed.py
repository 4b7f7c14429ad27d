"""Ranks: processes that train one model on one batch, started by torchrun or any launcher that sets its variables.

Every function also works in a single process, where it communicates nothing: callers need no second code path.
Letters: R ranks, n rows of this rank, N rows of all ranks together.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

VARIABLES = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")  # set by torchrun for each process
TIMEOUT = timedelta(minutes=10)  # limit for one collective: longer than rank 0 takes to write a large state
EXIT_TIMEOUT = timedelta(seconds=10)  # for the other ranks to end in order
BUCKET_BYTES = 32 << 20  # bytes of gradients in one all_reduce: few collectives, little memory

T = TypeVar("T")


# rank and world size


def world_size() -> int:
    """Return R, or 1 without a process group."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """Return the number of this process, in 0..R-1."""
    return dist.get_rank() if world_size() > 1 else 0


def is_main() -> bool:
    """Return whether this is rank 0, the only one that writes and prints."""
    return rank() == 0


def local_world_size() -> int:
    """Return the number of ranks on this machine."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", 1)) if world_size() > 1 else 1


def rank_slice(n: int, which: int | None = None) -> slice:
    """Return a rank's slice of n rows; the ranks' sizes differ by at most one.

    For example, 4 ranks cut 10 rows into 0..2, 3..5, 6..7 and 8..9.

    Args:
        n: rows of all ranks.
        which: the rank; None: this one.
    """
    ranks, which = world_size(), rank() if which is None else which
    size, remainder = divmod(n, ranks)
    start = which * size + min(which, remainder)
    return slice(start, start + size + (which < remainder))


# the process group


def init(device: str | torch.device | None = None) -> None:
    """Initialise the process group, if torchrun's variables announce several ranks and it is not up yet.

    Tensors on a GPU are sent by NCCL, those on the CPU by gloo, so that small numbers never wait for a GPU.

    Args:
        device: device of the computation; "cpu" leaves GPUs untouched. None: the GPU if there is one.

    Raises:
        ValueError: the machine has more ranks than GPUs.
    """
    if dist.is_initialized() or not all(name in os.environ for name in VARIABLES) or os.environ["WORLD_SIZE"] == "1":
        return
    backend = "gloo"
    if torch.cuda.is_available() and torch.device(device or "cuda").type == "cuda":
        local_rank, gpus = int(os.environ.get("LOCAL_RANK", 0)), torch.cuda.device_count()
        if local_rank >= gpus:
            raise ValueError(
                f"this machine has {gpus} GPUs, and rank {os.environ['RANK']} would need number {local_rank}: start at "
                f"most {gpus} processes a machine (--nproc-per-node {gpus}), or compute on the CPU (--device cpu)"
            )
        torch.cuda.set_device(local_rank)  # the meaning of "cuda" from now on
        backend = "cpu:gloo,cuda:nccl"
    dist.init_process_group(backend, timeout=TIMEOUT)


@contextmanager
def process_group(device: str | torch.device | None = None) -> Iterator[None]:
    """Context in which the ranks work together, and which they leave together.

    The first rank that fails raises its error. The collectives of the others then fail as well, and these ranks exit
    with code 1 and without a message, so that only the cause is printed.

    Args:
        device: as in `init`.
    """
    init(device)
    if world_size() == 1:
        yield
        return
    try:
        yield
    except KeyboardInterrupt:
        _leave()  # the trainer stops on all ranks; torchrun would kill the others once the first one is gone
        raise
    except Exception:
        if not _is_first_failure():
            sys.stdout.flush()
            os._exit(1)  # an orderly exit may abort in the threads of a broken collective
        raise
    _leave()
    dist.destroy_process_group()


def _store() -> Any:
    """The store of the rendezvous: it works where a collective would wait for its whole timeout."""
    return dist.distributed_c10d._get_default_store()


def _leave() -> None:
    """Wait for the other ranks, up to `EXIT_TIMEOUT`: one of them may have failed."""
    with suppress(RuntimeError):  # a rank is late, or the store ended with the rank that hosted it
        store = _store()
        if store.add("miniclip/leaving", 1) == world_size():
            store.set("miniclip/left", "yes")
        store.wait(["miniclip/left"], EXIT_TIMEOUT)


def _is_first_failure() -> bool:
    """Return whether no other rank has called this before."""
    try:
        return int(_store().add("miniclip/failed", 1)) == 1
    except RuntimeError:  # the store ended with the rank that hosted it
        return False


# numbers and objects


def all_gather_ints(values: Sequence[int]) -> list[list[int]]:
    """Return the integers of every rank, by rank; all ranks pass the same number of them."""
    if world_size() == 1:
        return [list(values)]
    local = torch.tensor(values, device=_small_device())
    gathered = [torch.empty_like(local) for _ in range(world_size())]
    dist.all_gather(gathered, local)
    return torch.stack(gathered).tolist()


def any_rank(flag: bool) -> bool:
    """Return whether the flag is set on any rank."""
    return any(other for (other,) in all_gather_ints([flag]))


def barrier() -> None:
    """Wait until every rank has called this."""
    all_gather_ints([0])


def on_main(function: Callable[[], T]) -> T:
    """Call a function on rank 0, and return its result or raise its error on every rank."""
    if world_size() == 1:
        return function()
    outcome: list[Any] = [None, None]
    if is_main():
        try:
            outcome[0] = function()
        except Exception as error:
            outcome[1] = error
    dist.broadcast_object_list(outcome, src=0)
    if outcome[1] is not None:
        raise outcome[1]
    result: T = outcome[0]
    return result


def _small_device() -> torch.device:
    """Device for the collectives of small numbers: the CPU, unless the group has only a GPU backend."""
    has_cpu = any(part.startswith("cpu:") for part in dist.get_backend_config().split(","))
    return torch.device("cpu" if has_cpu else f"cuda:{torch.cuda.current_device()}")


# tensors


def all_reduce(x: Tensor) -> Tensor:
    """Return the elementwise sum over the ranks, without gradient."""
    x = x.detach().clone()
    if world_size() > 1:
        dist.all_reduce(x)
    return x


def all_gather(x: Tensor) -> Tensor:
    """Return the rows of all ranks in the order of the ranks, with gradient: (n, …) to (N, …).

    n may differ between ranks, and may be 0. The gradient of a rank's rows is the sum of the gradients of all ranks'
    losses. If all ranks compute the same loss, that is R times the gradient of the loss, and the mean over the ranks of
    the parameters' gradients is exact (`average_gradients`, DistributedDataParallel).
    """
    return _AllGather.apply(x) if world_size() > 1 else x


class _AllGather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.sizes = [n for (n,) in all_gather_ints([len(x)])]
        y = x.new_empty(sum(ctx.sizes), *x.shape[1:])
        parts = torch.split(y, ctx.sizes)
        parts[rank()].copy_(x)
        for source, part in enumerate(parts):  # broadcasts need no padding for uneven parts
            if part.numel():
                dist.broadcast(part, src=source)
        return y

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        parts = torch.split(gradient.clone(memory_format=torch.contiguous_format), ctx.sizes)
        for target, part in enumerate(parts):
            if part.numel():
                dist.reduce(part, dst=target)
        return parts[rank()].clone()


def is_sharded(x: Tensor) -> bool:
    """Return whether x is a DTensor, of which FSDP leaves each rank a part; torch's own class is slow to import."""
    return hasattr(x, "full_tensor")


def full_tensor(x: Tensor) -> Tensor:
    """Return the whole of a tensor that may be sharded; if it is, every rank must call this."""
    gather: Callable[[], Tensor] | None = getattr(x, "full_tensor", None)
    return x if gather is None else gather()


def broadcast_weights(model: nn.Module) -> None:
    """Copy the parameters and buffers of rank 0 to every rank."""
    if world_size() > 1:
        with torch.no_grad():
            for value in [*model.parameters(), *model.buffers()]:
                contiguous = value.contiguous()
                dist.broadcast(contiguous, src=0)
                value.copy_(contiguous)


def average_gradients(parameters: Iterable[Tensor]) -> None:
    """Replace each gradient by its mean over the ranks, in place.

    Parameters without a gradient are skipped; they must be the same on all ranks. So are sharded ones, whose gradients
    FSDP has averaged.
    """
    if world_size() == 1:
        return
    for bucket in _buckets([p.grad for p in parameters if p.grad is not None and not is_sharded(p)]):
        flat = torch.cat([gradient.flatten() for gradient in bucket])
        dist.all_reduce(flat)
        flat /= world_size()
        for gradient, mean in zip(bucket, torch.split(flat, [g.numel() for g in bucket]), strict=True):
            gradient.copy_(mean.view_as(gradient))


def _buckets(tensors: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    """Yield consecutive tensors of one dtype, up to `BUCKET_BYTES` together, or a single larger one."""
    bucket: list[Tensor] = []
    size = 0
    for tensor in tensors:
        if bucket and (size + tensor.nbytes > BUCKET_BYTES or tensor.dtype != bucket[0].dtype):
            yield bucket
            bucket, size = [], 0
        bucket.append(tensor)
        size += tensor.nbytes
    if bucket:
        yield bucket
