"""What a look at the data finds before a run: captions and pictures that are doubled, cut, blank, odd or unreadable.

All captions are looked at, up to `CAPTIONS` of them, and pictures up to `PICTURES` of a set and for `SECONDS`, in an
order drawn by a fixed seed: where not all were seen, the finding says how many were.
"""

from __future__ import annotations

import dataclasses
import hashlib
import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import torch

from miniclip.data.dataset import ImageCaptionDataset, image_of, name_of
from miniclip.diagnostics.rules import CUT, REPEATED
from miniclip.errors import DataError
from miniclip.utils.randomness import generator
from miniclip.utils.threads import cores, threads

if TYPE_CHECKING:
    from miniclip.tokenizer import TextTokenizer

CAPTIONS, PICTURES, SECONDS = 200_000, 10_000, 60.0  # at most
LONG = 2.0  # times as wide as high, or as high as wide: of such a picture the model sees half, or less
FEW = 0.05  # share of the pictures from which on oddities are warned of, and not only noted
OFTEN = 0.01  # share of the pictures that have a caption, from which on it says too little
SHOWN = 3  # examples

Severity = Literal["fine", "note", "warning", "error"]


@dataclasses.dataclass(frozen=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        name: of the thing.
        severity: "fine"; "note": worth knowing; "warning": the model will be worse for it; "error": the run would fail,
            or be for nothing.
        what: what was found, in figures and names.
        meaning: what that does to a training.
        advice: what to try.
    """

    name: str
    severity: Severity
    what: str
    meaning: str = ""
    advice: str = ""


def judge(name: str, severity: Severity, what: str, meaning: str, advice: str) -> Finding:
    """A finding, without the words on what to do where nothing is wrong."""
    return Finding(name, severity, what) if severity == "fine" else Finding(name, severity, what, meaning, advice)


# captions


def check_captions(
    data: ImageCaptionDataset, tokenizer: TextTokenizer, context_length: int, batch: int
) -> list[Finding]:
    """Captions that are the same, cut, empty, or of tokens that the tokenizer does not know."""
    flat = [caption for own in data.captions for caption in own]
    chosen = [flat[i] for i in _drawn(len(flat), CAPTIONS)]
    seen = "" if len(chosen) == len(flat) else f" (of {len(chosen):,} captions looked at, {len(flat):,} in all)"
    return [_repeated_captions(data, batch), *_tokens(chosen, seen, tokenizer, context_length)]


def _repeated_captions(data: ImageCaptionDataset, batch: int) -> Finding:
    pictures: Counter[str] = Counter()
    chance: defaultdict[str, float] = defaultdict(float)  # that a row of a batch has the caption
    for own in data.captions:
        pictures.update(set(own))
        for caption in own:
            chance[caption] += 1 / len(own) / len(data)
    share = sum(p * (1 - (1 - p) ** (batch - 1)) for p in chance.values())
    caption, count = pictures.most_common(1)[0]
    severity: Severity = "fine"
    if count > 1:
        severity = "warning" if share > REPEATED or count > max(2, OFTEN * len(data)) else "note"
    what = f"{len(pictures):,} different ones of {sum(map(len, data.captions)):,}"
    if count > 1:
        what += (
            f"; the most frequent, {_short(caption)}, has {count:,} of {len(data):,} pictures; in a batch of {batch} "
            f"{share:.1%} of the pairs have a caption that another one has"
        )
    return judge(
        "repeated captions",
        severity,
        what,
        "Of two pairs of a batch with the same caption each is taught that the other one's picture is wrong for it.",
        "Write captions that tell pictures apart, leave out those that fit many, or take smaller batches.",
    )


def _tokens(captions: Sequence[str], seen: str, tokenizer: TextTokenizer, context_length: int) -> list[Finding]:
    encode: Any = getattr(tokenizer, "encode", None)
    if encode is None or not captions:
        return [Finding("captions cut", "note", "unknown: this tokenizer has no method encode")]
    rows = [encode(caption) for caption in captions]
    frame = len(getattr(tokenizer, "before", ())) + len(getattr(tokenizer, "after", ()))
    lengths = [len(row) + frame for row in rows]
    cut, longest = sum(n > context_length for n in lengths), max(range(len(rows)), key=lengths.__getitem__)
    what = f"{cut:,} of {len(captions):,} are longer than the context of {context_length} tokens{seen}"
    if cut:
        what += f"; the longest has {lengths[longest]}: {_short(captions[longest])}"
    empty = sum(not row for row in rows)
    unknown_id = getattr(tokenizer, "unknown_id", None)
    unknown = [row.count(unknown_id) for row in rows] if unknown_id is not None else [0]
    worst = max(range(len(unknown)), key=unknown.__getitem__)
    tokens = max(1, sum(map(len, rows)))
    named = f"; the most in one: {_short(captions[worst])}" if any(unknown) else ""
    return [
        judge(
            "captions cut",
            "warning" if cut >= CUT * len(captions) and cut else "note" if cut else "fine",
            what,
            "The model never sees what stands after the cut.",
            "Shorten the captions, or take a model with a longer context.",
        ),
        judge(
            "empty captions",
            "warning" if empty else "fine",
            f"{empty:,} have not one token{seen}",
            "They say nothing of their pictures, and all say the same.",
            "Leave them out, or write them.",
        ),
        judge(
            "unknown tokens",
            "warning" if sum(unknown) >= CUT * tokens and any(unknown) else "note" if any(unknown) else "fine",
            f"{sum(unknown):,} of {tokens:,} tokens are unknown to the tokenizer{named}{seen}",
            "Different words become the same token, and cannot be told apart.",
            "Take a tokenizer of the captions' language; miniclip's own (`Tokenizer.train`) knows every byte.",
        ),
    ]


# pictures


class Picture(NamedTuple):
    """What is remembered of one."""

    name: str
    size: tuple[int, int]
    pixels: bytes  # a digest
    blank: bool
    reason: str  # that it cannot be read, or ""


class Pictures(NamedTuple):
    """Those of a set that were looked at."""

    seen: list[Picture]
    total: int

    @property
    def how_many(self) -> str:
        """How many were looked at, where not all were."""
        return "" if len(self.seen) == self.total else f" (of {len(self.seen):,} looked at, {self.total:,} in all)"


def look_at(data: ImageCaptionDataset, most: int = PICTURES, seconds: float = SECONDS) -> Pictures:
    """Open pictures in a drawn order, as many as the limits allow."""
    order, seen = _drawn(len(data), most), list[Picture]()
    end, num_workers = time.monotonic() + seconds, cores()
    with threads(num_workers) as pool:
        for start in range(0, len(order), 8 * num_workers):
            seen += pool.map(lambda index: _look(data, index), order[start : start + 8 * num_workers])
            if time.monotonic() > end:
                break
    return Pictures(seen, len(data))


def _look(data: ImageCaptionDataset, index: int) -> Picture:
    name = name_of(data, index)
    try:
        picture = image_of(data, index)
    except (DataError, OSError) as error:
        return Picture(name, (0, 0), b"", False, " ".join(str(error).removeprefix(f"{name}: ").split()))
    digest = hashlib.blake2b(repr(picture.size).encode() + picture.tobytes(), digest_size=16).digest()
    extremes: Any = picture.getextrema()  # of RGB, the least and the greatest of each colour
    return Picture(name, picture.size, digest, all(low == high for low, high in extremes), "")


def check_pictures(pictures: Pictures, side: int, on_error: str) -> list[Finding]:
    """Pictures that cannot be read, are the same, blank, long or small.

    Args:
        pictures: as `look_at` gives them.
        side: of the model's pictures, in pixels.
        on_error: what the run does at one that cannot be read, "raise" or "skip".
    """
    good = [picture for picture in pictures.seen if not picture.reason]
    small = sorted((p for p in good if 2 * min(p.size) <= side), key=lambda p: min(p.size))
    return [
        _unreadable(pictures, on_error),
        _doubled(good, pictures.how_many),
        _odd(
            "blank pictures",
            [picture.name for picture in good if picture.blank],
            pictures,
            "have one single colour",
            "They show nothing that a caption could be found by.",
            "Leave them out; look whether they were lost on the way (a failed download, a bad conversion).",
        ),
        _odd(
            "long pictures",
            _with_sizes(sorted((p for p in good if _ratio(p) > LONG), key=_ratio, reverse=True)),
            pictures,
            f"are more than {LONG:.0f} times as wide as high, or as high as wide",
            "The model sees the square in their middle, and captions may speak of the rest.",
            "Cut such pictures to what their captions speak of.",
        ),
        _odd(
            "small pictures",
            _with_sizes(small),
            pictures,
            f"are at most half as large as the model's {side} pixels",
            "They are blown up: most of what is computed on them shows nothing new.",
            "Take larger pictures, or a model of fewer pixels.",
        ),
    ]


def _unreadable(pictures: Pictures, on_error: str) -> Finding:
    failed = [f"{picture.name} ({picture.reason})" for picture in pictures.seen if picture.reason]
    whole = "the run would stop there" if on_error == "raise" else "the run leaves them out"
    return judge(
        "unreadable pictures",
        "fine" if not failed else "error" if on_error == "raise" else "warning",
        f"{len(failed):,} cannot be read{pictures.how_many}{_such_as(failed)}",
        f"They cannot be trained on: {whole}.",
        "Mend or leave out these files, or train with on_error skip. `miniclip data inspect` names all.",
    )


def _doubled(good: Sequence[Picture], how_many: str) -> Finding:
    groups: defaultdict[bytes, list[str]] = defaultdict(list)
    for picture in good:
        groups[picture.pixels].append(picture.name)
    doubled = [names for names in groups.values() if len(names) > 1]
    copies = sum(len(names) - 1 for names in doubled)
    such_as = f", such as {_some(' = '.join(names[:SHOWN]) for names in doubled)}" if doubled else ""
    return judge(
        "doubled pictures",
        _by_share(copies, len(good)),
        f"{copies:,} are copies of others{how_many}{such_as}",
        "In one batch, each copy is taught that the other's captions are wrong for it.",
        "Join copies into one picture with all their captions.",
    )


def _odd(what: str, odd: Sequence[str], pictures: Pictures, are: str, why: str, advice: str) -> Finding:
    """That some of the pictures, by name, are something that pictures should not be."""
    good = sum(not picture.reason for picture in pictures.seen)
    return judge(what, _by_share(len(odd), good), f"{len(odd):,} {are}{pictures.how_many}{_such_as(odd)}", why, advice)


def _by_share(found: int, total: int) -> Severity:
    return "fine" if not found else "warning" if found >= FEW * max(1, total) else "note"


def _with_sizes(pictures: Iterable[Picture]) -> list[str]:
    return [f"{p.name} ({p.size[0]} x {p.size[1]})" for p in pictures]


def _ratio(picture: Picture) -> float:
    return max(picture.size) / min(picture.size)


# both sets


def check_overlap(
    train: ImageCaptionDataset, val: ImageCaptionDataset, trained: Pictures, validated: Pictures
) -> list[Finding]:
    """Pictures and captions that training and validation share."""
    names = {picture.pixels: picture.name for picture in trained.seen if not picture.reason}
    shared = [p for p in validated.seen if not p.reason and p.pixels in names]
    known = {caption for own in train.captions for caption in own}
    flat = [caption for own in val.captions for caption in own]
    captions = sum(caption in known for caption in flat)
    part = bool(trained.how_many or validated.how_many)
    how_many = f" (of the {len(trained.seen):,} and {len(validated.seen):,} looked at)" if part else ""
    return [
        judge(
            "pictures of both sets",
            "warning" if shared else "fine",
            f"{len(shared):,} validation pictures are in the training data{how_many}"
            + (f": {_some(f'{p.name} = {names[p.pixels]}' for p in shared)}" if shared else ""),
            "They were trained on: recall on them says nothing about new pictures.",
            "Take them out of one of the two.",
        ),
        judge(
            "captions of both sets",
            "note" if captions else "fine",
            f"{captions:,} of {len(flat):,} validation captions are training captions too",
            "Usual for short captions. With the same pictures, it means that the sets were not split by picture.",
            "See that the captions of a picture are all in one set.",
        ),
    ]


def _drawn(total: int, most: int) -> list[int]:
    """Up to so many of the numbers below a total; all of them in their order, where they are no more."""
    if total <= most:
        return list(range(total))
    drawn: list[int] = torch.randperm(total, generator=generator("check", total))[:most].tolist()
    return drawn


def _some(names: Iterable[str]) -> str:
    listed = list(names)
    more = f" and {len(listed) - SHOWN:,} more" if len(listed) > SHOWN else ""
    return "; ".join(listed[:SHOWN]) + more


def _such_as(names: Sequence[str]) -> str:
    return f": {_some(names)}" if names else ""


def _short(caption: str) -> str:
    return repr(caption if len(caption) <= 80 else caption[:80] + "…")
