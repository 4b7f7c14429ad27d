"""The towers' blocks translated by torch.compile, and nothing else.

The blocks of a tower are alike, so that one translation does for all of them, and takes a fraction of the time that a
whole tower takes; nearly all of a step's work is in them. A text tower sees captions of many lengths: after the second,
torch translates it for any.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch

from miniclip.models.clip import CLIP


def compile_blocks(model: CLIP) -> None:
    """Have the blocks compiled when they are first called; the model's weights, names and files stay as they are."""
    for tower in (model.image, model.text):
        tower.blocks.compiled = True
        for block in tower.blocks:
            block.compile()


def untranslated(compiled: bool) -> AbstractContextManager[None]:
    """A context in which compiled blocks run as they are written: an evaluation's shapes are not worth it."""
    if not compiled:
        return nullcontext()  # and the compiler, whose import is slow, is not needed
    stance: AbstractContextManager[None] = torch.compiler.set_stance("force_eager")
    return stance
