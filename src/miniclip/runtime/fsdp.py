"""FSDP2: each rank keeps a part of the weights, of their gradients and of the optimizer's state (Zhao et al. 2023).

The units of torch's `fully_shard` are the blocks of the towers, and each tower with its remaining parameters. A unit's
weights are gathered before it computes and freed afterwards; its gradients are averaged and scattered during backward.
Logit scale and bias are single numbers, and every rank has them. A single process shards nothing.
https://arxiv.org/abs/2304.11277
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from miniclip.inference.model import CLIPModel
from miniclip.models.other import OtherImageTower
from miniclip.models.text import TextTransformer
from miniclip.models.vision import VisionTransformer
from miniclip.runtime.distributed import full_tensor, is_sharded, world_size

TOWERS = (VisionTransformer, OtherImageTower, TextTransformer)


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
        fully_shard(tower, mesh=mesh, reshard_after_forward=False)  # backward needs it immediately


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
    """Context in which every rank has all weights, for any number of forward passes; not for training.

    A forward pass of a sharded model communicates, so a rank with more images than the others would wait forever.
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
            unit.set_reshard_after_forward(not isinstance(unit, TOWERS), recurse=False)


def gradient_norm(parameters: Iterable[Tensor], like: Tensor) -> Tensor:
    """Return the norm of the gradient of sharded and unsharded parameters; without any, 0 with the dtype of `like`."""
    grads = [[p.grad for p in group if p.grad is not None] for group in _by_sharding(parameters)]
    norms = [full_tensor(nn.utils.get_total_norm(group)) for group in grads] or [like.new_zeros(())]
    return norms[0] if len(norms) == 1 else torch.stack(norms).norm()


def clip_gradients(parameters: Iterable[Tensor], max_norm: float, norm: Tensor) -> None:
    """Scale the gradient to a norm of at most `max_norm`, given its norm."""
    for group in _by_sharding(parameters):
        nn.utils.clip_grads_with_norm_(group, max_norm, norm)


def _by_sharding(parameters: Iterable[Tensor]) -> list[list[Tensor]]:
    """Group the parameters with a gradient into unsharded and sharded ones, which operations cannot mix."""
    groups: tuple[list[Tensor], list[Tensor]] = ([], [])
    for parameter in parameters:
        if parameter.grad is not None:
            groups[is_sharded(parameter)].append(parameter)
    return [group for group in groups if group]


def shard_like(value: Tensor, parameter: Tensor) -> Tensor:
    """Move a full tensor to a parameter's device, and shard it if the parameter is sharded."""
    value = value.to(parameter.device)
    if not is_sharded(parameter):
        return value
    from torch.distributed.tensor import DTensor, distribute_tensor

    assert isinstance(parameter, DTensor)
    return distribute_tensor(value, parameter.device_mesh, parameter.placements, src_data_rank=None)  # on all ranks
