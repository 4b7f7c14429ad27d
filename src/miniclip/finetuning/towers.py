"""Trained parts of each tower: all of it, nothing, its last blocks, or LoRA adapters.

LiT (Zhai et al. 2022, https://arxiv.org/abs/2111.07991) freezes the image tower, FLYP (Goyal et al. 2023,
https://arxiv.org/abs/2212.00638) trains everything, CLIP-LoRA trains adapters only.

The logit scale and bias belong to no tower. They train with the weights of a tower. If only adapters train, they stay,
so that the adapters are all that differs from the base model.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TypeVar

import torch
from torch import nn

from miniclip.finetuning.lora import TARGETS, insert, is_lora, lora_layers, shapes
from miniclip.models.clip import CLIP
from miniclip.train.config import TrainConfig
from miniclip.utils.checks import did_you_mean

TOWERS = ("image", "text")
LAST = "last-"  # beginning of the mode that trains the last N blocks
Model = TypeVar("Model", bound=CLIP)


def apply(model: CLIP, config: TrainConfig) -> None:
    """Freeze and adapt the towers as the settings `tune_image` and `tune_text` describe, in place.

    Parameters that are frozen already stay frozen.

    Raises:
        ValueError: no weight would train, a tower has fewer blocks than the setting names, a tower has
            other adapters, or the sigmoid loss has a new bias that would not train.
    """
    modes = {"image": config.tune_image, "text": config.tune_text}
    if config.loss == "sigmoid" and ("lora" in modes.values() or lora_layers(model)):
        require_trained_bias(model, [name for name, mode in modes.items() if mode in ("lora", "frozen")])
    if all(mode == "full" for mode in modes.values()):
        return
    for name, mode in modes.items():
        if mode == "frozen":
            getattr(model, name).requires_grad_(False)
        elif mode.startswith(LAST):
            _freeze_except_last(getattr(model, name), int(mode.removeprefix(LAST)), f"tune_{name}")
    adapted = [name for name, mode in modes.items() if mode == "lora"]
    if adapted:
        targets = config.lora_targets.split(",")
        add_lora(model, config.lora_rank, config.lora_alpha, targets, towers=adapted, seed=config.seed)
    if not any(parameter.requires_grad for name in TOWERS for parameter in getattr(model, name).parameters()):
        raise ValueError(
            f"tune_image is {config.tune_image!r} and tune_text is {config.tune_text!r}: no weight of a tower would "
            "train; choose 'full', 'last-1' or 'lora' for one of them, or unfreeze its parameters"
        )


def add_lora(
    model: Model,
    rank: int = 4,
    alpha: float = 4.0,
    targets: Sequence[str] = ("q", "k", "v"),
    *,
    towers: Iterable[str] = TOWERS,
    seed: int = 0,
) -> Model:
    """Freeze the weights of towers, and add LoRA adapters to all of their blocks, in place.

    The model computes what it did until it is trained. The logit scale and bias are frozen too, unless other weights of
    a tower train. A tower that has the same adapters already keeps them as they are.

    The Trainer refuses the sigmoid loss with a bias that was never trained and is frozen here. Your own loop does not:
    after `add_logit_bias`, train the bias there (`model.logit_bias.requires_grad_()`), and save the whole model.

    Args:
        model: the model.
        rank: r, rows of A.
        alpha: the update is multiplied by alpha / rank.
        targets: adapted layers of a block: "q", "k", "v", "out" (of attention), "mlp" (both layers).
        towers: "image", "text" or both.
        seed: of the random A.

    Returns:
        The model.

    Raises:
        ValueError: a name is unknown, the rank is below 1, or a tower has other adapters.
    """
    towers = list(towers)
    for kind, names, known in (("target", targets, TARGETS), ("tower", towers, TOWERS)):
        for name in names:
            if name not in known:
                raise ValueError(f"unknown LoRA {kind} {name!r}{did_you_mean(name, known)}")
    if rank < 1:
        raise ValueError(f"the LoRA rank is {rank}; expected at least 1")
    for name in towers:
        tower, start = getattr(model, name), f"{name}.blocks."
        linear = [key for key, layer in model.named_modules() if isinstance(layer, nn.Linear) and key.startswith(start)]
        if not linear:
            raise ValueError(f"LoRA: the {name} tower has no blocks to adapt; train all of it, or freeze it")
        adapters = shapes(linear, targets, rank, alpha)
        present = {key: layer.lora for key, layer in lora_layers(model).items() if key.startswith(start)}
        if present and present != adapters:
            raise ValueError(
                f"the {name} tower has other LoRA adapters already ({next(iter(present.values()))}): merge them first, "
                f"with miniclip.finetuning.merge(model), or train them as they are, with tune_{name} 'full'"
            )
        for key, parameter in tower.named_parameters():
            if not is_lora(key):
                parameter.requires_grad_(False)
        if not present:
            insert(model, adapters, seed)
    if adapters_only(model):
        model.log_scale.requires_grad_(False)
        if model.logit_bias is not None:
            model.logit_bias.requires_grad_(False)
    return model


def require_trained_bias(model: CLIP, frozen: Iterable[str]) -> None:
    """Check that a logit bias has been trained if it would be frozen: if only adapters train.

    A new bias starts far from its place, since the sigmoid loss has few positives, and no adapter makes up for that.

    Args:
        model: the model.
        frozen: towers whose weights will be frozen.

    Raises:
        ValueError: the bias has the first value of the configuration.
    """
    bias, others = model.logit_bias, [name for name in TOWERS if name not in frozen]
    if bias is None or any(
        parameter.requires_grad and not is_lora(name)
        for tower in others
        for name, parameter in getattr(model, tower).named_parameters()
    ):
        return
    first = torch.tensor(model.config.logit_bias, dtype=bias.dtype)
    if bias.detach().cpu() == first:
        raise ValueError(
            f"the logit bias has its first value, {first:g}, and would stay there, because only adapters would train: "
            "train weights of a tower too, as with tune_text 'full', or fine-tune the model without a bias by the "
            "contrastive loss"
        )


def adapters_only(model: CLIP) -> bool:
    """Whether the towers' trained parameters are adapters: at least one, and no other weight of a tower."""
    towers = (parameter for name in TOWERS for parameter in getattr(model, name).named_parameters())
    trained = [is_lora(name) for name, parameter in towers if parameter.requires_grad]
    return bool(trained) and all(trained)


def _freeze_except_last(tower: nn.Module, count: int, setting: str) -> None:
    """Freeze a tower except its last blocks, the norm, the pooling and the projection after them."""
    blocks = getattr(tower, "blocks", ())
    if not isinstance(blocks, nn.ModuleList):
        raise ValueError(f"{setting} is '{LAST}{count}', and the tower has no blocks: use 'full' or 'frozen'")  # noqa: TRY004
    if count > len(blocks):
        raise ValueError(f"{setting} is '{LAST}{count}', and the tower has {len(blocks)} blocks; expected at most that")
    after = ("norm_after", "pool", "projection", *(f"blocks.{i}" for i in range(len(blocks) - count, len(blocks))))
    for name, parameter in tower.named_parameters():
        if not name.startswith(tuple(f"{part}." for part in after)):
            parameter.requires_grad_(False)
