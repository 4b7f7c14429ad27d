"""Labels of images and texts, and the sums over their positives that the losses in blocks collect.

Letters: N images, M texts, L labels of an image; r rows and c columns of a block.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor


class Labels(NamedTuple):
    """Labels: an image and a text that share one are positives."""

    images: Tensor  # (N, L)
    texts: Tensor  # (M,)

    def mask(self, rows: slice, columns: slice) -> Tensor | None:
        """Return which pairs of a block are positives, (r, c) bool, or None if none is.

        Labels that increase with the row, as those of the training step, have positives near the diagonal only.
        """
        images, texts = self.images[rows], self.texts[columns]
        if not (images.numel() and texts.numel()):
            return None
        on_cpu = images.device.type == "cpu"  # on a GPU the check would synchronise
        if on_cpu and (images.amin() > texts.amax() or images.amax() < texts.amin()):
            return None
        mask = images[:, 0, None] == texts
        for labels in images.T[1:]:
            mask |= labels[:, None] == texts
        return mask


class TargetSums(NamedTuple):
    """Sums over each row and each column of the logits, from which the targets' share of the contrastive loss follows.

    Attributes:
        sums: (4, N + M) for rows, then columns: sum and number of the positive logits, sum and number of all logits.
            The last two stay 0 without smoothing.
        smoothing: label smoothing.
        has_left_out: whether some logits are -inf, and not classes.
    """

    sums: Tensor
    smoothing: float
    has_left_out: bool

    def add(self, logits: Tensor, mask: Tensor | None, rows: slice, columns: slice) -> None:
        """Add a block (r, c); rows and columns are places in the sums."""
        if mask is not None:
            self._add(0, torch.where(mask, logits, 0.0), rows, columns)
            self._add(1, mask, rows, columns)
        if self.smoothing:
            classes = logits.isfinite() if self.has_left_out else torch.ones_like(logits, dtype=torch.bool)
            self._add(2, torch.where(classes, logits, 0.0), rows, columns)
            self._add(3, classes, rows, columns)

    def _add(self, index: int, values: Tensor, rows: slice, columns: slice) -> None:
        self.sums[index, rows] += values.sum(dim=1)
        self.sums[index, columns] += values.sum(dim=0)

    def weights(self, n: int, total: Callable[[Tensor], Tensor] = Tensor.sum) -> Tensor:
        """Return the weight of each row in the mean of its direction, u and v: (N + M,); 0 without a positive.

        Args:
            n: number of rows.
            total: sum over the rows, of all ranks.
        """
        has_positive = (self.sums[1] > 0).to(self.sums.dtype)
        rows, columns = has_positive[:n], has_positive[n:]
        return torch.cat([rows / total(rows), columns / columns.sum()])

    def means(self) -> Tensor:
        """Return the mean logit under the targets: (N + M,)."""
        positive, positives, total, classes = self.sums
        mean: Tensor = (1 - self.smoothing) * positive / positives.clamp(min=1)
        return mean + self.smoothing * total / classes.clamp(min=1) if self.smoothing else mean

    def gradients(self, weights: Tensor) -> tuple[Tensor, Tensor]:
        """Return the gradients of the weighted means by a positive logit, and by any logit: (N + M,) each."""
        _, positives, _, classes = self.sums
        of_positives = (1 - self.smoothing) * weights / positives.clamp(min=1)
        return of_positives, self.smoothing * weights / classes.clamp(min=1)


def sigmoid_sum(logits: Tensor, mask: Tensor | None, smoothing: float) -> Tensor:
    """Return the sum of the binary cross-entropies of a block (r, c); logits of -inf add nothing."""
    logits = _signed(logits, mask)
    total: Tensor = F.softplus(logits, threshold=50).sum()  # the default 20 is coarse in float64
    if smoothing:
        total -= smoothing / 2 * logits.masked_fill(logits.isneginf(), 0.0).sum()
    return total


def sigmoid_gradient(logits: Tensor, mask: Tensor | None, smoothing: float) -> Tensor:
    """Return the gradient of `sigmoid_sum` by the logits, (r, c)."""
    logits = _signed(logits, mask)
    left_out = logits.isneginf() if smoothing else None
    g: Tensor = logits.sigmoid_()
    if left_out is not None:
        g.sub_(smoothing / 2).masked_fill_(left_out, 0.0)
    return _signed(g, mask)


def _signed(logits: Tensor, mask: Tensor | None) -> Tensor:
    """Negate the positives, so that each logit has the sign of a mistake."""
    return logits if mask is None else torch.where(mask, -logits, logits)
