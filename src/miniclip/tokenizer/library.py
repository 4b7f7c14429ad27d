"""Tokenizers of other kinds than CLIP's, through the tokenizers library.

SigLIP, CLIPA, MetaCLIP 2 and others use tokenizers of T5, Gemma, BERT or XLM-V. The checkpoint's tokenizer.json
describes how a text becomes ids, but not everything that was done to captions in training:

- open_clip (HFTokenizer) first applies ftfy and HTML unescaping, then the cleaning that `clean` names.
- CLIPA has 0 in place of the separator (`strip_sep_token`).
- The classes of transformers for SigLIP lowercase; the first one also removes punctuation.
- Rows are padded with a token, and a text tower may need the end token.

These settings come from the arguments, else from tokenizer_config.json and special_tokens_map.json beside the file.
The defaults:

- Captions are not cleaned, as in transformers. (open_clip's own default is clean="whitespace".)
- The padding token is that of the file, else <pad> or [PAD], else the end token. Padding follows the caption, except
  that it precedes the caption for Gemma's class.
- The end token is the first one that the file adds after a text.
- Gemma's class does not lowercase, although SigLIP 2 was trained on lowercase only. If the configuration has SigLIP's
  processor or do_lower_case, captions are lowercased, as by the transformers class for SigLIP 2.

`save` writes all of this into one tokenizer.json: the cleaning as rows of the normalizer, the padding, and the
separator and end token in the post_processor. `load` detects these rows. Other libraries can read the file too. Their
ids differ only for texts that ftfy and html fix, and for captions that contain the name of a special token: open_clip
cleans before it searches for such names, the library after it.

Sources: open_clip/tokenizer.py, https://github.com/mlfoundations/open_clip; the classes of transformers; canonicalize:
big_vision, https://github.com/google-research/big_vision; Li et al. 2023, CLIPA, https://arxiv.org/abs/2305.07017.
"""

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict, Unpack

from miniclip.errors import CheckpointError
from miniclip.tokenizer import files
from miniclip.tokenizer.base import BatchTokenizer, check_ids
from miniclip.tokenizer.cleaning import OPEN_CLIP_CLEANERS, replace_surrogates
from miniclip.tokenizer.library_guard import check_content, library_errors
from miniclip.tokenizer.normalizers import (
    OPEN_CLIP_NORMALIZERS,
    add_class_cleaning,
    class_name,
    prepend_cleaning,
    split_cleaning,
)
from miniclip.tokenizer.post_processors import NamedId, build_post_processor, parse_post_processor, unused_token
from miniclip.tokenizer.tokenizer_json import INVALID_JSON
from miniclip.utils.formatting import one_line, short

if TYPE_CHECKING:
    import tokenizers

Json = dict[str, Any]


class Options(TypedDict, total=False):
    """Options of `LibraryTokenizer`, with the names that open_clip and transformers use.

    Attributes:
        clean: cleaning of open_clip: "whitespace" (fix the text, collapse whitespace), "lower" (also lowercase) or
            "canonicalize" (also remove punctuation). None: the cleaning that `save` wrote to the file, if any.
        strip_sep_token: replace the separator by 0, as CLIPA does.
        pad_token, eos_token, sep_token: tokens that pad, end and separate.
        padding_side: "right" or "left".
    """

    clean: str | None
    strip_sep_token: bool
    pad_token: str | None
    eos_token: str | None
    sep_token: str | None
    padding_side: str | None


def check_options(options: Options) -> None:
    """Check the names and types of options.

    Raises:
        TypeError: an option is not known, or has another type.
    """
    unknown = sorted(options.keys() - Options.__annotations__.keys())
    if unknown:
        choices = ", ".join(Options.__annotations__)
        raise TypeError(f"{short(unknown[0])} is not an option of a tokenizer; the options are {choices}")
    for name, value in options.items():
        if not isinstance(value, bool if name == "strip_sep_token" else str | None):
            raise TypeError(
                f"{name} is {short(value)}; expected {'true or false' if name == 'strip_sep_token' else 'text'}"
            )


