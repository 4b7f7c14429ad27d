"""WebDataset: pictures and captions in tar files, as img2dataset, open_clip and the webdataset library have them.

Members that share a name up to its first dot make a sample: `000123.jpg`, `000123.txt`, `000123.json`. The table of all
members is made once, from the tars' headers and the captions; a picture is read from its place when it is asked for.
References: "WebDataset File Format Specification"; webdataset's `group_by_keys`.
"""

from __future__ import annotations

import glob
import itertools
import json
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from miniclip.data.dataset import Captions
from miniclip.data.formats.rows import Entry, Rule, collect
from miniclip.data.formats.tars import Member, read_table
from miniclip.data.skipping import MAX_SKIP_FRACTION, OnError, SkipLog
from miniclip.data.splits import Split, in_name
from miniclip.errors import DataError

Spec = str | Path | Sequence[str | Path]

SUFFIXES = (".tar", ".tar.gz", ".tgz")  # the packed ones to be refused by name
PICTURES = ("jpg", "jpeg", "png", "webp", "gif", "bmp", "tif", "tiff", "ppm", "avif", "jp2")
TEXTS = ("json", "txt", "text")  # in the order in which they are believed
CAPTION_KEYS = ("captions", "caption", "text")  # of a json, the first that holds any
MOST_BYTES = 1 << 20  # of a txt or json: a caption has some hundred

_BRACES = re.compile(r"\{([^{}]*)\}")
_KEY = re.compile(r"((?:.*/)?[^./][^./]*)\.([^/]*)", re.DOTALL)
_NOTES = re.compile(r"__[^/]*__(?:$|/)")  # the format's own, about the shard


class WebDataset(Captions):
    """Captioned pictures in tar shards on disk; `data[i]` is `(picture, captions)`, in any order.

    A caption is a line of the sample's `.txt`, or what its `.json` has under `captions`, `caption` or `text` (a string
    or a list of strings), which goes first. Members of a sample need not be neighbours.

    The split is by the shards' names where they tell several apart (`train-0000.tar`, `val-0000.tar`, `val/0000.tar`).
    Else a hash of the seed and the sample's name (its shard's and its key) draws it, as for other sets.

    Args:
        shards: paths of tar files: one, a list, a pattern (`shards/*.tar`), a range (`shards-{0000..0012}.tar`), or a
            folder, for all tars in it.
        split: "train", "val", "test", or "all".
        seed: of the drawn split.
        picture: the extension of the picture, where samples have several: "left.jpg".
        caption: the key of the captions in the json, where it is another; "a.b" for `{"a": {"b": "a dog"}}`.
        on_error: what happens to a shard that is missing, packed or cut short, and to a sample without a picture or a
            caption, or with two members of one name: "raise", or "skip" to leave it out.
        max_skip_fraction: the share of the shards, and of the samples, that may be left out.

    Attributes:
        skip_log: what was left out, with reasons.
        about: what was found, in words.

    Raises:
        FileNotFoundError: no such shards.
        DataError: a shard or a sample that cannot be used, by name; see `on_error`.
        ValueError: no such split; the address of a shard in place of its path.
    """

    def __init__(
        self,
        shards: Spec,
        split: Split = "train",
        *,
        seed: int = 0,
        picture: str | None = None,
        caption: str | None = None,
        on_error: OnError = "raise",
        max_skip_fraction: float = MAX_SKIP_FRACTION,
    ) -> None:
        self.split = split
        skip_log = SkipLog(on_error, max_skip_fraction)
        found = _shards(find_shards(shards))
        about = f"WebDataset, {len(found)} {'shard' if len(found) == 1 else 'shards'}"
        of_split = [shard for shard in found if shard.split == split]
        told = {shard.split for shard in found}
        if of_split and {"train", "val"} <= told:  # then the others need not be read
            found, split = of_split, "all"
        entries = _entries(found, _Fields(picture, caption), skip_log)
        rule = Rule(split, seed, on_error, max_skip_fraction)
        pictures = collect(found[0].path, entries, rule, skip_log, about=about, exact=len(told) > 1)
        super().__init__(
            pictures.paths,
            pictures.captions,
            skip_log=pictures.skip_log,
            splits=pictures.splits,
            about=pictures.about,
        )


def is_tar(spec: object) -> bool:
    """Whether a data set is called as one of tar shards is: `x.tar`, a pattern of such, or a folder with tars in it."""
    if isinstance(spec, list | tuple):
        return bool(spec) and all(map(is_tar, spec))
    path = Path(str(spec)).expanduser()
    return str(spec).lower().endswith(SUFFIXES) or (path.is_dir() and any(_tars_in(path)))


