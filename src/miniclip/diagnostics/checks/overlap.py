"""Overlap check: images and captions that training and validation share, and images that are nearly the same.

Near duplicates are found by their thumbnails of 8 x 8 pixels, whose correlation does not change with size, quality and
brightness. Mirrored, rotated and cropped copies are not found.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from miniclip.data.dataset import ImageCaptionDataset
from miniclip.diagnostics.checks.images import ImageSample, ImageSummary
from miniclip.diagnostics.checks.sampling import listed
from miniclip.diagnostics.findings import Finding

# Copies at 0.7 of the size and JPEG quality 60 have at least 0.989, on 300 images of two sets of drawings.
NEAR = 0.985
ROWS = 1024  # validation images at a time


def check_overlap(
    train_data: ImageCaptionDataset, val_data: ImageCaptionDataset, train_images: ImageSample, val_images: ImageSample
) -> list[Finding]:
    """Check that training and validation share neither images, nor near duplicates of images, nor captions."""
    names = {image.digest: image.name for image in train_images.readable}
    shared = [f"{image.name} = {names[image.digest]}" for image in val_images.readable if image.digest in names]
    is_partial = bool(train_images.scope or val_images.scope)
    sizes = f"{len(train_images.summaries):,} and {len(val_images.summaries):,}"
    scope = f" (samples of {sizes} images)" if is_partial else ""
    near = near_duplicates(train_images.readable, val_images.readable)
    train_captions = {caption for group in train_data.captions for caption in group}
    val_captions = [caption for group in val_data.captions for caption in group]
    count = sum(caption in train_captions for caption in val_captions)
    return [
        Finding(
            "shared images",
            "warning" if shared else "fine",
            f"{len(shared):,} validation images are in the training data{scope}"
            + (f": {listed(shared)}" if shared else ""),
            "The model was trained on them, so their recall does not measure generalisation.",
            "Remove them from one of the two splits.",
        ),
        Finding(
            "near duplicates",
            "warning" if near else "fine",
            f"{len(near):,} validation images are nearly the same as training images{scope}"
            + (f": {listed(near)}" if near else ""),
            "Photos of one product, or copies at another size: their recall measures memory, not generalisation.",
            "Keep the images of a product in one split: for a table, --group-by COLUMN.",
        ),
        Finding(
            "shared captions",
            "note" if count else "fine",
            f"{count:,} of {len(val_captions):,} validation captions are also training captions",
            "This is usual for short captions. Together with shared images, it means that the data was not split by "
            "image. Images of one description cannot be told apart by recall, which is then lower.",
            "Keep all captions of an image in one split; for products, train with --positives all.",
        ),
    ]


def near_duplicates(train: Sequence[ImageSummary], val: Sequence[ImageSummary]) -> list[str]:
    """Return "val = train" for the validation images that are nearly, and not exactly, the same as a training image.

    Args:
        train: training images.
        val: validation images. Blank images are left out of both.
    """
    train, val = ([image for image in images if not image.is_blank] for images in (train, val))
    exact = {image.digest for image in train}
    val = [image for image in val if image.digest not in exact]
    if not train or not val:
        return []
    known, names = _thumbnails(train), []
    for start in range(0, len(val), ROWS):
        part = val[start : start + ROWS]
        nearest, index = (_thumbnails(part) @ known.T).max(dim=1)
        names += [
            f"{image.name} = {train[other].name}"
            for image, value, other in zip(part, nearest.tolist(), index.tolist(), strict=True)
            if value >= NEAR
        ]
    return names


def _thumbnails(images: Sequence[ImageSummary]) -> Tensor:
    """Return the thumbnails without their mean, as unit vectors (N, 192)."""
    pixels = torch.frombuffer(bytearray().join(image.thumbnail for image in images), dtype=torch.uint8)
    rows = pixels.view(len(images), -1).float()
    rows -= rows.mean(dim=1, keepdim=True)
    return rows / rows.norm(dim=1, keepdim=True).clamp(min=1e-6)  # type: ignore[no-any-return]
