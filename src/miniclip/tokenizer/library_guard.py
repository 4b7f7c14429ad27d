"""Guard around the tokenizers library, which is written in Rust and does not survive every tokenizer.json.

On some files it panics, which is a BaseException in Python. On others it aborts the process, or takes all memory and
aborts then. These are refused before it reads them. Found with version 0.23.3, by mutating files of all its models:

- Saving and pickling list every unused id between the tokens: with an id of 2^31 it aborts. (2^32 - 1 loses tokens.)
- A merge whose second token does not begin with the prefix of the model is cut inside a character.
- Steps that lengthen the text multiply: nine replacements of each character by ten make 10^9 characters of one.
- The length of a precompiled table's index is allocated before it is compared with the table.
"""

import base64
import binascii
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from miniclip.errors import CheckpointError
from miniclip.utils.formatting import one_line, short

Json = dict[str, Any]

STEPS = ("normalizer", "pre_tokenizer", "post_processor", "decoder")
MAX_PARTS = 20_000  # objects and lists in one of the STEPS
MAX_UNUSED_IDS = 1 << 16
MAX_GROWTH = 100_000  # characters that the steps make of one, if all of them lengthen it


@contextmanager
def library_errors(doing: str) -> Iterator[None]:
    """Raise an error or a panic of the library as `CheckpointError`.

    Args:
        doing: what the library cannot do, for the message.
    """
    try:
        yield
    except (KeyboardInterrupt, SystemExit, GeneratorExit):
        raise
    except BaseException as error:  # the panic is not an Exception
        raise CheckpointError(f"the tokenizers library cannot {doing} ({one_line(error)})") from error


def check_content(data: Json) -> None:
    """Refuse the content of a tokenizer.json that the library would not survive.

    Raises:
        CheckpointError: the content is damaged or hostile; the message names the part.
    """
    model = data["model"]
    vocab = model.get("vocab") if isinstance(model, dict) else None
    if not isinstance(vocab, dict | list):
        raise CheckpointError("its model has no vocabulary")
    ids = vocab.values() if isinstance(vocab, dict) else range(len(vocab))
    if not ids:
        raise CheckpointError("the vocabulary is empty")
    added = [token["id"] for token in data.get("added_tokens") or []]
    for index in (*ids, *added):
        if type(index) is not int or not 0 <= index < len(ids) + len(added) + MAX_UNUSED_IDS:
            raise CheckpointError(f"a token has the id {short(index)}, in a vocabulary of {len(ids)} tokens")
    if len(set(ids)) < len(ids):
        raise CheckpointError("two tokens of the vocabulary have the same id")
    _check_merges(model)
    growth = {name: _check_step(name, data.get(name)) for name in STEPS}
    if max(growth["normalizer"] * growth["pre_tokenizer"], growth["decoder"]) > MAX_GROWTH:
        raise CheckpointError("its steps lengthen a text without limit")


def _check_merges(model: Json) -> None:
    """Refuse merges whose second token does not begin with the prefix of tokens inside a word."""
    prefix = model.get("continuing_subword_prefix")
    if not isinstance(prefix, str) or not prefix:
        return
    for merge in model.get("merges") or []:
        second = merge.split(" ")[-1] if isinstance(merge, str) else merge[1]
        if not second.startswith(prefix):
            raise CheckpointError(
                f"the merge {short(merge)} does not have the prefix {short(prefix)} in its second token"
            )


def _check_step(name: str, step: Any) -> float:
    """Check the parts of a normalizer, pre_tokenizer, post_processor or decoder; return its growth of a text."""
    level, count, growth = [step], 0, 1.0
    while level:
        count += len(level)
        if count > MAX_PARTS:
            raise CheckpointError(f"the {name} has more than {MAX_PARTS} parts")
        inner: list[Any] = []
        for part in level:
            if isinstance(part, dict):
                growth *= _check_part(name, part)
                inner += part.values()
            elif isinstance(part, list):
                inner += part
        level = [part for part in inner if isinstance(part, dict | list)]
    return growth


def _check_part(name: str, part: Json) -> float:
    """Check one step; return the most characters that it makes of one."""
    if part.get("Regex") == "" or part.get("String") == "":
        raise CheckpointError(f"the {name} has an empty pattern, which matches everywhere")
    match part.get("type"):
        case "Replace":
            pattern, content = part.get("pattern"), str(part.get("content") or "")
            literal = pattern.get("String") if isinstance(pattern, dict) else None
            length = len(literal) if isinstance(literal, str) else None
            return max(1.0, len(content) / length if length else 1.0 + len(content))
        case "Prepend":
            return 1.0 + len(str(part.get("prepend") or ""))
        case "ByteLevel":
            return 2.0
        case "Precompiled":
            return _check_charsmap(name, part.get("precompiled_charsmap"))
        case _:
            return 1.0


def _check_charsmap(name: str, text: Any) -> float:
    """Refuse a table of characters whose first number, the bytes of its index, is not within it.

    Returns:
        The length of its longest text. After the index, the texts end in zero bytes.
    """
    try:
        data = base64.b64decode(text or "", validate=True)
    except (TypeError, ValueError, binascii.Error):
        raise CheckpointError(f"the precompiled_charsmap of the {name} is not base64") from None
    start = 4 + int.from_bytes(data[:4], "little")
    if start > len(data) > 0:
        raise CheckpointError(f"the precompiled_charsmap of the {name} is damaged: its index is longer than the table")
    return max(1.0, *map(len, data[start:].split(b"\0")))
