"""Collections that a user passes, as lists of items; refused if their items or their order are not certain."""

from __future__ import annotations

import math
from collections.abc import ItemsView, Iterable, KeysView, Mapping
from collections.abc import Set as AbstractSet
from typing import Any

TEXTS = "strings in a list, an array, a column of a table or a generator"
# Iterating over a table yields the names of its columns, or rows as dicts: not the items that its user means.
TABLE_ATTRIBUTES = ("columns", "column_names")  # in pandas, polars, pyarrow, datasets


def describe(value: Any) -> str:
    """Return a short description for an error message: "an int", "a Tensor (3, 4) of float32"."""
    if isinstance(value, type):
        return f"the class {value.__name__}"
    kind = {"ndarray": "array"}.get(type(value).__name__, type(value).__name__)
    shape, dtype = getattr(value, "shape", None), getattr(value, "dtype", None)
    text = f"{'an' if kind[0] in 'aeiouAEIOU' else 'a'} {kind}" + (f" {(*shape,)}" if isinstance(shape, tuple) else "")
    return text if dtype is None else f"{text} of {str(dtype).removeprefix('torch.')}"


def listed(items: Any, name: str, expected: str) -> list[Any]:
    """Return the items of an ordered collection of one dimension as a list.

    Args:
        items: a list, an array, a column of a table, a view of a dict, a generator or any other iterable.
        name: of the argument, for error messages.
        expected: description of valid values, for error messages.

    Raises:
        TypeError: the items are a table, a dict, a set or an array of another number of dimensions, or no collection.
    """
    refuse_unordered(items, name, expected)
    shape = getattr(items, "shape", None)
    if not isinstance(items, Iterable) or (isinstance(shape, tuple) and len(shape) != 1):
        raise TypeError(f"{name}: found {describe(items)}; expected {expected}")
    if isinstance(items, list):
        return items
    return list(items.to_pylist() if hasattr(items, "to_pylist") else items)  # pyarrow's items are objects of its own


def refuse_tables(items: Any, name: str, expected: str) -> None:
    """Raise TypeError for a table or a dict, whose items are the names of columns or the keys."""
    start = f"{name}: found {describe(items)}"
    if any(hasattr(type(items), attribute) for attribute in TABLE_ATTRIBUTES):
        raise TypeError(f"{start}, a table; expected {expected}: pass one of its columns, as in table['name']")
    if isinstance(items, Mapping):
        raise TypeError(f"{start}; expected {expected}: pass its values, list(x.values()), or one of them")


def refuse_unordered(items: Any, name: str, expected: str) -> None:
    """Raise TypeError for a table, a dict or a set: their items, or the order of these, are not certain."""
    refuse_tables(items, name, expected)
    if isinstance(items, AbstractSet) and not isinstance(items, KeysView | ItemsView):
        start = f"{name}: found {describe(items)}, which has no order"
        raise TypeError(f"{start}; expected {expected}: pass sorted(x), and keep the order")


def strings(texts: Any, name: str) -> list[str]:
    """Return the strings of a collection as a list; one string is a list of one.

    Args:
        texts: a string, or strings in any collection that `listed` takes.
        name: of the argument, for error messages.

    Raises:
        TypeError: `listed` refuses the collection, or an item is not a string.
    """
    if getattr(texts, "shape", None) == () and hasattr(texts, "item"):
        texts = texts.item()  # an array of no dimension
    if isinstance(texts, str):
        return [texts]
    items = listed(texts, name, f"a string, or {TEXTS}")
    for index, item in enumerate(items):
        if not isinstance(item, str):
            raise TypeError(f"{name}: item {index} is {describe(item)}; expected a string{_advice(item)}")
    return items


def is_missing(item: Any) -> bool:
    """Return whether an item is the empty cell of a table: None, NaN or pandas' NA."""
    return item is None or type(item).__name__ == "NAType" or (isinstance(item, float) and math.isnan(item))


def _advice(item: Any) -> str:
    if isinstance(item, bytes | bytearray):
        return ": decode it, as in text.decode('utf-8')"
    if is_missing(item):
        return ": the cell is empty; drop it, as in column.dropna()"
    if isinstance(item, list | tuple) or hasattr(item, "shape"):
        return ": pass one flat list of strings; token ids are one tensor (N, T)"
    return ""
