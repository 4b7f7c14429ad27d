"""Options of the training loader."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from miniclip.data.skipping import MAX_SKIP_FRACTION, OnError
from miniclip.data.sources.common import Source
from miniclip.runtime import distributed


@dataclass(frozen=True)
class LoaderOptions:
    """Options of an `ImageCaptionLoader`.

    Attributes:
        batch_size: images per batch, all ranks together.
        context_length: captions are truncated to this many tokens (the tokenizer warns).
        seed: of the order and the choice of captions.
        num_workers: processes per rank that decode images; 0: decode in this process. None: no processes if the decoded
            images fit in memory, else one per core except one, at most 8, shared by the ranks of the machine. A cached
            dataset needs none.
        pad: make token rows as long as the context, for a text tower that attends to its padding.
        reduced_decoding: decode large JPEGs at a fraction of their size, at least twice the model's, and resize JPEGs
            with torch. Much faster; pixels differ by a grey level or so (docs/cache.md).
        on_error: "raise" at the first image that cannot be read, or "skip": warn once and leave the pair out of its
            batch, which is then smaller. No other pair replaces it: that pair could be in the batch already, as its
            own false negative.
        max_skip_fraction: greatest fraction of the images that may be skipped, as counted by this rank.
        word_dropout: probability of each word of a caption to be left out, in [0, 1).
        swap_left_right: mirror half of the images, and exchange left and right in their captions.
        source: reads something else in place of the images' pixels, such as the embeddings of a frozen tower.
        device: device of the model. A GPU keeps the decoded images if they take at most an eighth of its free memory;
            the pixels are the same. None: batches are on the CPU.
        captions_per_image: captions of each image in a batch, without repetition if the image has that many.
    """

    batch_size: int
    context_length: int = 77
    seed: int = 0
    num_workers: int | None = None
    pad: bool = False
    reduced_decoding: bool = False
    on_error: OnError = "raise"
    max_skip_fraction: float = MAX_SKIP_FRACTION
    word_dropout: float = 0.0
    swap_left_right: bool = False
    source: Source | None = None
    device: torch.device | None = None
    captions_per_image: int = 1

    def global_batch_size(self, size: int) -> int:
        """Return the batch size of a dataset of `size` images, all ranks together.

        Raises:
            ValueError: the dataset is empty, or a batch has fewer rows than there are ranks.
        """
        if not size:
            raise ValueError("the training data are empty; give at least two images")
        batch_size, ranks = min(self.batch_size, size), distributed.world_size()
        if batch_size < ranks:
            raise ValueError(
                f"a batch of {batch_size} pairs for {ranks} ranks: each rank needs at least one; start fewer "
                "processes, or use a larger batch_size"
            )
        return batch_size
