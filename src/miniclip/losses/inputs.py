"""Arguments of `miniclip.contrastive_loss` and `miniclip.sigmoid_loss` in one record, for the losses' fast forms."""

from __future__ import annotations

import math
import numbers
from typing import Any, NamedTuple

import torch
from torch import Tensor

from miniclip.runtime.devices import send
from miniclip.utils.checks import whole_number
from miniclip.utils.items import describe

INTEGERS = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)


class LossInputs(NamedTuple):
    """Embeddings of a batch, and how to compute its loss: N pairs, or N images and M texts with labels.

    Attributes:
        images: (N, E), not normalised.
        texts: (N, E), not normalised; (M, E) with `text_ids`.
        logit_scale: factor on the cosine similarities.
        logit_bias: added to every logit of the sigmoid loss; None: the loss is the contrastive one.
        ids: (N,) integers; pairs that share an id are not negatives of each other. With `text_ids`: labels of the
            images, (N,) or several per image (N, L).
        chunk_size: rows or columns of the similarity matrix in memory at a time; None: chosen by the device.
        text_ids: (M,) labels of the texts; an image and a text that share a label are positives.
        label_smoothing: part of each target that is spread over all classes, in 0..1.
    """

    images: Tensor
    texts: Tensor
    logit_scale: Tensor | float
    logit_bias: Tensor | float | None = None
    ids: Tensor | None = None
    chunk_size: int | None = None
    text_ids: Tensor | None = None
    label_smoothing: float = 0.0

    @property
    def is_multi_positive(self) -> bool:
        """Whether the loss is that of `multi_positive.py`: it has labels or smoothing."""
        return self.text_ids is not None or self.label_smoothing > 0

    @property
    def scalars(self) -> list[Tensor]:
        """Logit scale, and logit bias if there is one, as tensors () in the precision of the loss."""
        dtype = precision(self.images)
        values = [self.logit_scale] if self.logit_bias is None else [self.logit_scale, self.logit_bias]
        return [torch.as_tensor(value, dtype=dtype, device=self.images.device).reshape(()) for value in values]

    @property
    def pair_ids(self) -> Tensor | None:
        """Ids of pairs (N,), of one type and on the device of the embeddings; None without them or with `text_ids`."""
        if self.ids is None or self.text_ids is not None:
            return None
        return send(self.ids.to(torch.int64), self.images.device)

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
        if precision(self.images) != precision(self.texts):  # the form of a loss would decide which one is kept
            raise TypeError(
                f"image_embeddings are {dtype_name(self.images)}, text_embeddings {dtype_name(self.texts)}; expected "
                "float64 for both or for neither: convert one, as with text_embeddings.to(image_embeddings.dtype)"
            )
        _check_number("logit_scale", self.logit_scale, lowest=0.0)
        if self.logit_bias is not None:
            _check_number("logit_bias", self.logit_bias, lowest=-math.inf)
        _check_number("label_smoothing", self.label_smoothing, lowest=0.0, highest=1.0)
        if self.text_ids is not None:
            self._check_labels(self.text_ids)
        elif self.ids is not None:
            _check_ids("ids", self.ids, self.images.shape[:1])
        if self.chunk_size is not None:
            whole_number("chunk_size", self.chunk_size)  # with several ranks, its range is checked on all of them

    def _check_labels(self, text_ids: Any) -> None:
        if self.ids is None:
            raise TypeError(
                "text_ids without ids; expected ids (N,) of the images too: an image and a text with the same id are "
                "positives"
            )
        _check_ids("ids", self.ids, self.ids.shape if isinstance(self.ids, Tensor) else ())
        _check_ids("text_ids", text_ids, text_ids.shape if isinstance(text_ids, Tensor) else ())

    def has_matching_shapes(self) -> bool:
        """Whether the shapes of embeddings and ids fit each other; there may be no row."""
        images, texts, ids, text_ids = self.images, self.texts, self.ids, self.text_ids
        if images.dim() != 2 or texts.dim() != 2 or images.shape[1] != texts.shape[1]:
            return False
        if text_ids is None:
            return len(images) == len(texts) and (ids is None or ids.shape == images.shape[:1])
        assert ids is not None
        labelled = ids.dim() in (1, 2) and len(ids) == len(images) and (ids.dim() == 1 or ids.shape[1] > 0)
        return labelled and text_ids.shape == texts.shape[:1]

    def check_shapes(self) -> None:
        """Raise ValueError if the shapes do not fit, or an array has no row."""
        if not self.has_matching_shapes() or not len(self.images) or not len(self.texts):
            raise ValueError(f"{self.shapes()}; {EXPECTED_SHAPES}, and at least one row of each")

    def shapes(self) -> str:
        """Return the shapes, for a message."""
        ids, text_ids = (None if x is None else tuple(x.shape) for x in (self.ids, self.text_ids))
        embeddings = f"image embeddings {tuple(self.images.shape)}, text embeddings {tuple(self.texts.shape)}"
        return f"{embeddings}, ids {ids}, text_ids {text_ids}"

    def labels(self) -> tuple[Tensor, Tensor]:
        """Return the labels of images (N, L) and of texts (M,), on the device of the embeddings."""
        device = self.images.device
        if self.text_ids is None:
            rows = torch.arange(len(self.images), device=device)
            return rows[:, None], rows
        assert self.ids is not None
        ids, text_ids = (send(x.to(torch.int64), device) for x in (self.ids, self.text_ids))  # ranks exchange one type
        return ids[:, None] if ids.dim() == 1 else ids, text_ids

    def positives(self) -> tuple[Tensor, Tensor]:
        """Return which elements are positives, and which are left out since pairs share an id: bool, (N, M) each."""
        images, texts = self.labels()
        positives = (images[:, :, None] == texts).any(dim=1)
        ids = self.pair_ids
        if ids is None:
            return positives, torch.zeros_like(positives)
        return positives, (ids[:, None] == ids) & ~positives