class LibraryTokenizer(BatchTokenizer):
    """Tokenizer of any kind, made by `LibraryTokenizer.load`.

    Args:
        data: content of the tokenizer.json.
        config: content of the tokenizer_config.json, if there is one.
        options: see `Options`; they override the files.

    Attributes:
        vocab_size: highest id plus 1.
        unknown_id: id of everything that the vocabulary lacks; None if nothing is unknown, or is left out.
        start_id: the first of `before`, or None.
        end_id: id that ends a caption, or None: CLIPA's rows have none.
        before, after: ids at the beginning and the end of every row.
        pad_id, pad_left: id of the padding, and whether it precedes the caption.
        clean: name of the cleaning, or None.
        truncated: number of captions that a call has cut in this process.

    Raises:
        ImportError: the tokenizers library is not installed.
        ValueError: an argument is not one of the choices, or names a token that the vocabulary lacks.
        CheckpointError: the library cannot read the data, or the padding token is missing.
    """

    def __init__(self, data: Json, config: Json | None = None, **options: Unpack[Options]) -> None:
        super().__init__()
        check_options(options)
        config = config or {}
        _check_choice("clean", options.get("clean"), OPEN_CLIP_NORMALIZERS)
        _check_choice("padding_side", options.get("padding_side"), ("right", "left"))
        if config.get("truncation_side") == "left" or (data.get("truncation") or {}).get("direction") == "Left":
            raise CheckpointError("cuts long captions at their beginning; expected a tokenizer that cuts at their end")
        file_cleaning, normalizer = split_cleaning(data.get("normalizer"))
        self.clean = options.get("clean") or file_cleaning
        self._library = _library({**data, "normalizer": add_class_cleaning(normalizer, config)})
        self._add_specials(config)
        self.vocab_size = max(self._library.get_vocab().values()) + 1
        self.unknown_id = _unknown_id(data.get("model") or {}, self._library)
        processor = data.get("post_processor")
        self._special_tokens = parse_post_processor(processor)  # before and after a text
        separator = options.get("sep_token") or _token_name(config.get("sep_token"))
        self._sep_id = self._find_separator(options.get("strip_sep_token", False), separator)
        self.before, self.after = (
            tuple(0 if i == self._sep_id else i for _, i in tokens) for tokens in self._special_tokens
        )
        self.start_id = self.before[0] if self.before else None
        file_end = _token_name(config.get("eos_token")) or unused_token(processor)
        self.end_id = self._find_end(options.get("eos_token"), file_end)
        padding = data.get("padding") or {}
        config_pad = _token_name(config.get("pad_token"))
        self._pad_token, self.pad_id = self._find_padding(options.get("pad_token"), config_pad, padding)
        self._require_ids()
        default_side = "left" if class_name(config) in ("GemmaTokenizer", "Siglip2Tokenizer") else "right"
        side = options.get("padding_side") or config.get("padding_side") or padding.get("direction") or default_side
        self.pad_left = str(side).lower() == "left"

    @classmethod
    def load(cls, path: str | os.PathLike[str], **options: Unpack[Options]) -> "LibraryTokenizer":
        """Read a tokenizer.json, and tokenizer_config.json and special_tokens_map.json beside it.

        Args:
            path: the file, or its directory.
            options: see the class.

        Raises:
            FileNotFoundError: no such file.
            CheckpointError: a file is damaged, or the library cannot read it.
            ImportError, ValueError: see the class.
            TypeError: an option is not known.
        """
        file = Path(path)
        file = file / "tokenizer.json" if file.is_dir() else file
        if not os.path.lexists(file):
            raise FileNotFoundError(f"{file}: no such file; expected a tokenizer.json")
        return cls.from_parsed(file, files.read_json(file), **options)

    @classmethod
    def from_parsed(
        cls, file: Path, data: Any, use_config: bool = True, **options: Unpack[Options]
    ) -> "LibraryTokenizer":
        """Return the tokenizer of a file whose content has already been parsed, which takes seconds for large files."""
        check_options(options)
        config = _read_config(file.parent) if use_config else {}
        try:
            if not isinstance(data, dict) or "model" not in data:
                raise CheckpointError("not a tokenizer.json")
            return cls(data, config, **options)
        except (*INVALID_JSON, UnicodeEncodeError) as error:  # a token with half a surrogate pair
            raise CheckpointError(f"{file}: damaged, or not a tokenizer.json ({files.described(error)})") from error
        except CheckpointError as error:
            raise CheckpointError(f"{file}: {one_line(error, 1000)}") from error

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write tokenizer.json atomically; `load` needs no other file.

        Args:
            path: a file if the name ends in .json or the file exists; else a directory, created if it does not exist.
        """
        with library_errors("write itself"):
            data = json.loads(self._library.to_str())
        if self.clean:
            data["normalizer"] = prepend_cleaning(self.clean, data["normalizer"])
        data["padding"] = {
            "strategy": "BatchLongest",
            "direction": "Left" if self.pad_left else "Right",
            "pad_to_multiple_of": None,
            "pad_id": self.pad_id,
            "pad_type_id": 0,
            "pad_token": self._pad_token,
        }
        if self._sep_id is not None or self.end_id != self._default_end():
            data["post_processor"] = self._post_processor()
        files.write(path, data)

    def encode(self, text: str) -> list[int]:
        """Return the ids of a text, without those that begin and end a row, never cut."""
        if not isinstance(text, str):
            raise TypeError(f"the text is of type {type(text).__name__}; expected str")
        cleaned = replace_surrogates(OPEN_CLIP_CLEANERS[self.clean](text))  # the library refuses lone surrogates
        with library_errors("encode a text"):
            ids: list[int] = self._library.encode(cleaned, add_special_tokens=False).ids
        return ids if self._sep_id is None else [0 if index == self._sep_id else index for index in ids]

    def decode(self, ids: Iterable[int]) -> str:
        """Return the text of ids, without special tokens and the padding after an end token.

        Raises:
            ValueError: an id is not in the vocabulary.
        """
        row = check_ids(ids, self.vocab_size)
        if self.end_id in row:
            after_end = len(row) - row[::-1].index(self.end_id)
            row = row[:after_end] if set(row[after_end:]) <= {self.pad_id} else row
        special_ids = {index for tokens in self._special_tokens for _, index in tokens}
        with library_errors("decode ids"):
            plain = [token for token in row if token not in special_ids]
            return self._library.decode(plain, skip_special_tokens=True)

    def normalize(self, text: str) -> str:
        """Return the text after `encode` and `decode`; characters that the vocabulary lacks are lost."""
        return self.decode(self.encode(text))

    def __repr__(self) -> str:
        kind = type(self._library.model).__name__
        return f"LibraryTokenizer({kind}, vocab_size={self.vocab_size}, end_id={self.end_id}, clean={self.clean!r})"

    def _add_specials(self, config: Json) -> None:
        """Register the special tokens of the configuration, which transformers finds inside captions."""
        extra = config.get("extra_special_tokens") or config.get("additional_special_tokens")
        tokens = [value for key, value in config.items() if key.endswith("_token")]
        tokens += extra if isinstance(extra, list) else []
        names = [name for name in map(_token_name, tokens) if name and self._library.token_to_id(name) is not None]
        registered = {token.content for token in self._library.get_added_tokens_decoder().values()}
        with library_errors("add its special tokens"):
            self._library.add_special_tokens([name for name in names if name not in registered])

    def _find_separator(self, strip: bool, name: str | None) -> int | None:
        """Return the id that is replaced by 0, or None.

        In a file that `save` wrote, the post_processor has the id 0 for a token with another id.
        """
        before, after = self._special_tokens
        replaced = [token for token, index in (*before, *after) if index == 0 and self._library.token_to_id(token)]
        if replaced:
            return self._library.token_to_id(replaced[0])
        if not strip:
            return None
        name = name or (after[0][0] if after else None)
        if name is None:
            raise ValueError("strip_sep_token=True, but no file names the separator: pass sep_token=")
        return self._id_of("sep_token", name)

    def _default_end(self) -> int | None:
        return self.after[0] if self.after and not self._is_stripped(self._special_tokens[1][0]) else None

    def _is_stripped(self, token: NamedId) -> bool:
        return self._sep_id is not None and token[1] in (0, self._sep_id)

    def _find_end(self, option: str | None, file_token: str | None) -> int | None:
        if option is not None:
            end: int | None = self._id_of("eos_token", option)
        elif file_token is not None and self._library.token_to_id(file_token) is not None:
            end = self._library.token_to_id(file_token)
        else:
            end = self._default_end()
        return None if end == self._sep_id else end

    def _find_padding(self, option: str | None, config_token: str | None, padding: Json) -> NamedId:
        if option is not None:
            return option, self._id_of("pad_token", option)
        if config_token is not None:
            index = self._library.token_to_id(config_token)
            if index is None:
                raise CheckpointError(f"the pad_token {short(config_token)} is not in the vocabulary: pass pad_token=")
            return config_token, index
        if padding:
            index = self._library.token_to_id(padding["pad_token"])
            return padding["pad_token"], padding["pad_id"] if index is None else index
        for name in ("<pad>", "[PAD]"):
            if (index := self._library.token_to_id(name)) is not None:
                return name, index
        if self.end_id is None:
            raise CheckpointError("no padding token: pass pad_token=")
        return self._library.id_to_token(self.end_id) or "", self.end_id

    def _require_ids(self) -> None:
        """Raise CheckpointError if an id that the files name is not in the vocabulary."""
        for index in (*self.before, *self.after, self.pad_id):
            if type(index) is not int or not 0 <= index < self.vocab_size:
                raise CheckpointError(f"a special token has the id {short(index)}; expected 0 to {self.vocab_size - 1}")

    def _id_of(self, argument: str, name: str) -> int:
        index = self._library.token_to_id(name)
        if index is None:
            raise ValueError(f"{argument}={short(name)} is not in the vocabulary of {self.vocab_size} tokens")
        return index

    def _post_processor(self) -> Json:
        """Return a post_processor with 0 for a stripped separator; it names the end token if it does not use it."""
        before, after = (
            [(name, 0) if self._is_stripped((name, i)) else (name, i) for name, i in tokens]
            for tokens in self._special_tokens
        )
        unused: list[NamedId] = []
        if self.end_id is not None and self.end_id != self._default_end():
            unused.append((self._library.id_to_token(self.end_id) or "", self.end_id))
        return build_post_processor(before, after, unused)


def _library(data: Json) -> "tokenizers.Tokenizer":
    try:
        import tokenizers
    except ImportError as error:
        raise ImportError(
            'this tokenizer needs the tokenizers library: pip install "miniclip[tokenizers]"', name="tokenizers"
        ) from error
    check_content(data)
    with library_errors("read it"):
        return tokenizers.Tokenizer.from_str(json.dumps({**data, "padding": None, "truncation": None}))


def _unknown_id(model: Json, library: "tokenizers.Tokenizer") -> int | None:
    """Return the id of the unknown token, which a Unigram model gives by number and other models by name."""
    if model.get("unk_id") is not None:
        return int(model["unk_id"])
    return None if model.get("unk_token") is None else library.token_to_id(model["unk_token"])


def _read_config(directory: Path) -> Json:
    """Return tokenizer_config.json merged with special_tokens_map.json, with the precedence of transformers."""
    contents: list[Json] = []
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        file = directory / name
        value = files.read_json(file) if os.path.lexists(file) else {}
        if not isinstance(value, dict):
            raise CheckpointError(f"{file}: damaged; expected an object")
        contents.append(value)
    config, tokens = contents
    config = config if "added_tokens_decoder" in config else config | tokens
    return {"pad_token": "</s>", **config} if class_name(config) == "SiglipTokenizer" else config


def _token_name(token: Any) -> str | None:
    """Return the name of a token, which files write as a string or as an object."""
    value = token.get("content") if isinstance(token, dict) else token
    return value if isinstance(value, str) else None


def _check_choice(argument: str, value: str | None, choices: Iterable[str]) -> None:
    if value is not None and value not in choices:
        raise ValueError(f"{argument}={short(value)} is not one of the choices: {', '.join(choices)}")
