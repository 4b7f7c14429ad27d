"""What is in a data set: counts, lengths, sizes, duplicates, and what cannot be read.

Every picture is opened, since a file that is cut short looks whole until then. Duplicates are found by content: the
same bytes, or, of files that differ, the same pixels.
"""

from __future__ import annotations

import hashlib
import os
import statistics
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from miniclip.data.dataset import ImageCaptionDataset, image_of, name_of
from miniclip.data.decoding import open_image
from miniclip.data.skipping import reason_of
from miniclip.errors import DataError
from miniclip.utils.threads import threads

if TYPE_CHECKING:
    from miniclip.tokenizer import LibraryTokenizer, Tokenizer

LONG = 4.0  # times as wide as high, or as high as wide: the centre that a model sees is a quarter of it
VOCABULARY = 49_408  # of the tokenizer that is learned where none is given: the reference system's
WRAP = "\n" + " " * 13  # a line of the report that goes on
AT_ONCE = 64  # pictures that each thread is given before the next are handed out: what Ctrl-C has to wait for


class Spread(NamedTuple):
    """The least, the middle, the mean and the most of some numbers."""

    least: float
    median: float
    mean: float
    most: float

    def __str__(self) -> str:
        if self.least == self.most:
            return f"{self.least:,.0f}"
        return f"{self.least:,.0f} to {self.most:,.0f}, median {self.median:,.0f}, mean {self.mean:,.1f}"


@dataclass(frozen=True)
class Inspection:
    """What `inspect` found.

    Attributes:
        folder: where all pictures are, which their names start from here; "" where they have none in common.
        layout: what the set was read from, and where its split is from; its `repr` where the set does not say.
        pictures: how many, with those that cannot be read.
        captions: how many.
        per_picture: captions.
        words: of the captions, split at white space.
        tokens: of the captions, with the two that begin and end a row.
        tokenizer: which one, in words.
        context_length: where captions are cut.
        cut: how many are longer.
        widths: of the pictures, in pixels; None where none can be read.
        heights: likewise.
        long: name to size of the pictures that are more than `LONG` times as wide as high, or the other way round.
        same_bytes: groups of names of pictures whose files are the same.
        same_pixels: groups of names of pictures whose files differ and whose pixels are the same.
        across: groups of names of pictures with the same pixels in several splits: what is tested was trained on.
        repeated: the captions that several pictures have, and how many have it, the most frequent first.
        unreadable: name to reason.
        skip_log: name to reason of what the reader left out before.
        readable: the indices of the pictures that can be read.
    """

    folder: str
    layout: str
    pictures: int
    captions: int
    per_picture: Spread
    words: Spread
    tokens: Spread
    tokenizer: str
    context_length: int
    cut: int
    widths: Spread | None
    heights: Spread | None
    long: dict[str, tuple[int, int]]
    same_bytes: list[list[str]]
    same_pixels: list[list[str]]
    across: list[list[str]]
    repeated: dict[str, int]
    unreadable: dict[str, str]
    skip_log: dict[str, str]
    readable: list[int]

    def __str__(self) -> str:
        return self.report()

    def report(self, at_most: int = 20) -> str:
        """What was found, for people to read.

        Args:
            at_most: lines of a list; the rest is counted.
        """
        lines = [
            f"layout       {self.layout.replace('; ', WRAP)}",
            *([f"folder       {self.folder}"] if self.folder else []),
            f"pictures     {self.pictures:,}",
            f"captions     {self.captions:,}; {self.per_picture} a picture",
            f"words        {self.words} a caption",
            f"tokens       {self.tokens} a caption, by {self.tokenizer}; {_of(self.cut, self.captions)} are cut at "
            f"{self.context_length}",
            f"widths       {self.widths or 'unknown'} pixels",
            f"heights      {self.heights or 'unknown'} pixels",
        ]
        shapes = [f"{name}: {width} x {height}" for name, (width, height) in self.long.items()]
        lines += _listed(f"more than {LONG:.0f} times as wide as high, or as high as wide", shapes, at_most)
        lines += _listed("groups of the same files", map(", ".join, self.same_bytes), at_most)
        lines += _listed("groups of other files with the same pixels", map(", ".join, self.same_pixels), at_most)
        lines += _listed("groups of the same picture in several splits", map(", ".join, self.across), at_most)
        often = [f"{count:,} times {_short(caption)!r}" for caption, count in self.repeated.items()]
        lines += _listed("captions that several pictures have", often, min(at_most, 5))
        lines += _listed("pictures that cannot be read", _reasons(self.unreadable), at_most)
        lines += _listed("rows and pictures that were left out", _reasons(self.skip_log), at_most)
        return "\n".join(lines)


class _Seen(NamedTuple):
    """What one picture's file tells."""

    size: tuple[int, int] | None
    file: bytes | None
    pixels: bytes | None
    reason: str | None


