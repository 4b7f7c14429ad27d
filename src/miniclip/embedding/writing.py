"""Embed all images or texts of a source into a file. Letters: N items, n rows of a chunk, B batch, E embedding."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
import torch
from torch import Tensor

from miniclip.data.skipping import MAX_SKIP_FRACTION, OnError, SkipLog
from miniclip.embedding.images import open_images
from miniclip.embedding.outputs import names_path, require_output, write_output, write_skipped
from miniclip.embedding.partial import SUFFIX, Partial, open_partial
from miniclip.embedding.parts import Items, Part, Parts, digest_of, image_parts, require_same_items, text_parts
from miniclip.embedding.texts import STDIN, STDIN_NAME, Texts, open_texts
from miniclip.errors import DataError
from miniclip.inference.fingerprint import model_fingerprint
from miniclip.losses.reference import l2_normalize
from miniclip.utils.checks import whole_number

DtypeName = Literal["float32", "float16"]

CHUNK_SECONDS = 10  # work that a kill can lose
CHUNK_ITEMS = 4096  # limit for a chunk, which is in memory
BATCH_SIZES = {"images": 32, "texts": 256}  # those of `encode_image` and `encode_text`

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Embedded:
    """Files that `embed` wrote.

    Attributes:
        path: the file of embeddings (N, E).
        names: the JSON file of the N names; None if `path` has them.
        count: N.
        embed_dim: E.
        skipped: name and reason of each image or text that was left out.
        skipped_list: the JSON file of these; None without any.
    """

    path: Path
    names: Path | None
    count: int
    embed_dim: int
    skipped: dict[str, str]
    skipped_list: Path | None


def embed(
    model: Any,
    source: Any,
    out: str | Path,
    *,
    dtype: DtypeName = "float32",
    normalize: bool = True,
    split: str | None = None,
    batch_size: int | None = None,
    num_workers: int | None = None,
    on_error: OnError = "raise",
    max_skip_fraction: float = MAX_SKIP_FRACTION,
    overwrite: bool = False,
    progress: bool = False,
) -> Embedded:
    """Embed all images or texts of a source into a file, in memory that does not depend on their number.

    Finished parts are kept in `OUT.partial/`. After Ctrl-C, a kill or an error, the same call resumes, and the file is
    that of an uninterrupted one.

    Args:
        model: a CLIPModel.
        source: images: a folder, the spec of a dataset as in `open_data`, or a dataset. Texts: a .txt file with one
            text a line, "table.csv?text=NAME" (also .tsv, .jsonl, .parquet), or "-" for standard input.
        out: the file; its suffix chooses the format: .npy, .parquet or .safetensors.
        dtype: of the embeddings in the file.
        normalize: write unit vectors.
        split: of a dataset; None: all images.
        batch_size: items per batch; None: 32 images, 256 texts.
        num_workers: threads that read images; None: one per core, at most 16.
        on_error: for an image that cannot be read or a blank text: "raise", or "skip" to leave its row out.
        max_skip_fraction: limit of the fraction that may be skipped, in [0, 1].
        overwrite: replace the file, and start over if the model, the source or an option differs.
        progress: show a progress bar.

    Returns:
        The paths, the number of embeddings, and the skipped items.

    Raises:
        FileExistsError: the file exists, and `overwrite` is false.
        FileNotFoundError: the source does not exist.
        DataError: an image or a text cannot be read, or too many were skipped.
        ValueError: an argument is out of range, or an earlier call had another model, source or option.
    """
    path = Path(out).expanduser()
    require_output(path, overwrite)
    _require_dtype(dtype)
    skip_log = SkipLog(on_error, max_skip_fraction)
    items, total = _open(source, split, model, skip_log)
    size = whole_number("batch_size", BATCH_SIZES[items.unit] if batch_size is None else batch_size, 1)
    settings = _settings(model, items, dtype, normalize)
    with open_partial(path.with_name(path.name + SUFFIX), settings, overwrite) as partial:
        with closing(_remaining(model, items, partial, overwrite, (size, num_workers))) as parts:
            _write(partial, items, parts, skip_log, Progress(total, items.unit, progress), (dtype, normalize))
        skipped_list = write_skipped(path, skip_log.reasons)
        write_output(partial, path, settings)
        count = partial.rows
        partial.remove()
    return Embedded(path, names_path(path), count, settings["embed_dim"], skip_log.reasons, skipped_list)


def _open(source: Any, split: str | None, model: Any, skip_log: SkipLog) -> tuple[Items, int | None]:
    """Open a source, and count its items; None for those of standard input. All texts of a file are checked.

    Raises:
        ValueError: it has none.
    """
    texts = open_texts(source, skip_log) if isinstance(source, str) else None
    items: Items = open_images(source, split, model, skip_log) if texts is None else texts
    total = None if source == STDIN else sum(1 for _ in items.identities()) if isinstance(items, Texts) else len(items)
    if total == 0:
        raise ValueError(f"{source}: holds no {items.unit}; expected at least one")
    return items, total


def _require_dtype(dtype: str) -> None:
    if dtype not in get_args(DtypeName):
        raise ValueError(f"dtype is {dtype!r}; expected {' or '.join(map(repr, get_args(DtypeName)))}")


def _settings(model: Any, items: Items, dtype: DtypeName, normalize: bool) -> dict[str, Any]:
    """Return the settings that an interrupted run and its continuation must share."""
    return {
        "kind": items.unit,
        "model": model_fingerprint(model),
        "dtype": dtype,
        "normalized": normalize,
        "embed_dim": model.config.embed_dim,
        "source": items.fingerprint(),
    }


class Progress(NamedTuple):
    """Number of items, None if it is not known; their kind; whether to show a bar."""

    total: int | None
    unit: str
    shown: bool


def _remaining(
    model: Any,
    items: Items,
    partial: Partial,
    overwrite: bool,
    options: tuple[int, int | None],
) -> Parts:
    """Return the parts that an earlier run has not finished.

    Raises:
        ValueError: the source has changed since an earlier run, and `overwrite` is false.
    """
    is_stream = isinstance(items, Texts) and items.source == STDIN_NAME
    advice = f"remove the folder {partial.folder}, or choose another output" if is_stream else None
    identities = items.identities()
    try:
        require_same_items(partial, items, identities, advice)
    except ValueError:
        if not overwrite or is_stream:
            raise
        partial.clear()
        identities = items.identities()
    if partial.items:
        logger.info("resuming after %s %s", f"{partial.items:,}", items.unit)
    if isinstance(items, Texts):
        return text_parts(model, identities, options[0])
    return image_parts(model, items, partial.items, *options)


def _write(
    partial: Partial, items: Items, parts: Parts, skip_log: SkipLog, progress: Progress, form: tuple[DtypeName, bool]
) -> None:
    """Append parts to the unfinished embeddings, in chunks.

    Raises:
        UnreadableError: an image cannot be read, and the log's `on_error` is "raise".
        DataError: too many images or texts were skipped.
    """
    pending, count, began = list[Part](), 0, time.monotonic()
    for chunk in partial.chunks:
        _log(skip_log, chunk.skipped)
    outside = _outside(partial, skip_log)
    with _bar(progress, partial.items) as bar:
        try:
            for part in parts:
                _log(skip_log, part.skipped)
                if progress.total is not None:
                    skip_log.check_fraction(progress.total + outside)
                pending.append(part._replace(vectors=_converted(part, *form)))
                count += len(part.identities)
                bar.update(len(part.identities))
                if count >= CHUNK_ITEMS or time.monotonic() - began > CHUNK_SECONDS:
                    _flush(partial, items, pending)
                    pending, count, began = [], 0, time.monotonic()
        except DataError:
            _flush(partial, items, pending)  # the next call resumes at the image that cannot be read
            raise
    _flush(partial, items, pending)
    skip_log.check_fraction(partial.items + _outside(partial, skip_log))  # a stream has more by now
    if not partial.rows:
        raise ValueError(f"the source holds no {progress.unit} that can be used; expected at least one")


def _outside(partial: Partial, skip_log: SkipLog) -> int:
    """Return the number of skipped items that no chunk counts, such as blank texts."""
    return len(skip_log) - sum(len(chunk.skipped) for chunk in partial.chunks)


def _log(skip_log: SkipLog, skipped: dict[str, str]) -> None:
    for name, reason in skipped.items():
        skip_log.add(name, reason)


def _flush(partial: Partial, items: Items, parts: Sequence[Part]) -> None:
    if parts:
        vectors = np.concatenate([part.vectors.numpy() for part in parts if part.names] or [np.zeros((0, 1))])
        names = [name for part in parts for name in part.names]
        identities = [identity for part in parts for identity in part.identities]
        skipped = {name: reason for part in parts for name, reason in part.skipped.items()}
        digest = digest_of(items, identities, partial.items + len(identities))
        partial.add(vectors, names, len(identities), digest, skipped)


def _converted(part: Part, dtype: DtypeName, normalize: bool) -> Tensor:
    """Return the embeddings of a part as they are written, on the CPU.

    Raises:
        ValueError: a number is not finite, or too large for float16.
    """
    vectors = part.vectors.detach().cpu()
    if normalize and part.names:
        vectors = l2_normalize(vectors)
    converted = vectors.to(getattr(torch, dtype))
    wrong = (~converted.isfinite()).any(dim=1).nonzero()
    if len(wrong):
        row = int(wrong[0])
        name, values = part.names[row][:80], vectors[row]
        if values.isfinite().all():
            raise ValueError(f"{name}: its embedding has values up to {values.abs().max():g}, too large for float16")
        raise ValueError(f"{name}: the model's embedding has values that are not finite; check its weights")
    return converted


@contextmanager
def _bar(progress: Progress, done: int) -> Iterator[Any]:
    from tqdm import tqdm

    disable = None if progress.shown else True  # None: disabled without a terminal
    unit = f" {progress.unit}"
    with tqdm(total=progress.total, initial=done, unit=unit, disable=disable, dynamic_ncols=True) as bar:
        yield bar