EXPECTED_SHAPES = (
    "expected two of the same shape (N, E), and ids (N,) or None; or (N, E) and (M, E) with ids (N,) or (N, L) and "
    "text_ids (M,)"
)


def precision(embeddings: Tensor) -> torch.dtype:
    """Return the type in which a loss of embeddings is computed: float64, or float32 for all others."""
    return torch.promote_types(embeddings.dtype, torch.float32)


def dtype_name(tensor: Tensor) -> str:
    """Return the name of a tensor's type, as "float32"."""
    return str(tensor.dtype).removeprefix("torch.")


def _check_ids(name: str, ids: Any, shape: tuple[int, ...]) -> None:
    """Raise TypeError for ids that are not a tensor, or not one of integers; the losses check another shape."""
    if not isinstance(ids, Tensor) or (ids.shape == shape and ids.dtype not in INTEGERS):
        raise TypeError(
            f"{name}: found {describe(ids)}; expected a tensor (N,) of integers: convert them with torch.as_tensor("
            f"{name}, dtype=torch.int64)"
        )


def _check_number(name: str, value: Any, lowest: float, highest: float = math.inf) -> None:
    """Raise TypeError for anything but a number, and ValueError for several or for one that is out of range.

    A tensor's value is not read, since this would wait for its device. A number with an upper bound is not a tensor.
    """
    if isinstance(value, Tensor) and highest == math.inf:
        if value.numel() != 1:
            raise ValueError(f"{name}: found {describe(value)}; expected a single number")
    elif isinstance(value, bool) or not isinstance(value, numbers.Real):
        kinds = "a number or a tensor ()" if highest == math.inf else "a number"
        raise TypeError(f"{name} is {value!r}, {describe(value)}; expected {kinds}")
    elif not math.isfinite(value) or not lowest <= float(value) <= highest:
        bounds = (", at least 0" if lowest == 0 else "") + (f", at most {highest:g}" if highest < math.inf else "")
        raise ValueError(f"{name} is {value}; expected a finite number{bounds}")
