"""Arguments of `miniclip.contrastive_loss` and `miniclip.sigmoid_loss` in one record, for the losses' fast forms."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class LossInputs(NamedTuple):
    """A batch of N embedding pairs, and how to compute its loss.

    Attributes:
        images: (N, E), not normalised.
        texts: (N, E), not normalised.
        logit_scale: factor on the cosine similarities.
        logit_bias: added to every logit of the sigmoid loss; None: the loss is the contrastive one.
        ids: (N,) integers; rows that share an id are not negatives of each other.
        chunk_size: rows or columns of the similarity matrix in memory at a time; None: chosen by the device.
    """

    images: Tensor
    texts: Tensor
    logit_scale: Tensor | float
    logit_bias: Tensor | float | None = None
    ids: Tensor | None = None
    chunk_size: int | None = None

    @property
    def scalars(self) -> list[Tensor]:
        """Logit scale, and logit bias if there is one, as tensors () in the precision of the loss."""
        dtype = torch.float64 if self.images.dtype == torch.float64 else torch.float32
        numbers = [self.logit_scale] if self.logit_bias is None else [self.logit_scale, self.logit_bias]
        return [torch.as_tensor(number, dtype=dtype, device=self.images.device).reshape(()) for number in numbers]
