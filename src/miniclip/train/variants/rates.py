"""Factors on the learning rate: for each tower, for projections and scale, and by depth.

The factor by depth is that of BEiT (Bao et al. 2022, https://arxiv.org/abs/2106.08254). With L blocks, block i of 1..L
has layer_decay^(L + 1 - i). Embeddings, positions and the norm before the blocks are the deepest layer and have
layer_decay^(L + 1). The layers after the blocks have 1.
"""

from __future__ import annotations

import re

from torch import nn

from miniclip.checkpoints.names import unwrapped_name
from miniclip.models.clip import CLIP
from miniclip.models.other import OtherImageTower
from miniclip.tower_config import OtherImageConfig
from miniclip.train.config import TrainConfig

AFTER_BLOCKS = ("norm_after", "pool", "projection")  # parts of a tower


def lr_scales(model: CLIP, config: TrainConfig) -> dict[int, float]:
    """Return the factor on the learning rate of each parameter, by the parameter's `id`.

    Raises:
        ValueError: a setting needs the parts of a vision transformer, and the image tower trains and is another.
    """
    tower: nn.Module = model.image
    if isinstance(tower, OtherImageTower) and any(weight.requires_grad for weight in tower.parameters()):
        for name, part in (("layer_decay", "blocks"), ("projection_lr_scale", "projection")):
            if getattr(config, name) != 1:
                raise ValueError(
                    f"{name} is {getattr(config, name)}, and the image tower is {tower.config.label}, without "
                    f"miniclip's {part}: use 1; image_lr_scale is for the whole tower"
                )
    return {id(parameter): _scale(unwrapped_name(name), model, config) for name, parameter in model.named_parameters()}


def _scale(name: str, model: CLIP, config: TrainConfig) -> float:
    tower, _, part = name.partition(".")
    if tower not in ("image", "text"):
        return config.logit_scale_lr_scale
    if part.startswith("projection."):
        return config.projection_lr_scale
    scale = config.image_lr_scale if tower == "image" else config.text_lr_scale
    tower_config = getattr(model.config, tower)
    if config.layer_decay == 1 or isinstance(tower_config, OtherImageConfig):
        return scale
    return scale * float(config.layer_decay ** _depth(part, tower_config.layers))


def _depth(part: str, layers: int) -> int:
    """Number of layers between a parameter of a tower and its output; 0 after the blocks."""
    if block := re.match(r"blocks\.(\d+)\.", part):
        return layers - int(block[1])
    return 0 if part.split(".")[0] in AFTER_BLOCKS else layers + 1
