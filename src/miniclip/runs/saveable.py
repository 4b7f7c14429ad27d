"""Refusal of models and optimizers that a checkpoint or a training state cannot hold, before a run starts."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import nn
from torch.optim import Optimizer

from miniclip.checkpoints.native import require_plain
from miniclip.inference.model import CLIPModel
from miniclip.runs.structure import foreign_parts
from miniclip.train.config import TrainConfig
from miniclip.train.optimizer import build_optimizer
from miniclip.utils.items import describe
from miniclip.utils.option_names import option


def require_saveable(model: CLIPModel) -> None:
    """Check that a model's checkpoints can be opened again, and that it can be trained.

    Raises:
        TypeError: the model is another module, or is wrapped.
        ValueError: its modules or parameters are not those of its configuration, share memory, or are all frozen.
    """
    if not isinstance(model, CLIPModel):
        raise TypeError(
            f"model: found {describe(model)}; expected a CLIPModel without wrappers and adapters: pass the "
            "model inside of torch.compile (TrainConfig(compile=True) compiles it) or DataParallel (torchrun uses all "
            "GPUs), and the result of merge_and_unload() of a peft model"
        )
    require_plain(model, model.state_dict())
    for name, tower in (("image", model.image), ("text", model.text)):
        if not hasattr(tower, "blocks"):  # torch.compile passes attributes on
            raise TypeError(f"model.{name} is a {type(tower).__name__}; expected the tower inside of it")
    if shared := _shared_memory(model):
        raise ValueError(
            f"the parameters {' and '.join(shared)} share memory, so that each step would update it twice; to tie "
            "them, assign one parameter to both modules"
        )
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise ValueError("all parameters of the model are frozen; unfreeze some of them")


def _shared_memory(model: nn.Module) -> list[str]:
    """Return the names of two parameters that are different objects with the same memory, or an empty list."""
    names: dict[Any, str] = {}
    for name, parameter in model.named_parameters():
        first = names.setdefault(parameter.data_ptr() or name, name)  # 0 on the meta device
        if first != name:
            return [first, name]
    return []


def require_parts(model: CLIPModel, parts: Sequence[str], run_dir: Path) -> None:
    """Check that the model of a resumed run has the foreign parts that it had.

    Args:
        model: the model.
        parts: descriptions of `structure.foreign_parts`.
        run_dir: the run, for the message.

    Raises:
        ValueError: a part is missing.
    """
    if missing := sorted(set(parts) - set(foreign_parts(model) if parts else ())):
        raise ValueError(
            f"{run_dir}: the model of this run had {', '.join(missing)}, which no checkpoint has: put it into "
            "trainer.model before fit(), as at the start of the run; or resume without it, which gives another result, "
            f"with {option('allow_changes', True)}"
        )


def require_own_optimizer(optimizer: Optimizer, model: CLIPModel, config: TrainConfig, is_new: bool) -> None:
    """Check that an optimizer is the one that the settings give, since a resumed run builds it from them.

    Args:
        optimizer: the optimizer in use.
        model: the model in training.
        config: the settings.
        is_new: whether the run has no step yet; later the learning rate is that of the last step.

    Raises:
        ValueError: its class, its groups or their options differ.
    """
    expected = build_optimizer(model, config)
    if type(optimizer) is not type(expected):
        raise ValueError(_optimizer_message(f"it is {type(optimizer).__name__}, not {type(expected).__name__}"))
    if [_ids(group) for group in optimizer.param_groups] != [_ids(group) for group in expected.param_groups]:
        raise ValueError(_optimizer_message("its groups have other parameters"))
    if (is_new and _rates(optimizer) != _rates(expected)) or not _has_one_rate(optimizer):
        rates = ", ".join(map(str, sorted(set(_rates(optimizer)))))
        raise ValueError(_optimizer_message(f"its learning rates are {rates}"))
    for group, other in zip(optimizer.param_groups, expected.param_groups, strict=True):
        for name in (group.keys() | other.keys()) - {"params", "lr"}:
            if group.get(name) != other.get(name):
                difference = f"{name} of a group is {group.get(name)}, not {other.get(name)}"
                raise ValueError(_optimizer_message(difference))


def _rates(optimizer: Optimizer) -> list[float]:
    return [group["lr"] for group in optimizer.param_groups]


def _has_one_rate(optimizer: Optimizer) -> bool:
    """Return whether the groups' learning rates are one rate times the factors of the groups."""
    groups = [group for group in optimizer.param_groups if group.get("lr_scale")]
    rates = [group["lr"] / group["lr_scale"] for group in groups]
    return all(math.isclose(rate, rates[0]) for rate in rates)


def _ids(group: dict[str, Any]) -> list[int]:
    return [id(parameter) for parameter in group["params"]]


def _optimizer_message(difference: str) -> str:
    return (
        f"the optimizer was changed: {difference}. A resumed run would not have the change, and the trainer sets the "
        "learning rate at every step: use the settings lr, weight_decay, beta2 and warmup_fraction, and freeze "
        "parameters with requires_grad_(False)"
    )
