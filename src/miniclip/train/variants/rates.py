"""Factors on the learning rate: for each tower, for projections and scale, and by depth.

The factor by depth is that of BEiT (Bao et al. 2022, https://arxiv.org/abs/2106.08254). With L blocks, block i of 1..L
has layer_decay^(L + 1 - i). Embeddings, positions and the norm before the blocks are the deepest layer and have
layer_decay^(L + 1). The layers after the blocks have 1.
"""

from __future__ import annotations

import re

from miniclip.checkpoints.names import unwrapped_name
from miniclip.models.clip import CLIP
from miniclip.train.config import TrainConfig

AFTER_BLOCKS = ("norm_after", "pool", "projection")  # parts of a tower


def lr_scales(model: CLIP, config: TrainConfig) -> dict[int, float]:
    """Return the factor on the learning rate of each parameter, by the parameter's `id`."""
    return {id(parameter): _scale(unwrapped_name(name), model, config) for name, parameter in model.named_parameters()}


def _scale(name: str, model: CLIP, config: TrainConfig) -> float:
    tower, _, part = name.partition(".")
    if tower not in ("image", "text"):
        return config.logit_scale_lr_scale
    if part.startswith("projection."):
        return config.projection_lr_scale
    scale = config.image_lr_scale if tower == "image" else config.text_lr_scale
    if config.layer_decay == 1:
        return scale
    return scale * float(config.layer_decay ** _depth(part, getattr(model.config, tower).layers))


def _depth(part: str, layers: int) -> int:
    """Number of layers between a parameter of a tower and its output; 0 after the blocks."""
    if block := re.match(r"blocks\.(\d+)\.", part):
        return layers - int(block[1])
    return 0 if part.split(".")[0] in AFTER_BLOCKS else layers + 1
