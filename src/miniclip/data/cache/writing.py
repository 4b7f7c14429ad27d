"""Building a decoded cache: every image is decoded and resized once, into files that `CachedDataset` maps.

An interrupted build resumes where it stopped (see journal.py). The finished files are byte for byte those of a build
that was never interrupted, for any number of workers. Letters: n images of a shard, S image side, M captions, T tokens.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import zlib
from collections.abc import Iterator, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from miniclip.data.cache.format import (
    CAPTIONS,
    HEADER,
    INDEX,
    JOURNAL,
    TOKENS,
    read_header,
    tokenizer_checksum,
    write_json,
)
from miniclip.data.cache.index import shard_name
from miniclip.data.cache.journal import (
    Shard,
    Source,
    has_newer_images,
    intact_shards,
    record_shard,
    source_of,
)
from miniclip.data.cache.reading import CachedDataset
from miniclip.data.dataset import ImageCaptionDataset, names_of
from miniclip.data.given import as_dataset
from miniclip.data.preprocess import Preprocess
from miniclip.data.skipping import MAX_SKIP_FRACTION, OnError, SkipLog
from miniclip.data.sources.common import Decoded, pixels_or_reason
from miniclip.data.sources.workers import StreamedImages
from miniclip.errors import DataError
from miniclip.runtime.cores import available_cores
from miniclip.utils.atomic import write_atomically
from miniclip.utils.lock import lock_directory

if TYPE_CHECKING:
    from miniclip.tokenizer import TextTokenizer

CHUNK = 64  # images that a worker decodes at a time
MAX_SHARD_IMAGES = 1024
MAX_SHARD_BYTES = 64 << 20  # a shard has at least one chunk


@dataclass(frozen=True)
class CacheOptions:
    """Options of a cache build.

    Attributes:
        tokenizer: also store the captions as its token ids; training with the same tokenizer then skips tokenization.
        context_length: length of the token rows: `model.config.text.context_length`.
        pad: pad all rows to the context length: `model.config.text.padding == "attended"`.
        num_workers: decoding processes; None: one per core; 0: decode in this process.
        on_error: "raise" at the first image that cannot be read, or "skip" it with a warning.
        max_skip_fraction: greatest fraction of the images that may be skipped, in [0, 1].
        progress: show a progress bar if standard error is a terminal.
    """

    tokenizer: TextTokenizer | None = None
    context_length: int = 77
    pad: bool = False
    num_workers: int | None = None
    on_error: OnError = "raise"
    max_skip_fraction: float = MAX_SKIP_FRACTION
    progress: bool = False


def build_cache(
    data: ImageCaptionDataset,
    out: str | Path,
    preprocess: Preprocess,
    *,
    split: str = "train",
    options: CacheOptions | None = None,
) -> CachedDataset:
    """Build one split of a decoded cache, resume its build, or verify and repair a complete one.

    Args:
        data: images with captions.
        out: the folder of the cache; all splits share it.
        preprocess: `model.preprocess`; images are decoded at their full size.
        split: the name of the split.
        options: tokens, workers, handling of unreadable images.

    Returns:
        The cached split.

    Raises:
        ValueError: the folder holds a cache of other pixels, the split has another source, or its name is not valid.
        DataError: an image cannot be read, or too many cannot.
        BlockingIOError: another process is building this split.
    """
    data, out, options = as_dataset(data), Path(out), options or CacheOptions()
    _claim_folder(out, split, preprocess)
    folder, names = out / split, _names(data)
    skip_log = SkipLog(options.on_error, options.max_skip_fraction)
    with lock_directory(folder):
        source = source_of(data, names, preprocess)
        spans = _spans(len(data), preprocess.size)
        intact = intact_shards(folder, source, spans).items()
        shards = {start: shard for start, shard in intact if not _skips_readable_image(data, shard, preprocess)}
        for span in spans:
            if span.start in shards and has_newer_images(data, span, folder / shards[span.start]["file"]):
                del shards[span.start]
        missing = [span for span in spans if span.start not in shards]
        batches = (list(span[row : row + CHUNK]) for span in missing for row in range(0, len(span), CHUNK))
        decoder = StreamedImages(
            data, preprocess, available_cores() if options.num_workers is None else options.num_workers
        )
        bar = _progress_bar(len(data), len(data) - sum(map(len, missing)), split, options.progress)
        with closing(decoder.batches(batches)) as decoded, bar:
            for number, span in enumerate(spans):
                if span.start not in shards:
                    chunks = islice(decoded, math.ceil(len(span) / CHUNK))
                    file = folder / shard_name(number)
                    shards[span.start] = {"first": span.start, **_write_shard(file, chunks, names, skip_log, bar)}
                    record_shard(folder, source, shards[span.start])
                _log_skipped(shards[span.start], skip_log, len(data))
        _write_index(folder, data, names, source, [shards[span.start] for span in spans], options)
    return CachedDataset(out, split)


def _claim_folder(out: Path, split: str, preprocess: Preprocess) -> None:
    """Create the cache's folder and header, or check that an existing one has the same pixels.

    Raises:
        ValueError: the folder holds other pixels, or is not a cache.
    """
    if not split or split != Path(split).name or split.startswith("."):
        raise ValueError(f"the split {split!r} cannot be the name of a folder; take one such as 'train'")
    if out.exists() and not out.is_dir():
        raise ValueError(f"{out} is a file; a cache is a folder: name another one")
    is_ours = CachedDataset.is_cache(out) or any((out / split / name).is_file() for name in (INDEX, JOURNAL))
    if not is_ours and out.exists() and any(out.iterdir()):
        raise ValueError(f"{out} holds other files; a cache needs an empty folder: name another one")
    expected = preprocess.pixel_settings
    try:
        settings = read_header(out)["pixels"]
    except (FileNotFoundError, DataError):  # new, or damaged: each split repeats the settings
        write_json(out / HEADER, {"pixels": expected})
        return
    if settings != expected:
        old, new = (", ".join(f"{key} {value}" for key, value in each.items()) for each in (settings, expected))
        raise ValueError(
            f"{out} holds a cache built with other settings ({old}, now {new}): name another folder, or remove that one"
        )


def _skips_readable_image(data: ImageCaptionDataset, shard: Shard, preprocess: Preprocess) -> bool:
    """Return whether an image that was skipped in a shard can be read now."""
    indices = [image["image"] for image in shard["skipped"]]
    return any(isinstance(pixels_or_reason(data, index, preprocess, reduced=False), Tensor) for index in indices)


def _log_skipped(shard: Shard, skip_log: SkipLog, total: int) -> None:
    for image in shard["skipped"]:
        skip_log.add(image["name"], image["reason"])
    skip_log.check_fraction(total)


def _names(data: ImageCaptionDataset) -> list[str]:
    """Return the image names, relative to their common folder."""
    names = names_of(data)
    common = ""
    with suppress(ValueError):  # no names, or no common folder
        common = os.path.commonpath([str(Path(name).parent) for name in names])
    prefix = len(common) + 1 if common not in ("", ".", os.sep) else 0
    return [name[prefix:].replace(os.sep, "/") for name in names]


def _write_shard(
    file: Path, chunks: Iterator[Decoded], names: Sequence[str], skip_log: SkipLog, bar: Any
) -> dict[str, Any]:
    """Write the images that can be read, and return the shard's entry of the index."""
    digest, skipped, checksums, size = hashlib.sha256(), list[dict[str, Any]](), list[str](), 0

    def write(temporary: Path) -> None:
        nonlocal size
        with temporary.open("wb") as opened:
            for pixels, failed in chunks:
                content = pixels.numpy().data
                opened.write(content)
                digest.update(content)
                size += content.nbytes
                checksums.extend(f"{zlib.crc32(image):08x}" for image in pixels.numpy())
                for index, reason in failed.items():
                    skip_log.add(names[index], reason)
                    skipped.append({"image": index, "name": names[index], "reason": reason})
                bar.update(len(pixels) + len(failed))

    write_atomically(file, write)
    return {
        "file": file.name,
        "images": len(checksums),
        "bytes": size,
        "sha256": digest.hexdigest(),
        "checksums": "".join(checksums),
        "skipped": skipped,
    }


