"""Ranks: several processes that train one model on one batch, started by torchrun or anything that sets its variables.

Every function works on one process too, where it does nothing and costs nothing: callers need no second path.
Nothing is exchanged but sums, embeddings, and what rank 0 decides. Letters: R ranks, N rows of all ranks together.
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

VARIABLES = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")  # what torchrun tells each process
TIMEOUT = timedelta(minutes=10)  # for one exchange: more than rank 0 takes to write a large state while others wait
LEAVING = timedelta(seconds=10)  # for the others to come to an orderly end
BUCKET_BYTES = 32 << 20  # gradients are exchanged so many at a time: few exchanges, little memory

T = TypeVar("T")


# who


def world_size() -> int:
    """R, or 1 where no process group is up."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """This process's number, 0..R-1."""
    return dist.get_rank() if world_size() > 1 else 0


def is_main() -> bool:
    """Whether this is rank 0, which alone writes and prints."""
    return rank() == 0


def ranks_here() -> int:
    """How many of the ranks share this machine."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", 1)) if world_size() > 1 else 1


def part(n: int, which: int | None = None) -> slice:
    """The rows of n that a rank works on: in order of the ranks, the sizes at most one apart.

    Of 10 rows, 4 ranks take 0..2, 3..5, 6..7 and 8..9.

    Args:
        n: rows in all.
        which: the rank; None: this one.
    """
    ranks, which = world_size(), rank() if which is None else which
    size, more = divmod(n, ranks)
    start = which * size + min(which, more)
    return slice(start, start + size + (which < more))


# from start to end


def start(device: str | torch.device | None = None) -> None:
    """Join the other ranks, where torchrun's variables say that there are any and that has not been done yet.

    Tensors on a GPU travel by NCCL, those on the CPU by gloo: an exchange of small numbers never waits for a GPU.

    Args:
        device: what will be computed on; "cpu": no GPU is touched. None: the GPU where there is one.

    Raises:
        ValueError: the machine has more ranks than GPUs.
    """
    if dist.is_initialized() or not all(name in os.environ for name in VARIABLES) or os.environ["WORLD_SIZE"] == "1":
        return
    backend = "gloo"
    if torch.cuda.is_available() and torch.device(device or "cuda").type == "cuda":
        local, found = int(os.environ.get("LOCAL_RANK", 0)), torch.cuda.device_count()
        if local >= found:
            raise ValueError(
                f"this machine has {found} GPUs, and rank {os.environ['RANK']} would need number {local}: start at "
                f"most {found} processes a machine (--nproc-per-node {found}), or compute on the CPU (--device cpu)"
            )
        torch.cuda.set_device(local)  # from here on "cuda" is this one
        backend = "cpu:gloo,cuda:nccl"
    dist.init_process_group(backend, timeout=TIMEOUT)


def stop() -> None:
    """Leave the other ranks; all must have come so far."""
    if dist.is_initialized():
        dist.destroy_process_group()


@contextmanager
def ranks(device: str | torch.device | None = None) -> Iterator[None]:
    """A context in which the ranks work together, and which they leave together.

    Where one fails, its error goes on as it is; the others, whose exchanges then fail in turn, end at once, with code 1
    and without a word: what is printed is what happened first. (torchrun ends whoever is still computing.)

    Args:
        device: as in `start`.
    """
    start(device)
    if world_size() == 1:
        yield
        return
    try:
        yield
    except KeyboardInterrupt:
        leave()  # the trainer stops on all ranks: one that left before the others would have torchrun kill them
        raise
    except Exception:
        if not first_to_fail():
            sys.stdout.flush()
            os._exit(1)  # not by an exception: in an orderly end the threads of a broken exchange may abort
        raise
    leave()
    stop()


def _store() -> Any:
    """What the ranks met at: it works where an exchange of tensors would wait for its whole timeout."""
    return dist.distributed_c10d._get_default_store()


def leave() -> None:
    """Wait for the others at the end, but not long: one may have failed."""
    with suppress(RuntimeError):  # one is late, or the store is gone with the rank that kept it: so be it
        store = _store()
        if store.add("miniclip/leaving", 1) == world_size():
            store.set("miniclip/left", "yes")
        store.wait(["miniclip/left"], LEAVING)


def first_to_fail() -> bool:
    """Whether no other rank has asked this before."""
    try:
        return int(_store().add("miniclip/failed", 1)) == 1
    except RuntimeError:  # the store is gone, and with it the rank that kept it
        return False


# small exchanges


def all_ranks(values: Sequence[int]) -> list[list[int]]:
    """The numbers of every rank, by rank; as many on each."""
    if world_size() == 1:
        return [list(values)]
    mine = torch.tensor(values, device=_small_device())
    theirs = [torch.empty_like(mine) for _ in range(world_size())]
    dist.all_gather(theirs, mine)
    return torch.stack(theirs).tolist()


def any_rank(flag: bool) -> bool:
    """Whether the flag is set on any rank."""
    return any(other for (other,) in all_ranks([flag]))


def meet() -> None:
    """Wait until every rank has come here."""
    all_ranks([0])


def on_main(function: Callable[[], T]) -> T:
    """What rank 0's call of a function returns or raises, on every rank; the others do not call it."""
    if world_size() == 1:
        return function()
    answer: list[Any] = [None, None]
    if is_main():
        try:
            answer[0] = function()
        except Exception as error:
            answer[1] = error
    dist.broadcast_object_list(answer, src=0)
    if answer[1] is not None:
        raise answer[1]
    result: T = answer[0]
    return result