# Finding the shards


def find_shards(spec: Spec) -> list[Path]:
    """The paths that a user's words for them stand for, in order; also those of a range or a list that are missing.

    Raises:
        FileNotFoundError: nothing is there.
        ValueError: an address, or a range that is none.
    """
    words = [spec] if isinstance(spec, str | Path) else spec
    found = list(dict.fromkeys(path for word in words for path in _named_by(str(word))))
    if not any(path.exists() for path in found):
        named = ", ".join(map(str, words))
        raise FileNotFoundError(f"{named}: no such file; give a .tar, a pattern such as 'shards/*.tar', or a folder")
    return found


def _named_by(text: str) -> list[Path]:
    if re.match(r"[a-z0-9]+://|pipe:", text):
        raise ValueError(f"{text}: shards are read from disk: download them (hf download, wget), and give their path")
    path = Path(text).expanduser()
    if path.is_dir():
        return sorted(_tars_in(path))
    if path.exists():
        return [path]
    found: list[Path] = []
    for name in _expand_braces(str(path)):
        is_pattern = glob.has_magic(name)
        found += sorted(map(Path, glob.glob(name))) if is_pattern else [Path(name)]  # noqa: PTH207  # from anywhere on
    return found


def _tars_in(folder: Path) -> Iterator[Path]:
    return (path for path in folder.iterdir() if path.name.lower().endswith(SUFFIXES) and path.name[0] != ".")


def _expand_braces(text: str) -> Iterator[str]:
    """`a{0..2}b` and `a{0,1,2}b` to three texts each; zeros in front are kept."""
    parts = _BRACES.split(text)  # every second is what stood in braces
    choices = [[part] if i % 2 == 0 else _alternatives(part, text) for i, part in enumerate(parts)]
    return map("".join, itertools.product(*choices))


def _alternatives(inner: str, text: str) -> list[str]:
    ends = re.fullmatch(r"(\d+)\.\.(\d+)", inner)
    if not ends:
        return inner.split(",")
    first, last = int(ends[1]), int(ends[2])
    if not first <= last < first + 10_000_000:
        raise ValueError(f"{text}: the range {{{inner}}} runs backwards, or over more than ten million shards")
    width = len(ends[1]) if ends[1].startswith("0") else 0
    return [f"{number:0{width}}" for number in range(first, last + 1)]


def _shards(paths: Sequence[Path]) -> list[_Shard]:
    """The shards, each with its path below the folder that all share, so that a set that moves keeps its names."""
    absolute = [path.absolute() for path in paths]
    try:
        shared = os.path.commonpath([path.parent for path in absolute])
        names = [path.relative_to(shared).as_posix() for path in absolute]
    except ValueError:  # on several drives
        names = [path.as_posix() for path in absolute]
    return [_Shard(path, name, in_name(name)) for path, name in zip(paths, names, strict=True)]


# StepMetrics a shard


class _Shard(NamedTuple):
    path: Path
    name: str
    split: str | None  # that the name tells


class _Fields(NamedTuple):
    picture: str | None
    caption: str | None


@dataclass(frozen=True, slots=True)
class TarImage:
    """A picture in a tar, read from its place; the tar is opened anew each time: workers and threads share nothing."""

    shard: Path
    state: tuple[int, int]  # the shard's size and time: when it changes, its places are another's
    member: Member

    def __str__(self) -> str:
        return f"{self.shard}: {self.member.name}"

    def read(self) -> bytes:
        """The bytes of the picture file.

        Raises:
            DataError: the shard is gone, or is not what it was.
        """
        try:
            with self.shard.open("rb") as file:
                if _state(file) != self.state:
                    raise DataError(f"{self.shard}: has changed since its members were listed; open the set anew")
                file.seek(self.member.offset)
                return file.read(self.member.size)
        except OSError as error:
            raise DataError(f"{self}: cannot be read: {_in_words(error)}; put the shard back") from error


def _state(file: BinaryIO) -> tuple[int, int]:
    found = os.fstat(file.fileno())
    return found.st_size, found.st_mtime_ns


def _in_words(error: OSError) -> str:
    return (error.strerror or str(error)).lower()


def _entries(shards: Sequence[_Shard], fields: _Fields, skip_log: SkipLog) -> Iterator[Entry]:
    """The samples of all shards; shards are counted by themselves, since one is worth a thousand samples."""
    lost = SkipLog(skip_log.on_error, skip_log.max_skip_fraction)
    for shard in shards:
        yield from _read_shard(shard, fields, skip_log, lost)
    lost.require_few(len(shards))
    skip_log.reasons |= lost.reasons


