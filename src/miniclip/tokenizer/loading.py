"""The tokenizer of a checkpoint, of whatever kind: what is in its files decides.

CLIP's byte-level BPE is read by `Tokenizer`, which is this library's own; any other tokenizer.json by
`LibraryTokenizer`, through the tokenizers library.
"""

import os
from pathlib import Path
from typing import Unpack

from miniclip.errors import CheckpointError
from miniclip.tokenizer import files
from miniclip.tokenizer.bpe import END
from miniclip.tokenizer.clip import Tokenizer
from miniclip.tokenizer.files import find_tokenizer
from miniclip.tokenizer.library import LibraryTokenizer, Options, check_options

__all__ = ["find_tokenizer", "load_tokenizer"]


def load_tokenizer(path: str | os.PathLike[str], **options: Unpack[Options]) -> Tokenizer | LibraryTokenizer:
    """Read a tokenizer.

    Args:
        path: a tokenizer.json; a vocab.json with merges.txt beside it; OpenAI's file of merges; or the directory with
            one of these, looked for in this order.
        options: what the files do not say, as `tokenizer_kwargs` in an open_clip_config.json; see `LibraryTokenizer`.
            Of CLIP's kind, all cleaning lowercases; `clean` makes it OpenAI's, which mends the text too. A
            tokenizer.json of CLIP's kind that is to remove punctuation, to strip a token or to end by another one is
            read through the tokenizers library as well.

    Raises:
        FileNotFoundError: there is no such file, or no tokenizer in the directory.
        CheckpointError: a file is damaged, or of a kind that is not read here.
        ImportError: the tokenizers library is needed, and not installed.
        ValueError, TypeError: an option is none of the choices, or does not fit the kind of tokenizer.
    """
    check_options(options)
    file = _file(Path(path))
    ours = options.get("clean") in (None, "whitespace", "lower") and not options.get("strip_sep_token")
    ours = ours and options.get("eos_token") in (None, END)
    data = files.read_json(file)
    if isinstance(data, dict) and "model" in data and not (ours and files.is_clip(data)):
        return LibraryTokenizer.from_parsed(file, data, **options)
    if not ours:
        raise ValueError(f"{file}: {options} does not fit a tokenizer of CLIP's kind; expected a tokenizer.json for it")
    tokenizer = Tokenizer.load(file)
    if options.get("clean"):
        return Tokenizer(tokenizer.vocab, tokenizer.merges, openai_cleaning=True)
    return tokenizer


def _file(path: Path) -> Path:
    """The file at a path, or the one to read in a directory."""
    found = find_tokenizer(path) if path.is_dir() else path
    pieces = sorted(path.glob("*.model")) if found is None else [path] if path.suffix == ".model" else []
    if pieces:
        raise CheckpointError(
            f"{pieces[0]}: a sentencepiece file, which is not read here. Make a tokenizer.json of it once, with "
            f"transformers and sentencepiece: transformers.AutoTokenizer.from_pretrained({str(pieces[0].parent)!r})"
            ".backend_tokenizer.save('tokenizer.json') (for SigLIP and mT5, T5Tokenizer and extra_ids=0)"
        )
    if found is None or not found.is_file():
        raise FileNotFoundError(
            f"{path}: no tokenizer; expected a tokenizer.json, vocab.json with merges.txt, or OpenAI's merges"
        )
    return found
