"""Initialization as one table: the first row whose pattern matches a parameter's name gives its distribution.

OpenAI's `CLIP.initialize_parameters` of the text tower, used for both (https://github.com/openai/CLIP, model.py). As
in GPT-2, projections into the residual stream shrink with depth, so its variance does not grow with the layers.
D is the tower's width, L its number of layers.
"""

from __future__ import annotations

import re

import torch

from miniclip.models.text import TextTransformer
from miniclip.models.vision import VisionTransformer

# pattern, standard deviation (0: zeros, None: ones), source
TABLE = (
    (r"tokens\.weight", lambda D, L: 0.02),  # GPT-2
    (r"text\.positions", lambda D, L: 0.01),  # CLIP
    (r"class_token|image\.positions|pool\.query", lambda D, L: D**-0.5),  # CLIP
    (r"patches\.weight|conv\.weight", lambda D, L: D**-0.5),  # patches of unit variance keep the class token's scale
    (r"norm\w*\.weight", lambda D, L: None),  # Ba et al. 2016
    (r"bias", lambda D, L: 0.0),
    (r"attention\.qkv\.weight", lambda D, L: D**-0.5),  # CLIP
    (r"attention\.out\.weight", lambda D, L: D**-0.5 * (2 * L) ** -0.5),  # CLIP, after GPT-2
    (r"mlp\.up\.weight", lambda D, L: (2 * D) ** -0.5),  # CLIP
    (r"mlp\.down\.weight", lambda D, L: D**-0.5 * (2 * L) ** -0.5),  # CLIP, after GPT-2
    (r"projection\.weight", lambda D, L: D**-0.5),  # CLIP
)


@torch.no_grad()
def initialise(tower: VisionTransformer | TextTransformer) -> None:
    """Draw a tower's parameters by the table, from torch's global generator."""
    if not isinstance(tower, VisionTransformer | TextTransformer):
        raise ValueError(f"{type(tower).__name__}: the table has no fresh weights for it; load pretrained weights")  # noqa: TRY004
    name = "image" if isinstance(tower, VisionTransformer) else "text"
    for key, parameter in tower.named_parameters():
        rule = next(rule for pattern, rule in TABLE if re.search(pattern, f"{name}.{key}"))
        std = rule(tower.config.width, tower.config.layers)
        if std is None:
            parameter.fill_(1.0)
        elif std == 0.0:
            parameter.zero_()
        else:
            parameter.normal_(std=std)
