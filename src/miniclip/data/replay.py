"""Replay: images of earlier training in every batch, so that a model keeps what it could do (rehearsal).

Replay of stored examples is the simplest and one of the strongest methods against forgetting (Rolnick et al. 2019,
"Experience Replay for Continual Learning", https://arxiv.org/abs/1811.11682).

Letters: B rows of a batch, N new images in it, R replayed ones.
"""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from miniclip.data.dataset import ImageCaptionDataset, ImageFiles, names_of
from miniclip.data.given import Concatenation, as_dataset, original
from miniclip.data.loader import ImageCaptionLoader
from miniclip.data.options import LoaderOptions
from miniclip.data.preprocess import Preprocess
from miniclip.tokenizer import TextTokenizer
from miniclip.utils.randomness import generator

SHARE = 0.5  # as many old images as new ones


class Replay(Concatenation):
    """Training data of new images, with old ones in every batch; `len` counts both, the new ones first.

    An epoch is one pass over the new images. The old images go round in a seeded order that continues over the epochs:
    none is drawn again before all were.

    Args:
        new: images to learn, with captions.
        old: images of the kind that the model must keep, as its earlier training data.
        share: part of every batch that is old, above 0 and below 1; it is rounded to whole images, at least one of
            each kind.

    Raises:
        TypeError: one of the datasets is not a dataset of captioned images.
        ValueError: the share is out of its range, the old images are the new ones, or one dataset is empty.
    """

    def __init__(self, new: Any, old: Any, share: float = SHARE) -> None:
        require_share(share)
        super().__init__([as_dataset(new), as_dataset(old)])
        self.new, self.old, self.share = *self.parts, share
        for data, name in ((self.new, "training"), (self.old, "replay")):
            if not len(data):
                raise ValueError(f"the {name} data are empty; give at least two images")
        if _are_same(self.new, self.old):
            raise ValueError(
                f"the replay data are the training data, {len(self.new):,} images: give images of what the model was "
                "trained on before, or leave replay out"
            )

    def rows(self, batch_size: int) -> tuple[int, int]:
        """Return the number of new and of old images in a batch; a small dataset has a smaller batch.

        Raises:
            ValueError: there are fewer old images than a batch takes; an image twice would be its own negative.
        """
        old = min(max(1, round(self.share * batch_size)), batch_size - 1)
        new = batch_size - old
        if new > len(self.new):
            new = len(self.new)
            old = max(1, round(new * self.share / (1 - self.share)))
        if old > len(self.old):
            raise ValueError(
                f"a batch of {new + old} has {old} replayed images (share {self.share:g}), and the replay data have "
                f"{len(self.old):,}: use a smaller share or batch_size, or more replay data"
            )
        return new, old


def require_share(share: float) -> None:
    """Check the share of replayed images.

    Raises:
        ValueError: it is not above 0 and below 1.
    """
    if not 0 < share < 1:
        raise ValueError(
            f"the share of replayed images is {share}; expected a part of every batch, above 0 and below 1, such as "
            f"{SHARE}"
        )


def batch_and_steps(data: ImageCaptionDataset, batch_size: int) -> tuple[int, int]:
    """Return the pairs of a batch and the batches of an epoch.

    Raises:
        ValueError: as `Replay.rows`.
    """
    if isinstance(data, Replay):
        new, old = data.rows(batch_size)
        return new + old, len(data.new) // new
    size = min(batch_size, len(data))
    return size, len(data) // max(1, size)


def require_replay(data: ImageCaptionDataset, val_data: ImageCaptionDataset | None) -> None:
    """Check that no file of replayed images is a validation image.

    Raises:
        ValueError: one is, so that the model would be evaluated on an image that it was trained on.
    """
    if not isinstance(data, Replay) or val_data is None:
        return
    shared = sorted(_files(data.old) & _files(as_dataset(val_data)))
    if shared:
        raise ValueError(
            f"{len(shared):,} of the replayed images are validation images, such as {shared[0]}: replay the training "
            "split of the old data"
        )


class ReplayLoader(ImageCaptionLoader):
    """Batches of new images with a share of old ones, which are spread evenly over the rows of each batch.

    Attributes:
        size: number of new images.
        replayed: number of old images in a batch of all ranks, R.
    """

    def __init__(self, data: Replay, tokenizer: TextTokenizer, preprocess: Preprocess, options: LoaderOptions) -> None:
        new, self.replayed = data.rows(options.batch_size)
        options = dataclasses.replace(options, batch_size=new + self.replayed)
        super().__init__(data, tokenizer, preprocess, options)
        self.size, self._old_size = len(data.new), len(data.old)
        places = [(torch.arange(count) + 0.5) / count for count in (new, self.replayed)]
        self._columns = torch.cat(places).argsort(stable=True)

    @property
    def steps(self) -> int:
        """Batches per epoch."""
        return self.size // (self.batch_size - self.replayed)

    def _order(self, epoch: int) -> tuple[Tensor, Tensor]:
        seed, steps = self.options.seed, self.steps
        new = torch.randperm(self.size, generator=generator(seed, "order", epoch))
        new = new[: steps * (self.batch_size - self.replayed)].view(steps, -1)
        places = torch.arange(epoch * steps * self.replayed, (epoch + 1) * steps * self.replayed).view(steps, -1)
        old = replay_order(places, self._old_size, seed)
        passes = torch.cat([torch.full_like(new, epoch), places // self._old_size], dim=1)
        columns = self._columns[self.rows]
        return torch.cat([new, self.size + old], dim=1)[:, columns], passes[:, columns]


def replay_order(places: Tensor, size: int, seed: int) -> Tensor:
    """Return the old images of some batches, one row for each.

    Each pass over the images has a random order of its own. If a batch goes over the end of a pass, images that it
    has from the old pass come later in the new one.

    Args:
        places: (steps, R) consecutive numbers, counted from the start of the run.
        size: number of old images, at least R.
        seed: of the orders.
    """
    rows, first, last = places.shape[1], int(places.min()) // size, int(places.max()) // size
    begin = first - first % (rows // math.gcd(size, rows))  # a pass that begins with a batch depends on no other
    order, orders = torch.empty(0, dtype=torch.int64), list[Tensor]()
    for number in range(begin, last + 1):
        in_batch = number * size % rows  # images of the pass before in the batch that ends it
        drawn = torch.randperm(size, generator=generator(seed, "replay", number))
        head = drawn[~torch.isin(drawn, order[len(order) - in_batch :])][: rows - in_batch]
        order = torch.cat([head, drawn[~torch.isin(drawn, head)]])
        orders.append(order)
    return torch.cat(orders)[places - begin * size]


def _are_same(a: ImageCaptionDataset, b: ImageCaptionDataset) -> bool:
    """Return whether two datasets have the same names and captions, in order."""
    return a is b or (list(map(list, a.captions)) == list(map(list, b.captions)) and names_of(a) == names_of(b))


def _files(data: ImageCaptionDataset) -> set[str]:
    """Return the paths of the images that are files of their own, without links, so that a file has one path."""
    images = (original(data, index) for index in range(len(data)))
    paths = (part.paths[row] for part, row in images if isinstance(part, ImageFiles))
    return {str(path.resolve()) for path in paths if isinstance(path, Path)}
