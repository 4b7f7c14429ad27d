"""Captions in a cell of a table: one text, or a list as JSON, Python, numpy and pandas write it.

A cell that looks like a list and is not exactly one has no certain meaning. numpy writes two captions as
`['a dog' 'a cat']`, which is one, "a doga cat", to a parser of Python.
"""

from __future__ import annotations

import ast
import json
import math
import re
import warnings
from collections.abc import Iterable, Sequence

_QUOTED = r"""(?:'[^'\\\n]*(?:\\.[^'\\\n]*)*'|"[^"\\\n]*(?:\\.[^"\\\n]*)*")"""
_ITEM = re.compile(rf"np\.str_\((?P<numpy>{_QUOTED})\)|(?P<python>{_QUOTED})|None|nan|<NA>")
_SEPARATOR = re.compile(r"\s*,\s*|\s+")
_ARRAY = re.compile(r"array\(\s*(\[.*\])\s*(?:,\s*dtype=[^\[\]]*)?\)", re.DOTALL)
_PANDAS = re.compile(r"<\w+Array>\s*(\[.*\])\s*Length: (\d{1,9}), dtype: \S+", re.DOTALL)
_MAYBE_LIST = re.compile(r"[\[{(]|<\w+Array>|\w[\w.]*\(\s*[\[{(]")
_LIST_START = re.compile(r"""<\w+Array>\s*\[|array\(\s*\[|\[\s*(?:b?['"]|np\.str_\()|[\w.]*\(\s*[\[{(]+\s*['"]""")
_CLOSING = {"[": "]", "{": "}", "(": ")"}


def read_cell(cell: object) -> tuple[list[object], str | None]:
    """Return the captions of a cell, and the problem if it looks like a list and is not exactly one."""
    if isinstance(cell, list | tuple):
        return list(cell), None
    if not isinstance(cell, str):
        return [cell], None
    text = cell.strip()
    if not _MAYBE_LIST.match(text):
        return [cell], None
    captions = parse_list(text)
    if captions is not None:
        return list(captions), None
    if not _looks_like_list(text):
        return [cell], None
    shown = text if len(text) <= 80 else text[:80] + "…"
    return [], (
        f"the caption {shown!r} looks like a list of strings, and is not exactly one; write a list as "
        '["one", "two"], and a text in brackets as ["[text]"]'
    )


def read_quoted_list(cell: object) -> tuple[list[object], str | None]:
    """Return the captions of a cell as `read_cell` does; text of the web in brackets, such as "[photo]", stays text."""
    is_text = isinstance(cell, str) and not _LIST_START.match(cell.strip())
    return ([cell], None) if is_text else read_cell(cell)


def read_cells(cells: Iterable[object]) -> tuple[list[object], str | None]:
    """Return the captions of a row's cells, and the first problem, as `read_cell` does."""
    captions: list[object] = []
    for cell in cells:
        texts, problem = read_cell(cell)
        if problem is not None:
            return [], problem
        captions += texts
    return captions, None


def parse_list(text: str) -> list[str | None] | None:
    """Parse a list of strings in JSON's, Python's or numpy's notation; return None for any other text.

    A tuple and a set of Python are lists, and None, NaN and null are items without a text.
    """
    text = text.strip()
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return _parse_python(text)
    is_list = isinstance(value, list) and all(item is None or isinstance(item, str) for item in value)
    return value if is_list else None


def _parse_python(text: str) -> list[str | None] | None:
    """Parse what Python, numpy or pandas writes; numpy puts white space or commas between the items."""
    pandas = _PANDAS.fullmatch(text)
    if pandas:  # quotes and backslashes in its items are not escaped, but the number of items is certain
        inner = None if "\\" in text else _parse_python(pandas[1])
        return inner if inner is not None and len(inner) == int(pandas[2]) else None
    array = _ARRAY.fullmatch(text)
    text = array[1] if array else text
    if len(text) < 2 or _CLOSING.get(text[0]) != text[-1]:
        return None
    body, position = text[1:-1].strip(), 0
    items: list[str | None] = []
    separators = set()
    while position < len(body):
        item = _ITEM.match(body, position)
        if item is None:
            return None
        quoted = item["numpy"] or item["python"]
        try:
            items.append(None if quoted is None else _unquote(quoted))
        except (ValueError, SyntaxError):
            return None
        position = item.end()
        separator = _SEPARATOR.match(body, position)
        if separator is not None:
            separators.add("," in separator[0])
            position = separator.end()
        elif position < len(body):
            return None
    expected = {"[": ([], [False], [True]), "{": ([], [True]), "(": ([True],)}[text[0]]
    return items if sorted(separators) in expected and (items or text[0] == "[") else None


def _unquote(quoted: str) -> str:
    if "\\" not in quoted:
        return quoted[1:-1]
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # an escape that Python does not write
        return str(ast.literal_eval(quoted))


def _looks_like_list(text: str) -> bool:
    """Return whether a text begins as a list of quoted strings does, or is in one pair of brackets or braces."""
    if _LIST_START.match(text):
        return True
    closing = _CLOSING.get(text[0])
    if closing not in ("]", "}") or text[-1] != closing:
        return False
    depth = 0
    for position, character in enumerate(text):
        depth += (character == text[0]) - (character == closing)
        if depth == 0:
            return position == len(text) - 1
    return False


def optional_text(value: object) -> str | None:
    """Return a name or a split as text; None if the cell is blank, null or NaN."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return None
    return str(value).strip() or None


def name_labels(value: object, names: Sequence[str]) -> object:
    """Replace class labels, numbers from 0 on, by their names, in lists too; -1 stands for none.

    Raises:
        ValueError: a label has no name.
    """
    if isinstance(value, list):
        return [name_labels(item, names) for item in value]
    if not isinstance(value, int) or isinstance(value, bool):
        return value
    if not -1 <= value < len(names):
        raise ValueError(f"the class label {value} has no name: the column has {len(names):,} names; correct the label")
    return None if value == -1 else names[value]
