"""torch.compile for the towers' blocks.

The blocks of a tower are alike, so they are compiled once, in a fraction of the time of a whole tower. Nearly all of a
step's work is in them. Captions are padded to a few lengths; after the second one torch compiles for dynamic shapes.

The blocks of both towers are one function, of which torch keeps a limited number of graphs. These differ by tower, by
gradient mode, by shapes, and in the last block: 6 in a plain step, up to 16 with gradient caching. Beyond the limit,
torch runs the function without compilation.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
import torch.nn.functional as F
from torch import Tensor

from miniclip.inference.model import CLIPModel

MULTIPLE = 8  # tokens
MAX_GRAPHS = 64  # torch's default is 8


def compile_blocks(model: CLIPModel) -> None:
    """Compile the blocks when they are first called; weights and state dict keys do not change.

    For the whole process, it raises torch's limit on the graphs of a function.
    """
    torch.compiler.config.recompile_limit = max(torch.compiler.config.recompile_limit, MAX_GRAPHS)
    for tower in (model.image, model.text):
        for block in tower.blocks:
            block.compile()


def pad_to_multiple(tokens: Tensor, context_length: int) -> Tensor:
    """Pad captions (B, T) to the next multiple of 8 tokens, at most to the context length, so that shapes are few.

    The embeddings do not change if the model masks padding.
    """
    length = min(-(-tokens.shape[1] // MULTIPLE) * MULTIPLE, context_length)
    return F.pad(tokens, (0, length - tokens.shape[1]))


def force_eager(compiled: bool) -> AbstractContextManager[None]:
    """Context in which compiled blocks run eagerly: an evaluation has too many shapes to compile for."""
    if not compiled:
        return nullcontext()  # does not import the compiler, which is slow
    stance: AbstractContextManager[None] = torch.compiler.set_stance("force_eager")
    return stance