def inspect(
    data: ImageCaptionDataset,
    *,
    tokenizer: Tokenizer | LibraryTokenizer | None = None,
    context_length: int = 77,
    threads: int | None = None,
    progress: bool = False,
) -> Inspection:
    """Look at every picture and caption of a data set.

    Args:
        data: pictures with captions; one that was opened with on_error="skip" tells what it left out, too.
        tokenizer: to count tokens with; None: one is learned from the captions, as `miniclip train` does.
        context_length: where captions are cut.
        threads: that decode pictures; None: one a core.
        progress: show a bar on standard error.

    Raises:
        ValueError: there are no pictures.
    """
    if not len(data):
        raise ValueError("the data are empty: there is nothing to look at")
    seen = list(_look_at_all(data, threads or os.cpu_count() or 1, progress))
    flat = [caption for own in data.captions for caption in own]
    lengths, named = _token_lengths(flat, tokenizer)
    names, folder = _names(data)
    sizes = {index: one.size for index, one in enumerate(seen) if one.size is not None}
    pictures_of = Counter(caption for own in data.captions for caption in set(own))
    skip_log = getattr(data, "skip_log", None)
    return Inspection(
        folder=folder,
        layout=str(getattr(data, "about", "") or repr(data)),
        pictures=len(data),
        captions=len(flat),
        per_picture=_spread([len(own) for own in data.captions]),
        words=_spread([len(caption.split()) for caption in flat]),
        tokens=_spread(lengths),
        tokenizer=named,
        context_length=context_length,
        cut=sum(length > context_length for length in lengths),
        widths=_spread([width for width, _ in sizes.values()]) if sizes else None,
        heights=_spread([height for _, height in sizes.values()]) if sizes else None,
        long={names[k]: (w, h) for k, (w, h) in sizes.items() if max(w, h) > LONG * min(w, h)},
        same_bytes=_same(names, [one.file for one in seen]),
        same_pixels=_same(names, _one_a_file(seen)),
        across=_across(names, seen, getattr(data, "splits", [])),
        repeated={caption: count for caption, count in pictures_of.most_common() if count > 1},
        unreadable={names[k]: one.reason for k, one in enumerate(seen) if one.reason is not None},
        skip_log=dict(skip_log.reasons) if skip_log is not None else {},
        readable=list(sizes),
    )


def _look_at_all(data: ImageCaptionDataset, count: int, progress: bool) -> Iterator[_Seen]:
    from tqdm import tqdm

    step = AT_ONCE * count
    with threads(count) as pool, tqdm(total=len(data), unit=" pictures", disable=not progress) as bar:
        for start in range(0, len(data), step):
            for one in pool.map(lambda index: _look(data, index), range(start, min(start + step, len(data)))):
                bar.update()
                yield one


def _look(data: ImageCaptionDataset, index: int) -> _Seen:
    encoded = getattr(data, "encoded", None)
    name = name_of(data, index)
    try:
        content = None if encoded is None else encoded(index)
        picture = image_of(data, index) if content is None else open_image(content, name)
    except (DataError, OSError) as error:
        return _Seen(None, None, None, reason_of(error))
    return _Seen(
        picture.size,
        None if content is None else _digest(content),
        _digest(repr(picture.size).encode(), picture.tobytes()),
        None,
    )


def _digest(*parts: bytes) -> bytes:
    digest = hashlib.blake2b(digest_size=16)
    for part in parts:
        digest.update(part)
    return digest.digest()


def _token_lengths(captions: Sequence[str], tokenizer: Tokenizer | LibraryTokenizer | None) -> tuple[list[int], str]:
    named = f"the given tokenizer ({tokenizer.vocab_size:,} tokens)" if tokenizer is not None else ""
    if tokenizer is None:
        from miniclip.tokenizer import Tokenizer

        tokenizer = Tokenizer.train(captions, VOCABULARY)
        named = f"a tokenizer learned from them ({tokenizer.vocab_size:,} tokens)"
    frame = len(tokenizer.before) + len(tokenizer.after)
    return [frame + len(tokenizer.encode(caption)) for caption in captions], named


def _names(data: ImageCaptionDataset) -> tuple[list[str], str]:
    """What the pictures are called, and the folder that is left out of it, since all are in it."""
    names = [name_of(data, index) for index in range(len(data))]
    if not all(Path(name).is_absolute() for name in names):
        return names, ""
    folder = os.path.commonpath({str(Path(name).parent) for name in names})
    return [str(Path(name).relative_to(folder)) for name in names], folder


def _one_a_file(seen: Sequence[_Seen]) -> list[bytes | None]:
    """The pixels of each, None of those whose file is a copy of an earlier one."""
    known: set[bytes] = set()
    kept = []
    for one in seen:
        copy = one.file is not None and one.file in known
        kept.append(None if copy else one.pixels)
        if one.file is not None:
            known.add(one.file)
    return kept


def _same(names: Sequence[str], contents: Sequence[bytes | None]) -> list[list[str]]:
    groups: dict[bytes, list[str]] = defaultdict(list)
    for name, content in zip(names, contents, strict=True):
        if content is not None:
            groups[content].append(name)
    return [group for group in groups.values() if len(group) > 1]


def _across(names: Sequence[str], seen: Sequence[_Seen], splits: Sequence[str]) -> list[list[str]]:
    if len(splits) != len(names):
        return []
    split_of = dict(zip(names, splits, strict=True))
    same = _same(names, [one.pixels for one in seen])
    groups = [group for group in same if len({split_of[name] for name in group}) > 1]
    return [[f"{name} ({split_of[name]})" for name in group] for group in groups]


def _spread(values: Sequence[int]) -> Spread:
    return Spread(min(values), statistics.median(values), statistics.fmean(values), max(values))


# Words


def _of(count: int, total: int) -> str:
    return f"{count:,} ({count / total:.1%})" if count else "none"


def _listed(title: str, items: Iterable[str], at_most: int) -> list[str]:
    rows = list(items)
    if not rows:
        return [f"none         {title}"]
    more = [f"  … and {len(rows) - at_most:,} more"] if len(rows) > at_most else []
    return [f"{f'{len(rows):,}':<12} {title}:", *(f"  {row}" for row in rows[:at_most]), *more]


def _reasons(reasons: dict[str, str]) -> list[str]:
    return [f"{name}: {reason}" for name, reason in reasons.items()]


def _short(caption: str) -> str:
    return caption if len(caption) <= 80 else caption[:80] + "…"
