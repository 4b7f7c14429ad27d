"""The towers' blocks translated by torch.compile, and nothing else.

The blocks of a tower are alike, so that one translation does for all of them, and takes a fraction of the time that a
whole tower takes; nearly all of a step's work is in them. A text tower sees captions of many lengths: padded to a few
widths, and after the second one torch translates it for any.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
import torch.nn.functional as F
from torch import Tensor

from miniclip.inference.model import CLIPModel

WIDTH = 8  # tokens


def compile_blocks(model: CLIPModel) -> None:
    """Have the blocks compiled when they are first called; the model's weights, names and files stay as they are."""
    for tower in (model.image, model.text):
        for block in tower.blocks:
            block.compile()


def in_few_widths(tokens: Tensor, context_length: int) -> Tensor:
    """Captions (B, T) with padding to the next multiple of 8 tokens, or to the context: few shapes, and even ones.

    What stands behind a caption's end never reaches its embedding, where padding is masked.
    """
    width = min(-(-tokens.shape[1] // WIDTH) * WIDTH, context_length)
    return F.pad(tokens, (0, width - tokens.shape[1]))


def untranslated(compiled: bool) -> AbstractContextManager[None]:
    """A context in which compiled blocks run as they are written: an evaluation's shapes are not worth it."""
    if not compiled:
        return nullcontext()  # and the compiler, whose import is slow, is not needed
    stance: AbstractContextManager[None] = torch.compiler.set_stance("force_eager")
    return stance
