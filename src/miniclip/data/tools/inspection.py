"""Inspection of a dataset: counts, lengths, sizes, duplicates and unreadable images.

Every image is decoded, since a truncated file shows no other sign. Duplicates are images with identical files, or with
different files and identical pixels.
"""

from __future__ import annotations

import hashlib
import os
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from miniclip.data.dataset import ImageCaptionDataset, image_of, name_of, names_of
from miniclip.data.decoding import open_image
from miniclip.data.given import as_dataset
from miniclip.data.skipping import reason_of
from miniclip.data.tools.report import ELONGATED, Inspection, Summary
from miniclip.errors import DataError
from miniclip.utils.threads import thread_pool as thread_pool

if TYPE_CHECKING:
    from miniclip.tokenizer import LibraryTokenizer, Tokenizer

DEFAULT_VOCAB_SIZE = 49_408  # vocabulary of the reference system's tokenizer, the default
IMAGES_PER_THREAD = 64  # handed out at a time; Ctrl-C waits for them


class _ImageRecord(NamedTuple):
    """Result of reading one image."""

    size: tuple[int, int] | None = None
    file: bytes | None = None  # digest
    pixels: bytes | None = None  # digest
    reason: str | None = None  # why the image cannot be read


def inspect(
    data: ImageCaptionDataset,
    *,
    tokenizer: Tokenizer | LibraryTokenizer | None = None,
    context_length: int = 77,
    threads: int | None = None,
    progress: bool = False,
) -> Inspection:
    """Inspect every image and caption of a dataset.

    Args:
        data: images with captions; if it was opened with on_error="skip", the result lists what was skipped.
        tokenizer: counts tokens; None: learn one from the captions, as `miniclip train` does.
        context_length: length to which captions are truncated.
        threads: threads that decode images; None: one per core.
        progress: show a progress bar on standard error.

    Raises:
        ValueError: the dataset is empty.
    """
    data = as_dataset(data)
    if not len(data):
        raise ValueError("the data are empty; give at least one image")
    records = list(_read_images(data, threads or os.cpu_count() or 1, progress))
    captions = [caption for texts in data.captions for caption in texts]
    lengths, tokenizer_name = _token_lengths(captions, tokenizer)
    names, folder = _names(data)
    sizes = {index: record.size for index, record in enumerate(records) if record.size is not None}
    image_counts = Counter(caption for texts in data.captions for caption in set(texts))
    return Inspection(
        folder=folder,
        layout=str(getattr(data, "about", "") or repr(data)),
        images=len(data),
        captions=len(captions),
        captions_per_image=Summary.of([len(texts) for texts in data.captions]),
        words=Summary.of([len(caption.split()) for caption in captions]),
        tokens=Summary.of(lengths),
        tokenizer=tokenizer_name,
        context_length=context_length,
        truncated=sum(length > context_length for length in lengths),
        widths=Summary.of([width for width, _ in sizes.values()]) if sizes else None,
        heights=Summary.of([height for _, height in sizes.values()]) if sizes else None,
        elongated={names[index]: size for index, size in sizes.items() if max(size) > ELONGATED * min(size)},
        duplicate_files=_groups(names, [record.file for record in records]),
        duplicate_pixels=_groups(names, _pixels_of_distinct_files(records)),
        split_leaks=_split_leaks(names, records, getattr(data, "splits", [])),
        repeated_captions={caption: count for caption, count in image_counts.most_common() if count > 1},
        unreadable={names[k]: record.reason for k, record in enumerate(records) if record.reason is not None},
        skipped=dict(data.skip_log.reasons) if hasattr(data, "skip_log") else {},
        readable=list(sizes),
    )


def _read_images(data: ImageCaptionDataset, count: int, progress: bool) -> Iterator[_ImageRecord]:
    from tqdm import tqdm

    step = IMAGES_PER_THREAD * count
    with thread_pool(count) as pool, tqdm(total=len(data), unit=" images", disable=not progress) as bar:
        for start in range(0, len(data), step):
            indices = range(start, min(start + step, len(data)))
            for record in pool.map(lambda index: _read_image(data, index), indices):
                bar.update()
                yield record


def _read_image(data: ImageCaptionDataset, index: int) -> _ImageRecord:
    encoded = getattr(data, "encoded", None)
    try:
        content = None if encoded is None else encoded(index)
        image = image_of(data, index) if content is None else open_image(content, name_of(data, index))
    except (DataError, OSError) as error:
        return _ImageRecord(reason=reason_of(error))
    pixels = _digest(repr(image.size).encode(), image.tobytes())
    return _ImageRecord(image.size, None if content is None else _digest(content), pixels)


def _digest(*parts: bytes) -> bytes:
    digest = hashlib.blake2b(digest_size=16)
    for part in parts:
        digest.update(part)
    return digest.digest()


def _token_lengths(captions: Sequence[str], tokenizer: Tokenizer | LibraryTokenizer | None) -> tuple[list[int], str]:
    """Return the number of tokens of each caption, and a description of the tokenizer."""
    description = "the given tokenizer"
    if tokenizer is None:
        from miniclip.tokenizer import Tokenizer

        tokenizer = Tokenizer.train(captions, DEFAULT_VOCAB_SIZE)
        description = "a tokenizer learned from them"
    special = len(tokenizer.before) + len(tokenizer.after)
    lengths = [special + len(tokenizer.encode(caption)) for caption in captions]
    return lengths, f"{description} ({tokenizer.vocab_size:,} tokens)"


def _names(data: ImageCaptionDataset) -> tuple[list[str], str]:
    """Return the image names, relative to their common folder, and the folder."""
    names = names_of(data)
    if not all(Path(name).is_absolute() for name in names):
        return names, ""
    folder = os.path.commonpath({str(Path(name).parent) for name in names})
    return [str(Path(name).relative_to(folder)) for name in names], folder


def _pixels_of_distinct_files(records: Sequence[_ImageRecord]) -> list[bytes | None]:
    """Return each image's pixel digest, None for a file that is a copy of an earlier one."""
    files: set[bytes] = set()
    digests = []
    for record in records:
        is_copy = record.file is not None and record.file in files
        digests.append(None if is_copy else record.pixels)
        if record.file is not None:
            files.add(record.file)
    return digests


def _groups(names: Sequence[str], digests: Sequence[bytes | None]) -> list[list[str]]:
    """Return the groups of two or more names with equal digests."""
    groups: dict[bytes, list[str]] = defaultdict(list)
    for name, digest in zip(names, digests, strict=True):
        if digest is not None:
            groups[digest].append(name)
    return [group for group in groups.values() if len(group) > 1]


def _split_leaks(names: Sequence[str], records: Sequence[_ImageRecord], splits: Sequence[str]) -> list[list[str]]:
    if len(splits) != len(names):
        return []
    split_of = dict(zip(names, splits, strict=True))
    groups = _groups(names, [record.pixels for record in records])
    leaks = [group for group in groups if len({split_of[name] for name in group}) > 1]
    return [[f"{name} ({split_of[name]})" for name in group] for group in leaks]