def _write_index(
    folder: Path,
    data: ImageCaptionDataset,
    names: Sequence[str],
    source: Source,
    shards: list[Shard],
    options: CacheOptions,
) -> None:
    """Write captions, token ids and the index, which completes the split, and delete the journal."""
    skipped = [image for shard in shards for image in shard["skipped"]]
    kept = sorted(set(range(len(data))) - {image["image"] for image in skipped})
    lines = [json.dumps({"name": names[index], "captions": list(data.captions[index])}) + "\n" for index in kept]
    captions = _write_bytes(folder / CAPTIONS, "".join(lines).encode())
    tokens = _write_tokens(folder, [caption for index in kept for caption in data.captions[index]], options)
    index = {"source": source, "shards": shards, "captions": captions, "tokens": tokens, "skipped": skipped}
    write_json(folder / INDEX, index)
    (folder / JOURNAL).unlink(missing_ok=True)


def _write_tokens(folder: Path, captions: list[str], options: CacheOptions) -> dict[str, Any] | None:
    tokenizer, context_length, pad = options.tokenizer, options.context_length, options.pad
    if tokenizer is None or not captions:
        (folder / TOKENS).unlink(missing_ok=True)
        return None
    before = getattr(tokenizer, "truncated", 0)
    rows = tokenizer(captions, context_length=context_length, pad=pad).int().contiguous()
    entry = {"tokenizer": tokenizer_checksum(tokenizer), "context_length": context_length, "pad": pad}
    return {
        **entry,
        "shape": list(rows.shape),
        "truncated": getattr(tokenizer, "truncated", 0) - before,
        **_write_bytes(folder / TOKENS, rows.view(torch.uint8).numpy().tobytes()),
    }


def _write_bytes(file: Path, content: bytes) -> dict[str, Any]:
    write_atomically(file, lambda path: path.write_bytes(content))
    return {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}


def _spans(total: int, size: int) -> list[range]:
    """Return the indices of each shard's images for an image side of `size` pixels."""
    chunks = MAX_SHARD_BYTES // (CHUNK * 3 * size**2)
    length = CHUNK * min(max(chunks, 1), MAX_SHARD_IMAGES // CHUNK)
    return [range(start, min(start + length, total)) for start in range(0, total, length)]


def _progress_bar(total: int, initial: int, split: str, progress: bool) -> Any:
    from tqdm import tqdm

    disable = None if progress else True  # None: disabled without a terminal
    return tqdm(total=total, initial=initial, desc=split, unit=" images", disable=disable, dynamic_ncols=True)
