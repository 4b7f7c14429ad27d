"""Overlap check: images and captions that training and validation share."""

from __future__ import annotations

from miniclip.data.dataset import ImageCaptionDataset
from miniclip.diagnostics.checks.images import ImageSample
from miniclip.diagnostics.checks.sampling import listed
from miniclip.diagnostics.findings import Finding


def check_overlap(
    train_data: ImageCaptionDataset, val_data: ImageCaptionDataset, train_images: ImageSample, val_images: ImageSample
) -> list[Finding]:
    """Check that training and validation share neither images nor captions."""
    names = {image.digest: image.name for image in train_images.readable}
    shared = [f"{image.name} = {names[image.digest]}" for image in val_images.readable if image.digest in names]
    is_partial = bool(train_images.scope or val_images.scope)
    sizes = f"{len(train_images.summaries):,} and {len(val_images.summaries):,}"
    scope = f" (samples of {sizes} images)" if is_partial else ""
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
            "shared captions",
            "note" if count else "fine",
            f"{count:,} of {len(val_captions):,} validation captions are also training captions",
            "This is usual for short captions. Together with shared images, it means that the data was not split by "
            "image.",
            "Keep all captions of an image in one split.",
        ),
    ]
