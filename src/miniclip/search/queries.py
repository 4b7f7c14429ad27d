"""Queries: sums of texts and images with weights, such as `2*beach + sunset.jpg - "people"`.

    query    = ["+" | "-"] term {("+" | "-") term}     a sign has a space on both sides, the first one after it
    term     = [weight "*"] item                       a weight is a positive number, such as 2 or 0.5
    item     = text | ["text:"] '"' text '"' | "text:" text | "image:" path | "image:" '"' path '"'

An item without quotes or prefix is an image if it is the path of a file, and a text otherwise. A sign inside a word,
as in "t-shirt", is part of it. A backslash before a quote keeps the quote. Letters: Q queries, E embedding.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from miniclip.inference.model import CLIPModel
from miniclip.inference.zero_shot import Template, class_embeddings
from miniclip.utils.items import describe

SIGN = re.compile(r"[+-](?=\s|$)")
OPERATOR = re.compile(r"\s+[+-](?=\s|$)")
WEIGHT = re.compile(r"(\d+(?:\.\d*)?|\.\d+)\s*\*\s*")
PREFIX = re.compile(r"(text|image):\s*")
QUOTED = re.compile(r'"((?:[^"\\]|\\.)*)"')
IMAGE_NAME = re.compile(r"\S+\.(jpe?g|png|webp|gif|bmp|tiff?|heic|heif|avif)", re.IGNORECASE)
MIN_LENGTH = 1e-4  # smallest length of a sum of unit vectors; a shorter one is the rounding of terms that cancel


@dataclass(frozen=True)
class Term:
    """One text or image of a query.

    Attributes:
        weight: factor of its unit vector; negative after a minus sign.
        text: the text, or None.
        image: path, PIL image or bytes of an image file, or None.
    """

    weight: float
    text: str | None = None
    image: Any = None


@dataclass(frozen=True)
class Query:
    """Weighted sum of texts and images.

    Attributes:
        terms: at least one.
    """

    terms: tuple[Term, ...]

    @classmethod
    def of(cls, query: Any) -> Query:
        """Return a query of an expression, a path, an image or a query.

        Args:
            query: a string is an expression, as described above; a Path, a PIL image or bytes are an image.

        Raises:
            ValueError: the expression is wrong.
            FileNotFoundError: an image does not exist.
            TypeError: the query is something else.
        """
        if isinstance(query, Query):
            return query
        if isinstance(query, str):
            return parse(query)
        if isinstance(query, Path | Image.Image | bytes):
            if isinstance(query, Path):
                _require_file(query, str(query))
            return cls((Term(1.0, image=query),))
        raise TypeError(f"query: found {describe(query)}; expected a string, a Path, a PIL image or a vector (E,)")

    def vector(self, model: CLIPModel, templates: Template | Iterable[Template] | None = None) -> Tensor:
        """Return the unit vector (E,) of the query, as `query_vectors`."""
        return query_vectors(model, [self], templates)[0]


def query_vectors(
    model: CLIPModel, queries: Sequence[Query], templates: Template | Iterable[Template] | None = None
) -> Tensor:
    """Return the unit vectors of queries: all texts are encoded together, and all images.

    Args:
        model: encodes the texts and images.
        queries: Q queries.
        templates: prompts with one `{}` in place of a text, whose embeddings are averaged; None: the text itself.

    Returns:
        (Q, E) float32 on the CPU, the normalised sums of weighted unit vectors.

    Raises:
        ValueError: the terms of a query cancel.
        DataError: an image cannot be read.
    """
    terms = [term for query in queries for term in query.terms]
    texts = list(dict.fromkeys(term.text for term in terms if term.text is not None))
    images = [term.image for term in terms if term.text is None]
    rows_of_texts, rows_of_images = {}, []
    if texts:
        embeddings = class_embeddings(model.encode_text, texts, "{}" if templates is None else templates)
        rows_of_texts = dict(zip(texts, embeddings.cpu().double(), strict=True))
    if images:
        rows_of_images = list(model.encode_image(images, num_workers=0 if len(images) == 1 else None).cpu().double())
    remaining = iter(rows_of_images)
    vectors = []
    for query in queries:
        parts = [
            term.weight * (next(remaining) if term.text is None else rows_of_texts[term.text]) for term in query.terms
        ]
        vectors.append(direction(torch.stack(parts).sum(0), max(abs(term.weight) for term in query.terms)))
    return torch.stack(vectors).float()


def direction(vector: Tensor, scale: float) -> Tensor:
    """Return the vector (E,) of a query at length 1.

    Args:
        vector: sum of its terms.
        scale: the largest weight of a term.

    Raises:
        ValueError: the terms cancel.
    """
    length = float(vector.norm())
    if not length > MIN_LENGTH * scale:
        raise ValueError("query: its terms cancel, so that nothing remains to search for; change a term or its weight")
    return vector / length


def parse(text: str, files: bool = True) -> Query:
    """Parse an expression.

    Args:
        text: the expression; as a whole, it can also be the path of a file.
        files: take the paths of files as images. False: all items are texts, for queries of other people.

    Raises:
        ValueError: the expression is wrong; the message names the position.
        FileNotFoundError: an item is the name of an image that does not exist.
    """
    if files and _is_file(text):
        return Query((Term(1.0, image=Path(text)),))
    terms: list[Term] = []
    position = len(text) - len(text.lstrip())
    while position < len(text) or not terms:
        factor = 1.0
        if sign := SIGN.match(text, position):
            factor = -1.0 if sign[0] == "-" else 1.0
            position = _after_spaces(text, sign.end())
        elif terms:
            raise _error(text, position, "expected + or - before it")
        if weight := WEIGHT.match(text, position):
            factor *= float(weight[1])
            if not factor:
                raise _error(text, position, "a weight of zero removes its term; expected a positive number")
            position = weight.end()
        term, position = _item(text, position, factor, files)
        terms.append(term)
        position = _after_spaces(text, position)
    return Query(tuple(terms))


def _item(text: str, position: int, factor: float, files: bool) -> tuple[Term, int]:
    """Return the term at a position, and the end of it."""
    start, kind = position, None
    if prefix := PREFIX.match(text, position):
        kind, position = prefix[1], prefix.end()
    if quoted := QUOTED.match(text, position):
        value, position = re.sub(r'\\(["\\])', r"\1", quoted[1]), quoted.end()
        if position < len(text) and not text[position].isspace():
            raise _error(text, position, "expected a space after the closing quote")
        kind = kind or "text"
    else:
        value, position = _unquoted(text, position)
    if not value.strip():
        raise _error(text, start, "expected a text or an image there")
    if kind == "image" and not files:
        raise _error(text, start, "files are not opened here; expected a text")
    if kind == "image" or (kind is None and files and _is_image(value)):
        _require_file(Path(value), value)
        return Term(factor, image=Path(value)), position
    return Term(factor, text=value.strip()), position


def _unquoted(text: str, position: int) -> tuple[str, int]:
    """Return the words up to the next sign, and the end of them."""
    operator = OPERATOR.search(text, max(0, position - 1))
    end = operator.start() if operator else len(text)
    value = text[position:end].rstrip()
    if '"' in value:
        raise _error(text, position + value.index('"'), 'a quote opens or ends an item; inside one, write \\"')
    if value[:1] in ("+", "-"):
        raise _error(text, position, f"expected a space after {value[0]}, or quotes around a text that begins with it")
    return value, max(position, end)


def _is_image(value: str) -> bool:
    """Return whether an item is a path, even of a folder, or has the form of an image's name."""
    is_folder = "/" in value and "\0" not in value and Path(value).is_dir()
    return is_folder or _is_file(value) or IMAGE_NAME.fullmatch(value) is not None


def _is_file(value: str) -> bool:
    try:
        return os.path.isfile(value)  # noqa: PTH113  (a Path drops the slash at the end)
    except ValueError:  # a null character
        return False


def _require_file(path: Path, value: str) -> None:
    if path.is_dir():
        raise ValueError(f"query: {value} is a folder; expected an image file, or quotes around a text")
    if not path.is_file():
        raise FileNotFoundError(f"query: {value}: no such image file; to search for this text, put it in quotes")


def _after_spaces(text: str, position: int) -> int:
    return position + len(text[position:]) - len(text[position:].lstrip())


def _error(text: str, position: int, expected: str) -> ValueError:
    """Return the error of a wrong expression, with the position counted from 1."""
    found = repr(text[position : position + 20]) if text[position:].strip() else "the end"
    return ValueError(f"query {text!r}: found {found} at position {position + 1}: {expected}")
