"""Tokenizers of other kinds than CLIP's: the tokenizers library reads the file, and here stands what it leaves open.

SigLIP, CLIPA, MetaCLIP 2 and others took their text from T5, Gemma, BERT or XLM-V. The checkpoint's tokenizer.json says
how text becomes ids, but not all that was done to a caption in training:

- open_clip (HFTokenizer) cleans it first: ftfy and HTML's entities, then what `clean` says.
- CLIPA has 0 in place of the separator: `strip_sep_token`.
- transformers' classes for SigLIP lowercase, the first one without punctuation too.
- Rows are padded by a token, and a text tower may look for the end token.

An argument says so, or tokenizer_config.json and special_tokens_map.json beside the file. Where nobody does:

- Captions are not cleaned, as transformers leaves them. (Where open_clip's configuration is silent, its own default is
  clean="whitespace".)
- The padding is the file's own, else <pad> or [PAD], else the end token, on the right; in Gemma's class on the left.
- The end token is the first of those that the file puts after a text.
- Gemma's class lowercases nothing, though SigLIP 2 was trained on lower case alone. Where the configuration names
  SigLIP's processor, or do_lower_case, we lowercase, as transformers' class for SigLIP 2 does.

`save` writes all of it into the one tokenizer.json: cleaning as rows of its normalizer, the padding, the separator and
the end token in its post_processor. `load` knows the rows again. To others they are a tokenizer.json like any: the
library gives the same ids from it, but for what ftfy and html alone can mend, and for captions that spell the name of a
special token, which open_clip cleans before it looks for such names, and the library after.

Sources: open_clip/tokenizer.py, https://github.com/mlfoundations/open_clip; the classes of transformers; canonicalize:
big_vision, https://github.com/google-research/big_vision; Li et al. 2023, CLIPA, https://arxiv.org/abs/2305.07017.
"""

import json
import operator
import os
import string
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict, Unpack

from miniclip.errors import CheckpointError
from miniclip.tokenizer import files
from miniclip.tokenizer.clip import RowTokenizer, whole
from miniclip.tokenizer.mending import mend

if TYPE_CHECKING:
    import tokenizers

Json = dict[str, Any]
Named = tuple[str, int]  # a token and its id


class Options(TypedDict, total=False):
    """What `LibraryTokenizer` can be told, under the names that open_clip and transformers use."""

    clean: str | None
    strip_sep_token: bool
    pad_token: str | None
    eos_token: str | None
    sep_token: str | None
    padding_side: str | None


def check_options(options: Options) -> None:
    """Raise TypeError for what is no option."""
    unknown = sorted(options.keys() - Options.__annotations__.keys())
    if unknown:
        raise TypeError(f"{unknown[0]!r} is no option of a tokenizer: there are {', '.join(Options.__annotations__)}")


