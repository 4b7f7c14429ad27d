"""Arguments of `miniclip.contrastive_loss` and `miniclip.sigmoid_loss` in one record, for the losses' fast forms."""

from __future__ import annotations

import math
import numbers
from typing import Any, NamedTuple

import torch
from torch import Tensor

from miniclip.utils.checks import whole_number
from miniclip.utils.items import describe

INTEGERS = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)


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
        values = [self.logit_scale] if self.logit_bias is None else [self.logit_scale, self.logit_bias]
        return [torch.as_tensor(value, dtype=dtype, device=self.images.device).reshape(()) for value in values]

    def check(self) -> None:
        """Check the types; the losses check the shapes.

        Raises:
            TypeError: an embedding or an id is not a tensor of the expected dtype, or a number is not one.
            ValueError: the scale or the bias is not a single number, or a plain number is not finite or is negative.
        """
        for name, value in (("image_embeddings", self.images), ("text_embeddings", self.texts)):
            if not isinstance(value, Tensor) or not value.is_floating_point():
                raise TypeError(
                    f"{name}: found {describe(value)}; expected a floating-point tensor (N, E): convert it with "
                    "torch.as_tensor(x, dtype=torch.float32)"
                )
        if self.images.device != self.texts.device:
            devices = f"image_embeddings are on {self.images.device}, text_embeddings on {self.texts.device}"
            raise ValueError(f"{devices}; expected one device for both")
        _check_number("logit_scale", self.logit_scale, lowest=0.0)
        if self.logit_bias is not None:
            _check_number("logit_bias", self.logit_bias, lowest=-math.inf)
        if self.ids is not None:
            _check_ids(self.ids, len(self.images))
        if self.chunk_size is not None:
            whole_number("chunk_size", self.chunk_size)  # with several ranks, its range is checked on all of them


def _check_ids(ids: Any, count: int) -> None:
    """Raise TypeError for ids that are not a tensor, or not one of integers; the losses check another shape."""
    if not isinstance(ids, Tensor) or (ids.shape == (count,) and ids.dtype not in INTEGERS):
        raise TypeError(
            f"ids: found {describe(ids)}; expected a tensor (N,) of integers: convert them with torch.as_tensor(ids, "
            "dtype=torch.int64)"
        )


def _check_number(name: str, value: Any, lowest: float) -> None:
    """Raise TypeError for anything but a number, and ValueError for several or for one that is out of range.

    A tensor's value is not read, since this would wait for its device.
    """
    if isinstance(value, Tensor):
        if value.numel() != 1:
            raise ValueError(f"{name}: found {describe(value)}; expected a single number")
    elif isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise TypeError(f"{name} is {value!r}, {describe(value)}; expected a number or a tensor ()")
    elif not math.isfinite(value) or value < lowest:
        raise ValueError(f"{name} is {value}; expected a finite number" + (", at least 0" if lowest == 0 else ""))
