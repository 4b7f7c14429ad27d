"""Packing a set: every picture decoded and resized once, into files that `CachedDataset` maps into memory.

A shard is written whole or not at all, and then noted in a journal with its checksum. Packing that was interrupted,
however it was, goes on from there: shards that are whole are kept, the others made, and the files are in the end those
of packing that was never interrupted, byte for byte. So are they for any number of workers.
Letters: n pictures of a shard, S picture side, M captions, T tokens.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Iterator, Sequence
from contextlib import closing, suppress
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from miniclip.data.cache.reading import (
    CAPTIONS,
    FORMAT,
    INDEX,
    JOURNAL,
    PACK,
    TOKENS,
    CachedDataset,
    digest,
    digest_of,
    read_index,
    read_pack,
    require_bytes,
    sealed,
)
from miniclip.data.dataset import ImageCaptionDataset, name_of
from miniclip.data.skipping import MAX_SKIP_FRACTION, OnError, SkipLog
from miniclip.data.sources import Decoded, StreamedImages, pixels_or_reason
from miniclip.data.transforms import Preprocess
from miniclip.errors import DataError
from miniclip.utils.atomic import write_atomically
from miniclip.utils.lock import alone_in
from miniclip.utils.threads import cores

if TYPE_CHECKING:
    from miniclip.tokenizer import TextTokenizer

CHUNK = 64  # pictures that a worker decodes at a time
SHARD_BYTES = 64 << 20  # a shard holds as many chunks as fit, 1,024 pictures at most

Shard = dict[str, Any]  # file, pictures, bytes, sha256; first, the number of its first picture in the set; skip_log


def pack(
    data: ImageCaptionDataset,
    out: str | Path,
    preprocess: Preprocess,
    *,
    split: str = "train",
    tokenizer: TextTokenizer | None = None,
    context_length: int = 77,
    pad: bool = False,
    num_workers: int | None = None,
    on_error: OnError = "raise",
    max_skip_fraction: float = MAX_SKIP_FRACTION,
    progress: bool = False,
) -> CachedDataset:
    """Pack a split of a set, or go on where packing it stopped; a split that is packed already is verified and mended.

    Args:
        data: pictures with captions.
        out: the folder of the packed set, for all its splits.
        preprocess: how pictures become pixels: `model.preprocess`. They are decoded at their full size.
        split: what these pictures will be called.
        tokenizer: keep the captions as its token ids, too; training with the same one then need not tokenize.
        context_length: of those rows: `model.config.text.context_length`.
        pad: whether those rows are as long as the context: `model.config.text.padding == "attended"`.
        num_workers: processes that decode; None: one a core; 0: this process alone.
        on_error: "raise" at the first picture that cannot be read, or "skip": leave it out, and say so.
        max_skip_fraction: the share of the pictures that may be left out.
        progress: show a bar, where there is a terminal.

    Returns:
        The packed split.

    Raises:
        ValueError: the folder holds a set of other pixels, or the split other pictures; or the split's name is no name.
        DataError: a picture cannot be read, or too many cannot.
        BlockingIOError: another process is packing this split.
    """
    out = Path(out)
    _claim(out, split, preprocess)
    folder, names, total = out / split, _names(data), len(data)
    skip_log = SkipLog(on_error, max_skip_fraction)
    with alone_in(folder):
        source = _source(data, names, preprocess)
        whole = _whole_shards(folder, source).items()
        done = {start: shard for start, shard in whole if not _mended(data, shard, preprocess)}
        spans = _spans(total, preprocess.size)
        missing = [span for span in spans if span.start not in done]
        rows = (list(span[at : at + CHUNK]) for span in missing for at in range(0, len(span), CHUNK))
        decoder = StreamedImages(data, preprocess, cores() if num_workers is None else num_workers)
        there = total - sum(map(len, missing))
        with closing(decoder.batches(rows)) as decoded, _bar(total, there, progress, split) as bar:
            for number, span in enumerate(spans):
                if span.start not in done:
                    chunks = islice(decoded, math.ceil(len(span) / CHUNK))
                    done[span.start] = _write_shard(folder, number, span.start, chunks, names, bar, skip_log)
                    _note(folder, source, done[span.start])
                for one in done[span.start]["skip_log"]:
                    skip_log.add(one["name"], one["reason"])
                skip_log.check_fraction(total)
        _finish(folder, data, names, source, [done[span.start] for span in spans], tokenizer, context_length, pad)
    return CachedDataset(out, split)


# what was there before


def _claim(out: Path, split: str, preprocess: Preprocess) -> None:
    """Make the folder a packed set's of these pixels.

    Raises:
        ValueError: it is one of others, or something else.
    """
    if not split or split != Path(split).name or split.startswith("."):
        raise ValueError(f"the split {split!r} cannot be the name of a folder; take one such as 'train'")
    if out.exists() and not out.is_dir():
        raise ValueError(f"{out} is a file; a packed set is a folder: name another one")
    ours = CachedDataset.is_packed(out) or any((out / split / name).is_file() for name in (INDEX, JOURNAL))
    if not ours and out.exists() and any(out.iterdir()):
        raise ValueError(f"{out} holds other files; a packed set needs a folder of its own: name another one")
    try:
        found = read_pack(out)["pixels"]
    except (FileNotFoundError, DataError):  # new, or damaged: each split says it again
        _write_json(out / PACK, {"format": FORMAT, "pixels": preprocess.how()})
        return
    if found != preprocess.how():
        raise ValueError(
            f"{out} holds a set that was packed otherwise ({_words(found)}, now {_words(preprocess.how())}): name "
            "another folder, or remove that one"
        )


def _whole_shards(folder: Path, source: dict[str, Any]) -> dict[int, Shard]:
    """The shards that an earlier packing noted and that are whole, by the number of their first picture.

    Raises:
        ValueError: they are of another set.
    """
    for stray in folder.glob(".*.????????"):  # what a killed packing was writing
        stray.unlink()
    noted = _noted(folder)
    if noted is None:
        return {}
    if noted[0] != source:
        raise ValueError(
            f"{folder} was packed otherwise, or from other pictures or captions ({noted[0]['pictures']:,} pictures, "
            f"now {source['pictures']:,}): name another folder, or remove that one"
        )
    whole = {}
    for shard in noted[1]:
        with suppress(DataError):
            require_bytes(folder / shard["file"], shard["bytes"])
            if digest(folder / shard["file"]) == shard["sha256"]:
                whole[shard["first"]] = shard
    return whole


def _mended(data: ImageCaptionDataset, shard: Shard, preprocess: Preprocess) -> bool:
    """Whether a picture that a shard leaves out can be read by now."""
    gone = [one["picture"] for one in shard["skip_log"]]
    return any(isinstance(pixels_or_reason(data, i, preprocess, reduced=False), Tensor) for i in gone)


def _noted(folder: Path) -> tuple[dict[str, Any], list[Shard]] | None:
    """The source and the shards that the index names, or the journal: its last line may be cut short."""
    if (folder / INDEX).is_file():
        with suppress(DataError):  # a damaged one is no loss: its shards are made again
            index = read_index(folder / INDEX)
            return index["source"], index["shards"]
    if not (folder / JOURNAL).is_file():
        return None
    records = []
    with suppress(ValueError):  # what comes after a line that was cut short is not known
        for line in (folder / JOURNAL).read_text(encoding="utf-8", errors="replace").split("\n")[:-1]:
            records.append(json.loads(line))
    return (records[0], records[1:]) if records else None


def _source(data: ImageCaptionDataset, names: Sequence[str], preprocess: Preprocess) -> dict[str, Any]:
    """What tells whether packing is the one that was begun: of which pictures and captions, and to which pixels."""
    found = hashlib.sha256()
    for name, own in zip(names, data.captions, strict=True):
        found.update(json.dumps([name, list(own)]).encode())
    captions = sum(map(len, data.captions))
    counts = {"pictures": len(data), "captions": captions}
    return {**counts, "sha256": found.hexdigest(), "pixels": preprocess.how()}


def _names(data: ImageCaptionDataset) -> list[str]:
    """What the pictures are called, below the folder that all of them are in."""
    names = [name_of(data, index) for index in range(len(data))]
    common = ""
    with suppress(ValueError):  # of no names, or of paths that have nothing in common
        common = os.path.commonpath([str(Path(name).parent) for name in names])
    below = len(common) + 1 if common not in ("", ".", os.sep) else 0
    return [name[below:].replace(os.sep, "/") for name in names]


# writing


def _write_shard(
    folder: Path,
    number: int,
    first: int,
    chunks: Iterator[Decoded],
    names: Sequence[str],
    bar: Any,
    skip_log: SkipLog,
) -> Shard:
    """Write the pictures that could be read, and say what is in the file."""
    found, gone, pictures, size = hashlib.sha256(), list[dict[str, Any]](), 0, 0
    file = folder / f"{number:05d}.bin"

    def write(temporary: Path) -> None:
        nonlocal pictures, size
        with temporary.open("wb") as opened:
            for pixels, failed in chunks:
                content = pixels.numpy().data
                opened.write(content)
                found.update(content)
                pictures, size = pictures + len(pixels), size + content.nbytes
                for i, reason in failed.items():
                    skip_log.add(names[i], reason)
                    gone.append({"picture": i, "name": names[i], "reason": reason})
                bar.update(len(pixels) + len(failed))

    write_atomically(file, write)
    about = {"file": file.name, "first": first, "pictures": pictures, "bytes": size, "sha256": found.hexdigest()}
    return about | {"skip_log": gone}


def _note(folder: Path, source: dict[str, Any], shard: Shard) -> None:
    """Add a shard to the journal, whose first line says what set it is of."""
    with (folder / JOURNAL).open("a+", encoding="utf-8") as file:
        file.seek(0)
        content = file.read()
        if not content:
            file.write(json.dumps(source) + "\n")
        elif not content.endswith("\n"):
            file.truncate(content.rindex("\n") + 1 if "\n" in content else 0)
        file.write(json.dumps(shard) + "\n")
        file.flush()
        os.fsync(file.fileno())


def _finish(
    folder: Path,
    data: ImageCaptionDataset,
    names: Sequence[str],
    source: dict[str, Any],
    shards: list[Shard],
    tokenizer: TextTokenizer | None,
    context_length: int,
    pad: bool,
) -> None:
    """Write the captions, the token ids and the index, which makes the split whole; then the journal is done with."""
    gone = {one["picture"] for shard in shards for one in shard["skip_log"]}
    kept = [i for i in range(len(data)) if i not in gone]
    lines = [json.dumps({"name": names[i], "captions": list(data.captions[i])}) + "\n" for i in kept]
    text = "".join(lines).encode()
    write_atomically(folder / CAPTIONS, lambda path: path.write_bytes(text))
    tokens = None
    if tokenizer is not None and kept:
        flat = [caption for i in kept for caption in data.captions[i]]
        rows = tokenizer(flat, context_length=context_length, pad=pad).int()
        tokens = {"tokenizer": digest_of(tokenizer), "context_length": context_length, "pad": pad}
        tokens |= {"shape": list(rows.shape), **_write_tensor(folder / TOKENS, rows)}
    else:
        (folder / TOKENS).unlink(missing_ok=True)
    about = {"sha256": hashlib.sha256(text).hexdigest(), "bytes": len(text)}
    skip_log = [one for shard in shards for one in shard["skip_log"]]
    index = {"format": FORMAT, "source": source, "shards": shards, "captions": about, "tokens": tokens}
    _write_json(folder / INDEX, index | {"skip_log": skip_log})
    (folder / JOURNAL).unlink(missing_ok=True)


def _write_tensor(file: Path, tensor: Tensor) -> dict[str, Any]:
    content = tensor.contiguous().view(torch.uint8).numpy().tobytes()
    write_atomically(file, lambda path: path.write_bytes(content))
    return {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}


def _write_json(file: Path, content: dict[str, Any]) -> None:
    text = json.dumps(sealed(content), indent=1) + "\n"
    write_atomically(file, lambda path: path.write_text(text, encoding="utf-8"))


# small things


def _spans(total: int, size: int) -> list[range]:
    """The numbers of each shard's pictures, S = size."""
    chunks = SHARD_BYTES // (CHUNK * 3 * size**2)
    each = CHUNK * min(max(chunks, 1), 1024 // CHUNK)
    return [range(start, min(start + each, total)) for start in range(0, total, each)]


def _words(how: dict[str, Any]) -> str:
    return ", ".join(f"{key} {value}" for key, value in how.items())


def _bar(total: int, done: int, progress: bool, split: str) -> Any:
    from tqdm import tqdm

    return tqdm(
        total=total, initial=done, desc=split, unit=" pictures", disable=None if progress else True, dynamic_ncols=True
    )
