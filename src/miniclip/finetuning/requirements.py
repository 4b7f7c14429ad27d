"""Requirements of fine-tuning that `--check` and a run refuse alike: trained parts, kept embeddings and objectives."""

from __future__ import annotations

import copy
from typing import Any

from torch import nn

from miniclip.finetuning.anchoring import load_teacher, require_objectives
from miniclip.finetuning.cached_tower import require_cacheable
from miniclip.finetuning.towers import apply
from miniclip.inference.model import CLIPModel
from miniclip.train.config import TrainConfig


def require_tunable(model: CLIPModel, config: TrainConfig) -> None:
    """Check that a run can train the parts of the settings by their objectives. The model is left as it is.

    Raises:
        ValueError: as `towers.apply`, `require_cacheable` and `require_objectives`; or the teacher has no tokenizer.
        FileNotFoundError: the teacher does not exist; further errors are those of `miniclip.load`.
    """
    tuned = copy_without_weights(model)
    apply(tuned, config)
    require_cacheable(tuned, config)
    require_objectives(tuned, config)
    if config.teacher is not None:
        load_teacher(config.teacher, model.device)


def copy_without_weights(model: CLIPModel) -> CLIPModel:
    """Return a copy of a model whose weights take no memory: they are on the meta device, except single numbers."""
    memo: dict[int, Any] = {id(model.tokenizer): model.tokenizer}
    for weight in model.parameters():
        if weight.numel() > 1:
            memo[id(weight)] = nn.Parameter(weight.detach().to("meta"), requires_grad=weight.requires_grad)
    memo |= {id(buffer): buffer.to("meta") for buffer in model.buffers() if buffer.numel() > 1}
    return copy.deepcopy(model, memo)
