"""Inspection of pickles before they are loaded, without running them: their size, nested tuples, unusual globals.

`torch.load(weights_only=True)` runs no code, but it hashes the keys of dictionaries, and the hash of a tuple walks over
all that is nested in it. In a hundred bytes, tuples that each hold the one before twice take longer than any lifetime.
"""

from __future__ import annotations

import pickletools
import re
from collections.abc import Iterator
from io import BytesIO

from miniclip.checkpoints.formats.training_files import HARMLESS
from miniclip.errors import CheckpointError

USUAL_GLOBALS = r"collections\.OrderedDict|torch\.\w+|torch\.(_utils|storage)\.\w+|torch\.nn\.parameter\.Parameter"
LEGACY_PICKLES = 5  # in the older format: a number, a version, facts of the machine, the object, its storages
MAX_PICKLE = 32 << 20  # bytes; the pickle of 1,000 tensors has 130 KiB
MAX_OPERATIONS = 5_000_000  # each can make an object of 100 bytes
MAX_NESTED = 10_000  # values in a tuple, all levels counted
MAX_HASHED = 10_000_000  # values in all tuples that dictionaries may hash
HASHING = ("SETITEM", "SETITEMS", "DICT", "REDUCE", "NEWOBJ", "APPEND", "APPENDS", "LIST")  # OrderedDict takes lists
HOSTILE = "describes no state dict: it is damaged, or made to exhaust time or memory"


def check_pickles(data: bytes, count: int) -> None:
    """Check the first `count` pickles in some bytes.

    Raises:
        CheckpointError: loading them would take too much time or memory.
    """
    if len(data) > MAX_PICKLE:
        raise CheckpointError(f"its pickle is longer than {MAX_PICKLE >> 20} MiB and {HOSTILE}")
    stream = BytesIO(data)
    try:
        for _ in range(count):
            _check_pickle(stream)
    except CheckpointError:
        raise
    except Exception:  # not a pickle, which torch reports, or longer than the data
        if len(data) == MAX_PICKLE == stream.tell():
            raise CheckpointError(f"its pickle is longer than {MAX_PICKLE >> 20} MiB and {HOSTILE}") from None


def _check_pickle(stream: BytesIO) -> None:
    """Follow the operations of a pickle, with numbers on the stack: for a tuple the values in it, for others 1."""
    stack: list[int] = []
    marks: list[int] = []  # lengths of the stack at the open marks
    memo: dict[int, int] = {}
    hashed = 0
    for count, (operation, argument, _) in enumerate(pickletools.genops(stream)):
        name, before = operation.name, operation.stack_before
        if name == "MARK":
            marks.append(len(stack))
        elif name in ("BINGET", "LONG_BINGET", "GET"):
            stack.append(memo.get(int(argument or 0), 1))
        elif name in ("BINPUT", "LONG_BINPUT", "PUT", "MEMOIZE"):
            memo[len(memo) if argument is None else int(argument)] = stack[-1] if stack else 1
        else:
            has_mark = pickletools.markobject in before
            below = before.index(pickletools.markobject) if has_mark else 0  # the list or dictionary that is filled
            start = (marks.pop() if marks else 0) if has_mark else max(0, len(stack) - len(before))
            values = sum(stack[start:])
            del stack[max(0, start - below) :]
            stack += [1 + values if "TUPLE" in name else 1] * len(operation.stack_after)
            if name in HASHING:
                hashed += values
            if ("TUPLE" in name and values > MAX_NESTED) or hashed > MAX_HASHED or count > MAX_OPERATIONS:
                raise CheckpointError(f"its pickle {HOSTILE}")


def unusual_globals(data: bytes) -> Iterator[str]:
    """Yield the globals in a file's pickles that plain tensors do not need, in all protocols."""
    stream, texts = BytesIO(data), ["?", "?"]
    while True:  # the older format is a sequence of pickles
        try:
            for operation, argument, _ in pickletools.genops(stream):
                if isinstance(argument, str):
                    texts.append(argument)
                if operation.name in ("GLOBAL", "STACK_GLOBAL"):
                    name = ".".join(texts[-2:]) if operation.name == "STACK_GLOBAL" else texts[-1].replace(" ", ".")
                    if name not in HARMLESS and not re.fullmatch(USUAL_GLOBALS, name):
                        yield name
        except Exception:  # not a pickle, or the end
            return