class LibraryTokenizer(RowTokenizer):
    """Text to ids and back, through the tokenizers library. Get one by `LibraryTokenizer.load`.

    Args:
        data: the parsed tokenizer.json.
        config: the parsed tokenizer_config.json, if there is one. What follows comes before what it says.
        clean: open_clip's cleaning: "whitespace" (mend, collapse whitespace), "lower" (and lowercase), "canonicalize"
            (and remove punctuation). None: what the file says, in the words of `save`; else none.
        strip_sep_token: write 0 for the separator, as CLIPA does.
        pad_token, eos_token, sep_token: the tokens that pad, end and separate.
        padding_side: "right" or "left".

    Attributes:
        vocab_size: the highest id, plus 1.
        unknown_id: what stands for all that the vocabulary lacks; None where it lacks nothing, or leaves it out.
        start_id: the first of `before`, or None.
        end_id: the id that ends a caption, or None: CLIPA's rows have none.
        before, after: the ids that begin and end every row.
        pad_id, pad_left: what makes rows equally long, and whether it stands before them.
        clean: the cleaning's name, or None.
        truncated: how many captions a call has cut so far, in this process.

    Raises:
        ImportError: the tokenizers library is not installed.
        ValueError: an argument is none of the choices, or names a token that the vocabulary lacks.
        CheckpointError: the library cannot read the data, or no token can pad.
    """

    def __init__(
        self,
        data: Json,
        config: Json | None = None,
        *,
        clean: str | None = None,
        strip_sep_token: bool = False,
        pad_token: str | None = None,
        eos_token: str | None = None,
        sep_token: str | None = None,
        padding_side: str | None = None,
    ) -> None:
        super().__init__()
        config = config or {}
        _check_choice("clean", clean, CLEANING)
        _check_choice("padding_side", padding_side, ("right", "left"))
        if config.get("truncation_side") == "left" or (data.get("truncation") or {}).get("direction") == "Left":
            raise CheckpointError("cuts long captions at their beginning; expected a tokenizer that cuts at their end")
        said, normalizer = _split_cleaning(data.get("normalizer"))
        self.clean = clean or said
        self._library = _library({**data, "normalizer": _normalizer_of_class(normalizer, config)})
        self._add_specials(config)
        self.vocab_size = max(self._library.get_vocab().values()) + 1
        self.unknown_id = _unknown(data.get("model") or {}, self._library)
        self._frame = _frame(data.get("post_processor"))
        spare = _spare(data.get("post_processor"))
        self._sep_id = self._separator(strip_sep_token, sep_token or _name(config.get("sep_token")))
        self.before, self.after = (tuple(0 if i == self._sep_id else i for _, i in part) for part in self._frame)
        self.start_id = self.before[0] if self.before else None
        self.end_id = self._end(eos_token, _name(config.get("eos_token")) or spare)
        padding = data.get("padding") or {}
        self._pad_token, self.pad_id = self._padding(pad_token, _name(config.get("pad_token")), padding)
        side = padding_side or config.get("padding_side") or padding.get("direction") or _side_of_class(config)
        self.pad_left = str(side).lower() == "left"

    @classmethod
    def load(cls, path: str | os.PathLike[str], **options: Unpack[Options]) -> "LibraryTokenizer":
        """Read a tokenizer.json, with tokenizer_config.json and special_tokens_map.json if they are beside it.

        Args:
            path: the file, or the directory with it.
            options: see the class.

        Raises:
            FileNotFoundError: there is no such file.
            CheckpointError: a file is damaged, or the library cannot read it.
            ImportError, ValueError: see the class.
            TypeError: there is no such option.
        """
        file = Path(path)
        file = file / "tokenizer.json" if file.is_dir() else file
        if not file.is_file():
            raise FileNotFoundError(f"{file}: no such file; expected a tokenizer.json")
        return cls.from_parsed(file, files.read_json(file), **options)

    @classmethod
    def from_parsed(cls, file: Path, data: Any, **options: Unpack[Options]) -> "LibraryTokenizer":
        """What `load` makes of a file with this content: large ones take seconds to parse, and are parsed once."""
        check_options(options)
        config = _read_config(file.parent)
        try:
            if not isinstance(data, dict) or "model" not in data:
                raise CheckpointError("no tokenizer.json")
            return cls(data, config, **options)
        except files.ODD_JSON as error:
            raise CheckpointError(f"{file}: damaged, or no tokenizer.json ({error!r})") from error
        except CheckpointError as error:
            raise CheckpointError(f"{file}: {error}") from error

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write tokenizer.json, which is all that `load` needs, at once or not at all.

        Args:
            path: the file, if the name ends in .json or a file is there; else a directory, made where it is missing.
        """
        data = json.loads(self._library.to_str())
        if self.clean:
            own = [data["normalizer"]] if data["normalizer"] else []
            data["normalizer"] = {"type": "Sequence", "normalizers": [*CLEANING[self.clean], *own]}
        data["padding"] = {
            "strategy": "BatchLongest",
            "direction": "Left" if self.pad_left else "Right",
            "pad_to_multiple_of": None,
            "pad_id": self.pad_id,
            "pad_type_id": 0,
            "pad_token": self._pad_token,
        }
        if self._sep_id is not None or self.end_id != self._usual_end():
            data["post_processor"] = self._template()
        files.write(path, data)

    def encode(self, text: str) -> list[int]:
        """The ids of a text, without those that begin and end a row, never cut."""
        if not isinstance(text, str):
            raise TypeError(f"the text is of type {type(text).__name__}; expected str")
        cleaned = whole(CLEANERS[self.clean](text))  # cleaned or not: the library takes no lone surrogates
        ids: list[int] = self._library.encode(cleaned, add_special_tokens=False).ids
        return ids if self._sep_id is None else [0 if index == self._sep_id else index for index in ids]

    def decode(self, ids: Iterable[int]) -> str:
        """The text of ids, as the file's decoder writes it, without special tokens and the padding after an end token.

        Raises:
            ValueError: an id is not in the vocabulary.
        """
        row = [operator.index(token) for token in ids]  # also takes a one-dimensional tensor
        for token in row:
            if not 0 <= token < self.vocab_size:
                raise ValueError(f"id {token} is not in the vocabulary: ids go from 0 to {self.vocab_size - 1}")
        if self.end_id in row:
            after_end = len(row) - row[::-1].index(self.end_id)
            row = row[:after_end] if set(row[after_end:]) <= {self.pad_id} else row
        framing = {index for part in self._frame for _, index in part}
        return self._library.decode([token for token in row if token not in framing], skip_special_tokens=True)

    def normalize(self, text: str) -> str:
        """The normal form of a text: what `decode` gives back of it. What the vocabulary does not know is lost."""
        return self.decode(self.encode(text))

    def __repr__(self) -> str:
        kind = type(self._library.model).__name__
        return f"LibraryTokenizer({kind}, vocab_size={self.vocab_size}, end_id={self.end_id}, clean={self.clean!r})"

    # What the file, its configuration and the arguments say

    def _add_specials(self, config: Json) -> None:
        """Tokens that the configuration calls special are found in captions, as transformers finds them."""
        more = config.get("extra_special_tokens") or config.get("additional_special_tokens")
        values = [*(config[key] for key in config if key.endswith("_token")), *(more if isinstance(more, list) else [])]
        names = [name for name in map(_name, values) if name and self._library.token_to_id(name) is not None]
        known = {token.content for token in self._library.get_added_tokens_decoder().values()}
        self._library.add_special_tokens([name for name in names if name not in known])

    def _separator(self, wanted: bool, name: str | None) -> int | None:
        """The id to write 0 for. `save` leaves a mark: the post_processor has the id 0 for a token of another id."""
        before, after = self._frame
        marked = [token for token, index in (*before, *after) if index == 0 and self._library.token_to_id(token)]
        if marked:
            return self._library.token_to_id(marked[0])
        if not wanted:
            return None
        found = name or (after[0][0] if after else None)
        if found is None:
            raise ValueError("strip_sep_token=True, and no file says which token separates: name it by sep_token=")
        return self._id_of("sep_token", found)

    def _usual_end(self) -> int | None:
        return self.after[0] if self.after and not self._is_stripped(self._frame[1][0]) else None

    def _is_stripped(self, token: Named) -> bool:
        return self._sep_id is not None and token[1] in (0, self._sep_id)

    def _end(self, asked: str | None, said: str | None) -> int | None:
        if asked is not None:
            end: int | None = self._id_of("eos_token", asked)
        elif said is not None and self._library.token_to_id(said) is not None:
            end = self._library.token_to_id(said)
        else:
            end = self._usual_end()
        return None if end == self._sep_id else end

    def _padding(self, asked: str | None, said: str | None, padding: Json) -> Named:
        if asked is not None:
            return asked, self._id_of("pad_token", asked)
        if said is not None:
            index = self._library.token_to_id(said)
            if index is None:
                raise CheckpointError(f"the pad_token {said!r} is not in the vocabulary: name another by pad_token=")
            return said, index
        if padding:
            index = self._library.token_to_id(padding["pad_token"])
            return padding["pad_token"], padding["pad_id"] if index is None else index
        for name in ("<pad>", "[PAD]"):
            if (index := self._library.token_to_id(name)) is not None:
                return name, index
        if self.end_id is None:
            raise CheckpointError("no token pads: name one by pad_token=")
        return self._library.id_to_token(self.end_id) or "", self.end_id

    def _id_of(self, argument: str, name: str) -> int:
        index = self._library.token_to_id(name)
        if index is None:
            raise ValueError(f"{argument}={name!r} is not in the vocabulary of {self.vocab_size} tokens")
        return index

    def _template(self) -> Json:
        """The post_processor that frames a text as we do, and names the end token without using it."""
        before, after = (
            [(name, 0) if self._is_stripped((name, i)) else (name, i) for name, i in p] for p in self._frame
        )
        tokens = dict([*before, *after])
        if self.end_id is not None and self.end_id != self._usual_end():
            tokens[self._library.id_to_token(self.end_id) or ""] = self.end_id
        first, second = (
            [*_pieces(before, kind), {"Sequence": {"id": text, "type_id": kind}}, *_pieces(after, kind)]
            for kind, text in enumerate("AB")
        )
        return {
            "type": "TemplateProcessing",
            "single": first,
            "pair": first + second,
            "special_tokens": {name: {"id": name, "ids": [i], "tokens": [name]} for name, i in tokens.items()},
        }


# Cleaning, as open_clip's HFTokenizer has it, and the rows of a normalizer that come nearest

_PUNCTUATION = str.maketrans("", "", string.punctuation)


def _whitespace(text: str) -> str:
    return " ".join(mend(text).split())


def _lower(text: str) -> str:
    return _whitespace(text).lower()


def _canonicalize(text: str) -> str:
    return " ".join(mend(text).replace("_", " ").translate(_PUNCTUATION).lower().split())


CLEANERS: dict[str | None, Callable[[str], str]] = {
    None: lambda text: text,
    "whitespace": _whitespace,
    "lower": _lower,
    "canonicalize": _canonicalize,
}


def _replace(pattern: str, content: str) -> Json:
    return {"type": "Replace", "pattern": {"Regex": pattern}, "content": content}


_MEND: list[Json] = [*files.MENDING, {"type": "NFC"}]
# Python's whitespace has four controls more. The type Strip would do for the ends, but panics on empty text.
_SPACES = [_replace(r"[\s\x1c-\x1f]+", " "), _replace(r"\A | \z", "")]
# Python lowers a sigma that ends a word to ς, the library every one to σ.
_SIGMA = _replace(r"\p{Cased}\p{Case_Ignorable}*\KΣ(?!\p{Case_Ignorable}*\p{Cased})", "ς")
_LOWER = [_SIGMA, {"type": "Lowercase"}]
_NO_PUNCTUATION = _replace(r"[!-/:-@\[-`{-~]", "")

CLEANING: dict[str, list[Json]] = {  # none is the beginning of another, so that a file says which one it has
    "whitespace": [*_MEND, *_SPACES],
    "lower": [*_MEND, *_LOWER, *_SPACES],
    "canonicalize": [*_MEND, _replace("_", " "), _NO_PUNCTUATION, *_LOWER, *_SPACES],
}


def _split_cleaning(normalizer: Json | None) -> tuple[str | None, Json | None]:
    """The cleaning that `save` wrote in front of a normalizer, if it did, and the normalizer itself."""
    steps = _steps(normalizer)
    for name, rows in CLEANING.items():
        if steps[: len(rows)] == rows:
            return name, _sequence(steps[len(rows) :])
    return None, normalizer


def _steps(normalizer: Json | None) -> list[Json]:
    return list(normalizer.get("normalizers", [normalizer])) if normalizer else []


def _sequence(steps: list[Json]) -> Json | None:
    if len(steps) < 2:
        return steps[0] if steps else None
    return {"type": "Sequence", "normalizers": steps}


# What transformers' classes do, whatever the file says


def _normalizer_of_class(normalizer: Json | None, config: Json) -> Json | None:
    """The normalizer with what the class in tokenizer_config.json adds to it."""
    name, lowercase = _class(config), config.get("do_lower_case")
    rows: list[Json] = []
    if name == "SiglipTokenizer":
        rows = [_replace("▁", " "), *(_LOWER if lowercase in (None, True) else []), _NO_PUNCTUATION, *_SPACES]
    elif name == "Siglip2Tokenizer" or (name == "GemmaTokenizer" and (lowercase or _is_siglip(config))):
        rows = [{"type": "Lowercase"}]
    elif name == "BertTokenizer" and normalizer and normalizer.get("type") == "BertNormalizer":
        keys = {
            "lowercase": "do_lower_case",
            "strip_accents": "strip_accents",
            "handle_chinese_chars": "tokenize_chinese_chars",
        }
        return normalizer | {ours: config[theirs] for ours, theirs in keys.items() if theirs in config}
    steps = _steps(normalizer)
    return normalizer if steps[: len(rows)] == rows else _sequence([*rows, *([normalizer] if normalizer else [])])


def _side_of_class(config: Json) -> str:
    return "left" if _class(config) in ("GemmaTokenizer", "Siglip2Tokenizer") else "right"


def _class(config: Json) -> str:
    return str(config.get("tokenizer_class") or "").removesuffix("Fast")


def _is_siglip(config: Json) -> bool:
    return str(config.get("processor_class") or "").startswith("Siglip")


# Files


def _library(data: Json) -> "tokenizers.Tokenizer":
    try:
        import tokenizers
    except ImportError as error:
        raise ImportError(
            'this tokenizer needs the tokenizers library: pip install "miniclip[tokenizers]"', name="tokenizers"
        ) from error
    try:
        return tokenizers.Tokenizer.from_str(json.dumps({**data, "padding": None, "truncation": None}))
    except Exception as error:  # the library raises no other type
        raise CheckpointError(f"the tokenizers library cannot read it ({error})") from error


def _unknown(model: Json, library: "tokenizers.Tokenizer") -> int | None:
    """The id of the unknown token: by its number in a Unigram model, else by its name."""
    if model.get("unk_id") is not None:
        return int(model["unk_id"])
    return None if model.get("unk_token") is None else library.token_to_id(model["unk_token"])


def _read_config(directory: Path) -> Json:
    """tokenizer_config.json with what special_tokens_map.json says, in the order in which transformers takes them."""
    found: list[Json] = []
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        file = directory / name
        value = files.read_json(file) if file.is_file() else {}
        if not isinstance(value, dict):
            raise CheckpointError(f"{file}: damaged; expected an object")
        found.append(value)
    config, tokens = found
    config = config if "added_tokens_decoder" in config else config | tokens
    return {"pad_token": "</s>", **config} if _class(config) == "SiglipTokenizer" else config


def _name(token: Any) -> str | None:
    """A token's name: the files have it as text, or with the rules by which it is found in captions."""
    value = token.get("content") if isinstance(token, dict) else token
    return value if isinstance(value, str) else None


