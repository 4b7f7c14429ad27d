"""Loading of a checkpoint's tokenizer, of any kind, detected from its files.

`Tokenizer` reads CLIP's byte-level BPE; `LibraryTokenizer` reads any other tokenizer.json.
"""

import os
from pathlib import Path
from typing import Unpack

from miniclip.errors import CheckpointError
from miniclip.tokenizer import files
from miniclip.tokenizer.bpe import END
from miniclip.tokenizer.clip import Tokenizer
from miniclip.tokenizer.library import LibraryTokenizer, Options, check_options
from miniclip.tokenizer.tokenizer_json import is_clip


def load_tokenizer(
    path: str | os.PathLike[str], *, use_config: bool = True, **options: Unpack[Options]
) -> Tokenizer | LibraryTokenizer:
    """Read a tokenizer.

    Args:
        path: a tokenizer.json; a vocab.json with merges.txt beside it; OpenAI's file of merges; or a directory with
            one of these, searched in this order.
        use_config: also read tokenizer_config.json and special_tokens_map.json beside the file. A tokenizer.json that
            miniclip wrote needs neither, and files of another checkpoint may lie there.
        options: settings that the files lack, such as `tokenizer_kwargs` of an open_clip_config.json; see
            `LibraryTokenizer`. With `clean`, a tokenizer of CLIP's kind cleans as OpenAI did. If it must also remove
            punctuation, strip a token, end with another one or pad on the left, `LibraryTokenizer` reads its
            tokenizer.json.

    Raises:
        FileNotFoundError: no such file, or no tokenizer in the directory.
        CheckpointError: a file is damaged, or of an unknown kind.
        ImportError: the tokenizers library is needed, but not installed.
        ValueError: an option is not one of the choices, or does not fit the kind of tokenizer.
        TypeError: an option is not known.
    """
    check_options(options)
    file = _tokenizer_file(Path(path))
    fits_clip = (
        options.get("clean") in (None, "whitespace", "lower")
        and not options.get("strip_sep_token")
        and options.get("eos_token") in (None, END)
        and options.get("padding_side") in (None, "right")
    )
    data = files.read_json(file)
    if isinstance(data, dict) and "model" in data and not (fits_clip and is_clip(data)):
        return LibraryTokenizer.from_parsed(file, data, use_config, **options)
    if not fits_clip:
        raise ValueError(f"{file}: {options} does not fit a tokenizer of CLIP's kind; expected a tokenizer.json for it")
    tokenizer = Tokenizer.load(file)
    if options.get("clean"):
        return Tokenizer(tokenizer.vocab, tokenizer.merges, openai_cleaning=True)
    return tokenizer


def _tokenizer_file(path: Path) -> Path:
    """Return the file at a path, or the one to read in a directory."""
    file = files.find_tokenizer(path) if path.is_dir() else path
    sentencepiece = sorted(path.glob("*.model")) if file is None else [path] if path.suffix == ".model" else []
    if sentencepiece:
        raise CheckpointError(
            f"{sentencepiece[0]}: cannot read sentencepiece files. Make a tokenizer.json of it once, with transformers "
            f"and sentencepiece: transformers.AutoTokenizer.from_pretrained({str(sentencepiece[0].parent)!r})"
            ".backend_tokenizer.save('tokenizer.json') (for SigLIP and mT5, T5Tokenizer and extra_ids=0)"
        )
    if file is None or not os.path.lexists(file):
        raise FileNotFoundError(
            f"{path}: no tokenizer; expected a tokenizer.json, vocab.json with merges.txt, or OpenAI's merges"
        )
    return file
