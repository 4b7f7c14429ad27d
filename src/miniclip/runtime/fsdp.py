"""FSDP2: each rank keeps a part of the weights, of their gradients and of the optimizer's state (Zhao et al. 2023).

Every block of the towers, and each tower with what else it has, is a unit of torch's `fully_shard`: its weights are
gathered before it computes and let go after, its gradients are averaged and scattered as they come. Scale and bias are
single numbers, and each rank has them. On one process nothing is done. https://arxiv.org/abs/2304.11277
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from miniclip.inference.model import CLIPModel
from miniclip.models.text import TextTransformer
from miniclip.models.vision import VisionTransformer
from miniclip.runtime.distributed import full_tensor, is_sharded, world_size


def shard(model: CLIPModel) -> None:
    """Shard a model's towers over the ranks, in place.

    Raises:
        ValueError: a tower has no blocks to shard.
    """
    if world_size() == 1:
        return
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh(model.device.type, (world_size(),))
    for tower in (model.image, model.text):
        for block in tower.blocks:
            fully_shard(block, mesh=mesh, reshard_after_forward=True)
        fully_shard(tower, mesh=mesh, reshard_after_forward=False)  # backward needs it at once


def require_even(batch: int, skips_samples: bool = False) -> None:
    """Check that every rank has the same number of rows, hence of micro batches: each of them communicates.

    Args:
        batch: samples of a step on all ranks.
        skips_samples: whether a rank may leave out samples that cannot be read.

    Raises:
        ValueError: the ranks have different numbers of rows.
    """
    if batch % world_size():
        raise ValueError(
            f"fsdp: a batch of {batch} samples is not a multiple of {world_size()} ranks; choose a batch_size that is"
        )
    if skips_samples:
        raise ValueError(
            "fsdp needs whole batches, and on_error is 'skip'; use 'raise', with a dataset whose images can all be read"
        )


@contextmanager
def unsharded(model: CLIPModel) -> Iterator[None]:
    """A context in which every rank has all weights, to embed with them as often as it likes; not to train.

    In a sharded model each forward pass is an exchange, and ranks with more pictures than others would wait forever.
    """
    if world_size() == 1:
        yield
        return
    from torch.distributed.fsdp import FSDPModule

    units = [module for module in model.modules() if isinstance(module, FSDPModule)]
    for unit in units:
        unit.set_reshard_after_forward(False, recurse=False)
        unit.unshard()
    try:
        yield
    finally:
        for unit in units:
            unit.reshard()
            unit.set_reshard_after_forward(not isinstance(unit, VisionTransformer | TextTransformer), recurse=False)


def gradient_norm(parameters: Iterable[Tensor], like: Tensor) -> Tensor:
    """The norm of the gradient of parameters, sharded and whole ones; 0, of the type of `like`, where there is none."""
    grads = [[p.grad for p in kind if p.grad is not None] for kind in _kinds(parameters)]
    norms = [full_tensor(nn.utils.get_total_norm(kind)) for kind in grads] or [like.new_zeros(())]
    return norms[0] if len(norms) == 1 else torch.stack(norms).norm()


def clip_gradients(parameters: Iterable[Tensor], greatest: float, norm: Tensor) -> None:
    """Shorten the gradient, whose norm is given, to a norm of `greatest`."""
    for kind in _kinds(parameters):
        nn.utils.clip_grads_with_norm_(kind, greatest, norm)


def _kinds(parameters: Iterable[Tensor]) -> list[list[Tensor]]:
    """Whole and sharded parameters with a gradient, apart: one operation takes one kind of them."""
    kinds: tuple[list[Tensor], list[Tensor]] = ([], [])
    for parameter in parameters:
        if parameter.grad is not None:
            kinds[is_sharded(parameter)].append(parameter)
    return [kind for kind in kinds if kind]


def part_of(value: Tensor, parameter: Tensor) -> Tensor:
    """A whole tensor of a parameter's shape as the parameter is: on its device, and sharded if that is."""
    value = value.to(parameter.device)
    if not is_sharded(parameter):
        return value
    from torch.distributed.tensor import DTensor, distribute_tensor

    assert isinstance(parameter, DTensor)
    return distribute_tensor(value, parameter.device_mesh, parameter.placements, src_data_rank=None)  # all have it
