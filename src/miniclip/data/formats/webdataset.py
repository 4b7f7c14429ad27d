"""WebDataset: images and captions in tar files, as img2dataset, open_clip and the webdataset library write them.

Members that share a name up to its first dot make a sample: `000123.jpg`, `000123.txt`, `000123.json`. Opening the
dataset reads the headers and the captions; an image is read from its offset on request.
References: "WebDataset File Format Specification"; `group_by_keys` of the webdataset library.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, Unpack

from miniclip.data.decoding import MAX_FILE_BYTES
from miniclip.data.formats.captions import Captions
from miniclip.data.formats.cells import read_quoted_list
from miniclip.data.formats.options import ReadKeywords, ReadOptions
from miniclip.data.formats.rows import ImageRow, ImageRows, refuse_numbers, select
from miniclip.data.formats.shards import ShardSpec, TarShard, find_shards, name_shards
from miniclip.data.formats.tars import Member, list_members
from miniclip.data.skipping import SkipLog
from miniclip.data.splits import Split
from miniclip.errors import UnreadableError
from miniclip.utils.files import open_regular, parse_json

IMAGES = ("jpg", "jpeg", "png", "webp", "gif", "bmp", "tif", "tiff", "ppm", "avif", "jp2", "jfif", "heic", "heif")
TEXTS = ("json", "txt", "text", "caption")  # the first with a caption is taken
CAPTION_KEYS = ("captions", "caption", "text")  # likewise, of a JSON object
MAX_PEEKED = 100  # members of a shard that are read to find out whether it holds samples
MAX_TEXT_BYTES = 1 << 20  # limit for a txt or json member; a caption has some hundred bytes

_KEY = re.compile(r"((?:.*/)?[^./][^./]*)\.([^/]*)", re.DOTALL)
_METADATA = re.compile(r"__[^/]*__(?:$|/)")  # members that belong to the shard, by the format's specification

Sample = dict[str, Member]  # extension to member


class WebDataset(Captions):
    """Captioned images in tar shards on disk; `data[i]` is `(image, captions)`, in any order.

    The captions are the lines of the sample's `.txt`, or `captions`, `caption` or `text` of its `.json` (a string or a
    list of strings), which takes precedence. Without these two, they are those of `000.outputs.txt` and the like, if
    there is one. Members of a sample need not be adjacent.

    The split is that of the shards' names if there are several (`train-0000.tar`, `val-0000.tar`, `val/0000.tar`).
    Otherwise a hash of the seed and the sample's name (shard and key) draws it, as for other datasets.

    Args:
        shards: paths of tar files: one, a list, a pattern (`shards/*.tar`), a range (`shards-{0000..0012}.tar`), or a
            folder, for all tars in it.
        split: "train", "val", "test", or "all".
        image: the extension of the image, if samples have several: "left.jpg" of `000.left.jpg`.
        caption: the extension of the member with the captions, "outputs.txt" of `000.outputs.txt`; or the key of the
            captions in the JSON: "alt", or "a.b" for `{"a": {"b": "a dog"}}`.
        **options: as in `Captions`. They also apply to shards that are missing, compressed or cut short. The skipped
            fractions of the shards and of the samples are counted separately.

    Raises:
        FileNotFoundError: no shard exists.
        DataError: a shard or a sample cannot be used.
        ValueError: the split does not exist, or a shard is given by a URL.
    """

    def __init__(
        self,
        shards: ShardSpec,
        split: Split = "train",
        *,
        image: str | None = None,
        caption: str | None = None,
        **options: Unpack[ReadKeywords],
    ) -> None:
        self.split = split
        named = name_shards(find_shards(shards))
        about = f"WebDataset, {len(named)} {'shard' if len(named) == 1 else 'shards'}"
        splits = {shard.split for shard in named}
        of_split = [shard for shard in named if shard.split == split]
        read_options = ReadOptions(split, **options)
        if of_split and {"train", "val"} <= splits:  # the other shards need not be read
            named, read_options = of_split, ReadOptions("all", **options)
        skip_log = read_options.new_skip_log()
        rows = _read_shards(named, _Fields(image, caption), skip_log)
        dataset = ImageRows(named[0].path, rows, about, exact_split=len(splits) > 1)
        super().__init__(*select(dataset, read_options, skip_log))
        if caption is not None:
            refuse_numbers(named[0].path, self.captions)


@dataclass(frozen=True, slots=True)
class TarImage:
    """Image in a tar file. The tar is opened for each read, so workers and threads share nothing.

    Attributes:
        shard: the tar file.
        state: size and modification time of the tar; a change makes the offset invalid.
        member: the image.
    """

    shard: Path
    state: tuple[int, int]
    member: Member

    def __str__(self) -> str:
        return f"{self.shard}: {self.member.name}"

    def read(self) -> bytes:
        """Return the encoded image.

        Raises:
            DataError: the shard is missing, or has changed.
        """
        if self.member.size > MAX_FILE_BYTES:
            raise UnreadableError(str(self), f"has {self.member.size:,} bytes, more than {MAX_FILE_BYTES:,}; remove it")
        try:
            with open_regular(self.shard) as file:
                if _state(file) != self.state:
                    raise UnreadableError(
                        str(self), "the shard has changed since its members were listed; open the dataset again"
                    )
                file.seek(self.member.offset)
                return file.read(self.member.size)
        except OSError as error:
            raise UnreadableError(str(self), f"cannot be read: {_explain(error)}; restore the shard") from error


class _Fields(NamedTuple):
    """Members that the user chose: the extension of the image, and the extension or the JSON key of the captions."""

    image: str | None
    caption: str | None


def _state(file: BinaryIO) -> tuple[int, int]:
    status = os.fstat(file.fileno())
    return status.st_size, status.st_mtime_ns


def _explain(error: OSError) -> str:
    return (error.strerror or str(error).rpartition(": ")[2]).lower()


def _read_shards(shards: Sequence[TarShard], fields: _Fields, skip_log: SkipLog) -> Iterator[ImageRow]:
    """Read the samples of all shards. Lost shards are counted separately, since one holds thousands of samples."""
    shard_log = skip_log.branch()
    for shard in shards:
        try:
            yield from _read_shard(shard, fields, skip_log, shard_log)
        except OSError as error:
            shard_log.add(str(shard.path), f"cannot be read: {_explain(error)}")
    shard_log.check_fraction(len(shards))
    skip_log.merge(shard_log)


def _read_shard(shard: TarShard, fields: _Fields, skip_log: SkipLog, shard_log: SkipLog) -> Iterator[ImageRow]:
    path = shard.path
    if not path.is_file():  # opening a pipe would block
        shard_log.add(str(path), "is not a regular file" if path.exists() else "the file does not exist; get it again")
        return
    with open_regular(path) as file:
        state = _state(file)
        listing = list_members(path)
        samples = _group(listing.members)
        if listing.problem:
            shard_log.add(str(path), f"{listing.problem}; get it again, or remove it")
        last = next(reversed(samples), None) if listing.problem else None  # may be incomplete
        for key, sample in samples.items():
            try:
                content = _parse(path, sample, fields, file)
            except UnreadableError as error:
                if key != last:
                    skip_log.add(error.name, error.reason)
                continue
            if content is not None:
                image = TarImage(path, state, content[0])
                yield ImageRow(str(image), f"{shard.name}/{key}", content[1], shard.split, image)


def holds_samples(shard: Path) -> bool:
    """Return whether the start of a tar holds an image with a text: other tars are archives of something else."""
    try:
        samples = _group(list_members(shard, MAX_PEEKED).members)
    except OSError:
        return False
    return any(_find_images(sample, None) and len(sample) > 1 for sample in samples.values())


def _group(members: Iterable[Member]) -> dict[str, Sample]:
    """Group members by key; the second of two members with the same name gets a problem."""
    samples: dict[str, Sample] = {}
    for member in members:
        match = _KEY.fullmatch(member.name)
        if match and not _METADATA.match(member.name):
            sample = samples.setdefault(match[1], {})
            extension = match[2].lower()
            sample[extension] = member._replace(problem="exists twice") if extension in sample else member
    return samples


def _parse(shard: Path, sample: Sample, fields: _Fields, file: BinaryIO) -> tuple[Member, list[object]] | None:
    """Return the image and the captions of a sample; None if it has neither, such as a lone checksum.

    Raises:
        UnreadableError: the sample cannot be used.
    """

    def unreadable(member: Member, reason: str) -> UnreadableError:
        return UnreadableError(f"{shard}: {member.name}", reason)

    images = _find_images(sample, fields.image)
    if len(images) > 1:
        raise unreadable(images[0], _ambiguous("images", "image", sample, images))
    texts = _find_texts(sample, fields.caption)
    for member in [*images, *texts]:
        if member.problem:
            raise unreadable(member, f"{member.problem}; write the shard again")
    if not images:
        if texts:
            ending = f" that ends in .{fields.image}" if fields.image else ""
            raise unreadable(texts[0], f"has no image beside it in the shard{ending}; {_listed(sample)}")
        return None
    captions, problem = _choose_captions(sample, texts, fields.caption, file)
    if problem is not None:
        raise unreadable(*problem)
    if captions:
        return images[0], captions
    keys = fields.caption or ", ".join(CAPTION_KEYS)
    raise unreadable(
        images[0],
        f"has no caption that is not blank, in a .txt or in a .json under {keys}; {_listed(sample)}; choose a member "
        "or a key with caption='…', after a path ?caption=…",
    )


def _ambiguous(kind: str, option: str, sample: Sample, members: Sequence[Member]) -> str:
    """Return the reason why one of several members must be chosen, and how."""
    names = ", ".join(member.name for member in members)
    ending = next(extension for extension, member in sample.items() if member is members[0])
    return (
        f"is one of several {kind} ({names}); choose one, such as {option}={ending!r}, after a path ?{option}={ending}"
    )


def _listed(sample: Sample) -> str:
    return f"the sample has {', '.join(member.name for member in sample.values())}"


def _choose_captions(
    sample: Sample, texts: Sequence[Member], chosen: str | None, file: BinaryIO
) -> tuple[list[object], tuple[Member, str] | None]:
    """Return the captions of the first text that has some, and the member that cannot be used, with the reason.

    Only one text with a longer extension, such as `a.outputs.txt`, may have captions.
    """
    key = None if chosen is not None and _extension(chosen) in sample else chosen
    exact = [member for member in texts if member in (sample.get(name) for name in (*TEXTS, _extension(chosen or "")))]
    for member in exact:
        captions, problem = _read_captions(member, key, file)
        if problem is not None:
            return [], (member, problem)
        if _has_text(captions):
            return captions, None
    others = [(member, _read_captions(member, key, file)[0]) for member in texts if member not in exact]
    others = [(member, captions) for member, captions in others if _has_text(captions)]
    if len(others) > 1:
        return [], (others[0][0], _ambiguous("texts", "caption", sample, [member for member, _ in others]))
    return (others[0][1] if others else []), None


def _has_text(captions: Iterable[object]) -> bool:
    return any(caption and not str(caption).isspace() for caption in captions)


def _extension(chosen: str) -> str:
    return chosen.lower().lstrip(".")


def _find_texts(sample: Sample, chosen: str | None) -> list[Member]:
    """Return the members that may hold captions: the chosen one; or .json, .txt, …, then those such as .outputs.txt."""
    if chosen is not None and _extension(chosen) in sample:
        return [sample[_extension(chosen)]]
    exact = [sample[extension] for extension in TEXTS if extension in sample]
    others = [member for name, member in sample.items() if "." in name and name.rsplit(".")[-1] in TEXTS]
    # a chosen name that is not a member is a key, and only JSON has keys
    return [member for member in exact + others if chosen is None or member.name.lower().endswith(".json")]


def _find_images(sample: Sample, chosen: str | None) -> list[Member]:
    if chosen is not None:
        member = sample.get(_extension(chosen))
        return [] if member is None else [member]
    exact = [member for extension, member in sample.items() if extension in IMAGES]
    return exact or [member for extension, member in sample.items() if extension.rsplit(".")[-1] in IMAGES]


def _read_captions(member: Member, key: str | None, file: BinaryIO) -> tuple[list[object], str | None]:
    """Return the captions of a text or JSON member, and its problem if it cannot be used."""
    if member.size > MAX_TEXT_BYTES:
        return [], f"has {member.size:,} bytes; expected at most {MAX_TEXT_BYTES:,} for captions"
    file.seek(member.offset)
    text = file.read(member.size).decode("utf-8-sig", "surrogateescape")  # `select` finds the bytes that are not UTF-8
    if not member.name.lower().endswith(".json"):
        return list(text.splitlines()), None
    try:
        content = parse_json(text)
    except ValueError as error:
        return [], f"is not JSON: {error}"
    if not isinstance(content, dict):
        return [], f"is JSON, but a {type(content).__name__}; expected an object"
    values = [_look_up(content, key)] if key else [content.get(name) for name in CAPTION_KEYS]
    value: Any = next((value for value in values if value not in (None, "", [])), [])
    return read_quoted_list(value)


def _look_up(content: dict[str, Any], key: str) -> Any:
    """Look up `a.b` in {"a": {"b": …}}."""
    value: Any = content
    for part in [key] if key in content else key.split("."):
        value = value.get(part) if isinstance(value, dict) else None
    return value
