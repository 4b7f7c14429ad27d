"""Image checks: unreadable, duplicate, blank, elongated and small images, in a sample of the dataset."""

from __future__ import annotations

import dataclasses
import hashlib
import time
from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from PIL.Image import Resampling

from miniclip.data.dataset import ImageCaptionDataset, image_of, name_of
from miniclip.data.skipping import reason_of
from miniclip.diagnostics.checks.sampling import MAX_NAMES, listed, sample_indices
from miniclip.diagnostics.findings import Finding, Severity
from miniclip.errors import DataError
from miniclip.runtime.cores import available_cores
from miniclip.utils.threads import thread_pool

MAX_IMAGES, MAX_SECONDS = 10_000, 60.0  # sample size and time limit
THUMBNAIL = 8  # pixels on a side
MAX_ASPECT_RATIO = 2.0  # beyond it the square crop loses at least half of the image
MAX_NOTED_FRACTION = 0.05  # fraction of unusual images above which the note becomes a warning


class ImageSummary(NamedTuple):
    """Properties of one image."""

    name: str
    size: tuple[int, int]
    digest: bytes  # hash of size and pixels
    is_blank: bool
    error: str  # reason that it is unreadable, or ""
    thumbnail: bytes = b""  # the image at THUMBNAIL x THUMBNAIL pixels, RGB

    @property
    def aspect_ratio(self) -> float:
        """Longer side by shorter side."""
        return max(self.size) / min(self.size)

    @property
    def label(self) -> str:
        """Name and size for a message."""
        return f"{self.name} ({self.size[0]} x {self.size[1]})"


class ImageSample(NamedTuple):
    """Summaries of a sample of a dataset's images."""

    summaries: list[ImageSummary]
    total: int  # images in the dataset

    @property
    def readable(self) -> list[ImageSummary]:
        """Summaries of the readable images."""
        return [summary for summary in self.summaries if not summary.error]

    @property
    def scope(self) -> str:
        """Sample size for a message; empty if the sample has all images."""
        size = len(self.summaries)
        return "" if size == self.total else f" (sample of {size:,} from {self.total:,})"


def sample_images(data: ImageCaptionDataset, limit: int = MAX_IMAGES, seconds: float = MAX_SECONDS) -> ImageSample:
    """Open a random sample of a dataset's images until a limit of number or time is reached."""
    indices, summaries = sample_indices(len(data), limit), list[ImageSummary]()
    end, workers = time.monotonic() + seconds, available_cores()
    with thread_pool(workers) as pool:
        for start in range(0, len(indices), 8 * workers):
            summaries += pool.map(lambda index: _summarise(data, index), indices[start : start + 8 * workers])
            if time.monotonic() > end:
                break
    return ImageSample(summaries, len(data))


def _summarise(data: ImageCaptionDataset, index: int) -> ImageSummary:
    name = name_of(data, index)
    try:
        image = image_of(data, index)
    except (DataError, OSError) as error:
        return ImageSummary(name, (0, 0), b"", False, reason_of(error))
    digest = hashlib.blake2b(repr(image.size).encode() + image.tobytes(), digest_size=16).digest()
    extrema: Any = image.getextrema()  # minimum and maximum of each RGB channel
    thumbnail = image.resize((THUMBNAIL, THUMBNAIL), Resampling.BOX).tobytes()
    return ImageSummary(name, image.size, digest, all(low == high for low, high in extrema), "", thumbnail)


def check_images(sample: ImageSample, image_size: int, on_error: str) -> list[Finding]:
    """Check for unreadable, duplicate, blank, elongated and small images.

    Args:
        sample: result of `sample_images`.
        image_size: side of the model's input in pixels.
        on_error: handling of unreadable images in the run, "raise" or "skip".
    """
    images = sample.readable
    elongated = [image for image in images if image.aspect_ratio > MAX_ASPECT_RATIO]
    small = [image for image in images if 2 * min(image.size) <= image_size]
    return [
        _unreadable(sample, on_error),
        _duplicates(sample),
        _unusual(
            sample,
            [image.name for image in images if image.is_blank],
            Finding(
                "blank images",
                "note",
                "have a single colour",
                "They contain nothing that a caption could describe.",
                "Remove them; check for failed downloads and conversions.",
            ),
        ),
        _unusual(
            sample,
            [image.label for image in sorted(elongated, key=lambda image: -image.aspect_ratio)],
            Finding(
                "elongated images",
                "note",
                f"have an aspect ratio above {MAX_ASPECT_RATIO:.0f}",
                "The model receives the central square; captions may describe the rest.",
                "Crop these images to the part that their captions describe.",
            ),
        ),
        _unusual(
            sample,
            [image.label for image in sorted(small, key=lambda image: min(image.size))],
            Finding(
                "small images",
                "note",
                f"are at most half as large as the model's input of {image_size} pixels",
                "Enlarging them adds computation but no detail.",
                "Use larger images, or a model with a smaller input.",
            ),
        ),
    ]


def _unreadable(sample: ImageSample, on_error: str) -> Finding:
    labels = [f"{image.name} ({image.error})" for image in sample.summaries if image.error]
    effect = "stops at the first one" if on_error == "raise" else "skips them"
    return Finding(
        "unreadable images",
        "fine" if not labels else "error" if on_error == "raise" else "warning",
        f"{len(labels):,} cannot be read{sample.scope}{_examples(labels)}",
        f"They cannot be used for training: the run {effect}.",
        "Repair or remove these files, or train with on_error skip. `miniclip data inspect` lists all of them.",
    )


def _duplicates(sample: ImageSample) -> Finding:
    names_by_digest: defaultdict[bytes, list[str]] = defaultdict(list)
    for image in sample.readable:
        names_by_digest[image.digest].append(image.name)
    groups = [names for names in names_by_digest.values() if len(names) > 1]
    copies = sum(len(names) - 1 for names in groups)
    return Finding(
        "duplicate images",
        _severity(copies, len(sample.readable)),
        f"{copies:,} are copies of other images{sample.scope}"
        + _examples([" = ".join(names[:MAX_NAMES]) for names in groups]),
        "If copies meet in a batch, the loss treats the captions of one as wrong for the other.",
        "Merge copies into one image with all of their captions.",
    )


def _unusual(sample: ImageSample, labels: Sequence[str], template: Finding) -> Finding:
    """Complete a finding whose observation is a predicate, such as "have a single colour"."""
    return dataclasses.replace(
        template,
        severity=_severity(len(labels), len(sample.readable)),
        observation=f"{len(labels):,} {template.observation}{sample.scope}{_examples(labels)}",
    )


def _severity(count: int, total: int) -> Severity:
    return "fine" if not count else "warning" if count >= MAX_NOTED_FRACTION * max(1, total) else "note"


def _examples(labels: Iterable[str]) -> str:
    text = listed(labels)
    return f": {text}" if text else ""
