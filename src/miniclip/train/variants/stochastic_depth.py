"""Rates of stochastic depth, which rise with depth (Huang et al. 2016, https://arxiv.org/abs/1603.09382)."""

from __future__ import annotations

from torch import nn

from miniclip.models.layers import Block, Transformer
from miniclip.models.other import OtherImageTower


def set_stochastic_depth(model: nn.Module, rate: float) -> None:
    """Let samples skip the residual branches of the towers' blocks in training mode.

    Args:
        model: changed in place; its weights are not.
        rate: probability in the last block, in [0, 1). In block l of L it is rate * l / L. 0: no branch is skipped.

    Raises:
        ValueError: the rate is above 0 and the model has none of miniclip's blocks.
    """
    if rate and isinstance(getattr(model, "image", None), OtherImageTower):
        raise ValueError("stochastic_depth: the image tower has none of miniclip's blocks: use 0")
    stacks = [module for module in model.modules() if isinstance(module, Transformer)]
    if rate and not any(isinstance(block, Block) for stack in stacks for block in stack):
        raise ValueError("stochastic_depth: the model has no miniclip.models.layers.Block to apply it to")
    for stack in stacks:
        for number, block in enumerate(stack, start=1):
            vars(block)["drop_rate"] = rate * number / len(stack)