def _read_shard(shard: _Shard, fields: _Fields, skip_log: SkipLog, lost: SkipLog) -> Iterator[Entry]:
    path = shard.path
    if not path.is_file():  # and not a pipe: nothing is waited for
        lost.add(str(path), "no regular file" if path.exists() else "there is no such file; get it again")
        return
    try:
        with path.open("rb") as file:
            state = _state(file)
            table = read_table(path)
            samples = _group(table.members)
            if table.wrong:
                lost.add(str(path), f"{table.wrong}; get it again, or take it out")
                last = next(reversed(samples), None)  # of which some may be missing
            for key, parts in samples.items():
                try:
                    picture, captions = _parse(parts, fields, file)
                except _UnusableError as error:
                    if not (table.wrong and key == last):
                        skip_log.add(f"{path}: {error.member}", error.reason)
                except _NoSampleError:
                    continue
                else:
                    stored = TarImage(path, state, picture)
                    yield Entry(str(stored), f"{shard.name}/{key}", captions, shard.split, stored)
    except OSError as error:
        lost.add(str(path), f"cannot be read: {_in_words(error)}")


class _NoSampleError(Exception):
    """Members that are neither picture nor caption, such as a checksum that lies there."""


class _UnusableError(Exception):
    """A sample that cannot be used."""

    def __init__(self, member: str, reason: str) -> None:
        self.member, self.reason = member, reason


def _group(members: Iterable[Member]) -> dict[str, dict[str, Member]]:
    """Members by key and extension; of two with one name the second is marked."""
    samples: dict[str, dict[str, Member]] = {}
    for member in members:
        match = _KEY.fullmatch(member.name)
        if match and not _NOTES.match(member.name):
            parts = samples.setdefault(match[1], {})
            extension = match[2].lower()
            parts[extension] = member._replace(wrong="is there twice") if extension in parts else member
    return samples


def _parse(parts: dict[str, Member], fields: _Fields, file: BinaryIO) -> tuple[Member, list[object]]:
    """The picture of a sample, and its captions."""
    picture = _pick_picture(parts, fields.picture)
    texts = [parts[extension] for extension in TEXTS if extension in parts]
    for member in texts if picture is None else [picture, *texts]:
        if member.wrong:
            raise _UnusableError(member.name, f"{member.wrong}; pack the shard anew")
    if picture is None and texts:
        raise _UnusableError(texts[0].name, "has no picture beside it in the shard")
    if picture is None:
        raise _NoSampleError
    for member in texts:
        captions = _read_captions(member, fields.caption, file)
        if any(caption and not str(caption).isspace() for caption in captions):
            return picture, captions
    looked = fields.caption or ", ".join(CAPTION_KEYS)
    raise _UnusableError(picture.name, f"has no caption that is not blank, in a .txt or in a .json under {looked}")


def _pick_picture(parts: dict[str, Member], wanted: str | None) -> Member | None:
    if wanted is not None:
        return parts.get(wanted.lower().lstrip("."))
    plain = [member for extension, member in parts.items() if extension in PICTURES]
    found = plain or [member for extension, member in parts.items() if extension.rsplit(".")[-1] in PICTURES]
    if len(found) > 1:
        names = ", ".join(member.name for member in found)
        raise _UnusableError(found[0].name, f"is one of several pictures ({names}); say which: picture='jpg'")
    return found[0] if found else None


def _read_captions(member: Member, key: str | None, file: BinaryIO) -> list[object]:
    if member.size > MOST_BYTES:
        raise _UnusableError(member.name, f"has {member.size:,} bytes, and a caption has {MOST_BYTES:,} at most")
    file.seek(member.offset)
    text = file.read(member.size).decode("utf-8-sig", "surrogateescape")  # other bytes are found in the caption
    return _from_json(member, text, key) if member.name.lower().endswith(".json") else list(text.splitlines())


def _from_json(member: Member, text: str, key: str | None) -> list[object]:
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise _UnusableError(member.name, f"is not JSON: {error}") from error
    if not isinstance(content, dict):
        raise _UnusableError(member.name, f"is JSON, but a {type(content).__name__}; expected an object")
    values = [_under(content, key)] if key else [content.get(known) for known in CAPTION_KEYS]
    value: Any = next((value for value in values if value not in (None, "", [])), [])
    return value if isinstance(value, list) else [value]


def _under(content: dict[str, Any], key: str) -> Any:
    """`a.b` of {"a": {"b": …}}."""
    value: Any = content
    for part in [key] if key in content else key.split("."):
        value = value.get(part) if isinstance(value, dict) else None
    return value
