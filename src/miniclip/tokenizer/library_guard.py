"""Guard around the tokenizers library, which is written in Rust and does not survive every tokenizer.json.

On some files it panics, which is a BaseException in Python. On others it aborts the process or takes all memory. These
are refused before it reads them. Found with version 0.23 by mutating the files of its own tests; the tests have the
smallest input for each check.
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
MAX_DEPTH = 16  # each level of a sequence in a sequence doubles the time; real files have at most 6 levels
MAX_PARTS = 20_000  # objects and lists in one of the STEPS
MAX_UNUSED_IDS = 1 << 16  # between the tokens; saving lists every one of them


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
        raise CheckpointError("there is no vocabulary in its model")
    ids = vocab.values() if isinstance(vocab, dict) else range(len(vocab))
    if not ids:
        raise CheckpointError("the vocabulary is empty")
    added = [token["id"] for token in data.get("added_tokens") or []]
    for index in (*ids, *added):
        if type(index) is not int or not 0 <= index < len(ids) + len(added) + MAX_UNUSED_IDS:
            raise CheckpointError(f"a token has the id {short(index)}, in a vocabulary of {len(ids)} tokens")
    for name in STEPS:
        _check_step(name, data.get(name))


def _check_step(name: str, step: Any) -> None:
    level, depth, parts = [step], 0, 0
    while level:
        depth, parts = depth + 1, parts + len(level)
        if depth > MAX_DEPTH or parts > MAX_PARTS:
            raise CheckpointError(f"the {name} is nested {depth} levels deep, with {parts} parts or more")
        inner: list[Any] = []
        for part in level:
            if isinstance(part, dict):
                _check_part(name, part)
            inner += part.values() if isinstance(part, dict) else part if isinstance(part, list) else ()
        level = [part for part in inner if isinstance(part, dict | list)]


def _check_part(name: str, part: Json) -> None:
    if part.get("Regex") == "" or part.get("String") == "":
        raise CheckpointError(f"the {name} has an empty pattern, which matches everywhere without end")
    if "precompiled_charsmap" in part:
        _check_charsmap(name, part["precompiled_charsmap"])


def _check_charsmap(name: str, text: Any) -> None:
    """Refuse a table of characters whose first number, the bytes of its index, is not within it."""
    try:
        data = base64.b64decode(text or "", validate=True)
    except (TypeError, ValueError, binascii.Error):
        raise CheckpointError(f"the precompiled_charsmap of the {name} is not base64") from None
    if text and not 4 <= int.from_bytes(data[:4], "little") + 4 <= len(data):
        raise CheckpointError(f"the precompiled_charsmap of the {name} is damaged: its index is longer than the table")
