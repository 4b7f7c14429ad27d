"""Exchange of plain and fast forms. The parameters, their names and the numbers stay the same.

A fast form is a subclass that only changes how `forward` computes and has no parameters, so a module becomes fast by
exchanging its class. Deep copies, pickles, EMA and state dicts keep working. Subclasses of the plain forms are not
exchanged: their author's `forward` counts.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TypeVar

from torch import nn

from miniclip.fast.layers import FastAttention, FastAttentionPool, FastBlock, FastMLP, FastTransformer
from miniclip.fast.patches import FastPatches
from miniclip.fast.towers import FastTextTransformer, FastVisionTransformer
from miniclip.models.layers import MLP, Attention, AttentionPool, Block, Transformer
from miniclip.models.text import TextTransformer
from miniclip.models.vision import VisionTransformer

FAST: Mapping[type[nn.Module], type[nn.Module]] = {
    Attention: FastAttention,
    AttentionPool: FastAttentionPool,
    Block: FastBlock,
    MLP: FastMLP,
    TextTransformer: FastTextTransformer,
    Transformer: FastTransformer,
    VisionTransformer: FastVisionTransformer,
    nn.Conv2d: FastPatches,
}
PLAIN = {fast: plain for plain, fast in FAST.items()}
SWITCH = "MINICLIP_FAST"  # environment variable; 0 makes `accelerate` do nothing

Module = TypeVar("Module", bound=nn.Module)


def accelerate(model: Module) -> Module:
    """Replace the plain forms in a model by fast ones, in place.

    Call it before FSDP or adapters wrap the modules. With the environment variable MINICLIP_FAST=0 it does nothing.

    Returns:
        The model.
    """
    if os.environ.get(SWITCH) != "0":
        _exchange(model, FAST)
    return model


def plain(model: Module) -> Module:
    """Replace the fast forms in a model by the plain ones, in place.

    Returns:
        The model.

    Raises:
        ValueError: a fast form is wrapped by FSDP, so its class cannot be exchanged.
    """
    for name, module in model.named_modules():
        if type(module) not in PLAIN and isinstance(module, tuple(PLAIN)):
            raise ValueError(f"{name or 'the model'} is a {type(module).__name__}: call fast.plain before wrapping it")
    _exchange(model, PLAIN)
    return model


@contextmanager
def plain_forms(model: Module) -> Iterator[Module]:
    """Context in which a model has its plain forms, for example to export it."""
    fast = [module for module in model.modules() if type(module) in PLAIN]
    plain(model)
    try:
        yield model
    finally:
        for module in fast:
            module.__class__ = FAST[type(module)]


def _exchange(model: nn.Module, classes: Mapping[type[nn.Module], type[nn.Module]]) -> None:
    for module in model.modules():
        module.__class__ = classes.get(type(module), type(module))