def _frame(processor: Json | None) -> tuple[list[Named], list[Named]]:
    """The tokens that a post_processor puts before and after a text."""
    before: list[Named] = []
    after: list[Named] = []
    if not processor or processor["type"] == "ByteLevel":
        return before, after
    match processor["type"]:
        case "BertProcessing" | "RobertaProcessing":
            return [_named(*processor["cls"])], [_named(*processor["sep"])]
        case "Sequence":
            for step in processor["processors"]:
                first, last = _frame(step)
                before, after = first + before, after + last
        case "TemplateProcessing":
            part = before
            for piece in processor["single"]:
                if "Sequence" in piece:
                    part = after
                else:
                    token = processor["special_tokens"][piece["SpecialToken"]["id"]]
                    part += map(_named, token["tokens"], token["ids"])
        case other:
            raise CheckpointError(f"the post_processor is of type {other}, which is not known here")
    return before, after


def _named(name: str, index: int) -> Named:
    return str(name), int(index)


def _spare(processor: Json | None) -> str | None:
    """The one token that a template names and does not use: so `save` says which token ends a caption."""
    if not processor or processor["type"] != "TemplateProcessing":
        return None
    pieces = [*processor["single"], *processor["pair"]]
    used = {piece["SpecialToken"]["id"] for piece in pieces if "SpecialToken" in piece}
    spare = [name for name in processor["special_tokens"] if name not in used]
    return spare[0] if len(spare) == 1 else None


def _pieces(tokens: list[Named], kind: int) -> list[Json]:
    return [{"SpecialToken": {"id": name, "type_id": kind}} for name, _ in tokens]


def _check_choice(argument: str, value: str | None, choices: Iterable[str]) -> None:
    if value is not None and value not in choices:
        raise ValueError(f"{argument}={value!r} is none of the choices: {', '.join(choices)}")