def _small_device() -> torch.device:
    """Where numbers for an exchange are put: on the CPU, unless the group is one of GPUs alone."""
    cpu = any(part.startswith("cpu:") for part in dist.get_backend_config().split(","))
    return torch.device("cpu" if cpu else f"cuda:{torch.cuda.current_device()}")


# tensors


def total(x: Tensor) -> Tensor:
    """The sum over the ranks, elementwise, without gradient."""
    x = x.detach().clone()
    if world_size() > 1:
        dist.all_reduce(x)
    return x


def gather(x: Tensor) -> Tensor:
    """The rows of all ranks, in the order of the ranks, with gradient: (n, …) to (N, …).

    Each rank may have another number of rows, or none. If each rank computes its own loss of the gathered rows, the
    gradient that a rank receives is that of the sum of all losses by its rows. If all compute the same loss, that is R
    times the loss's gradient; and with that, the mean over the ranks of the parameters' gradients is exact
    (`average_gradients`, or DistributedDataParallel).
    """
    return _Gather.apply(x) if world_size() > 1 else x


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.sizes = [n for (n,) in all_ranks([len(x)])]
        y = x.new_empty(sum(ctx.sizes), *x.shape[1:])
        parts = torch.split(y, ctx.sizes)
        parts[rank()].copy_(x)
        for source, part in enumerate(parts):  # into its place: no padding where the parts are uneven
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
    """Whether this rank holds a part of the tensor alone, as FSDP leaves it: torch's DTensor, whose import is slow."""
    return hasattr(x, "full_tensor")


def whole(x: Tensor) -> Tensor:
    """All of a tensor that may be sharded; then every rank must call it."""
    full: Callable[[], Tensor] | None = getattr(x, "full_tensor", None)
    return x if full is None else full()


def copy_weights(model: nn.Module) -> None:
    """Give every rank the weights of rank 0."""
    if world_size() > 1:
        with torch.no_grad():
            for value in [*model.parameters(), *model.buffers()]:
                held = value.contiguous()
                dist.broadcast(held, src=0)
                value.copy_(held)


def average_gradients(parameters: Iterable[Tensor]) -> None:
    """Replace each gradient by its mean over the ranks, in place; parameters without one are left out.

    So are sharded parameters, whose gradients FSDP has averaged already.
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
    """The tensors in their order, of one type at a time and up to `BUCKET_BYTES`, or a single larger one."""
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
