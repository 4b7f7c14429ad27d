"""Prompt templates: a small set of general ones, and a reader for the files that people have.

A template is a text with one `{}` in place of the class name.
"""

from __future__ import annotations

import ast
import json
import re
from pathlib import Path
from typing import Any

from miniclip.utils.files import read_limited

PHOTO_TEMPLATES = (
    "a photo of a {}.",
    "a close-up photo of a {}.",
    "a photo of a small {}.",
    "a photo of a large {}.",
    "a dark photo of a {}.",
    "a bright photo of a {}.",
    "a drawing of a {}.",
    "an image that shows a {}.",
)
_FIELD = re.compile(r"(?<!\{)\{\w*\}(?!\})")


def read_templates(path: str | Path) -> list[str]:
    """Read prompt templates from a file.

    - `.json`: a list of templates, such as `["a photo of a {}."]`. CLIP_benchmark's `{c}` is read as `{}`.
    - `.py`: a list of lambdas, such as open_clip's `lambda c: f"a photo of a {c}."`, or of texts. The file is parsed
      and never executed; it has one list.
    - any other: one template a line; empty lines are skipped.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: the file holds something else, or a template has not exactly one field.
    """
    file = Path(path)
    try:
        text = read_limited(file).decode("utf-8-sig")
    except UnicodeDecodeError:
        raise ValueError(f"{file}: is not text in UTF-8; save it as UTF-8") from None
    if file.suffix == ".json":
        templates = _from_json(file, text)
    elif file.suffix == ".py":
        templates = _from_python(file, text)
    else:
        templates = [line.strip() for line in text.splitlines() if line.strip()]
    if not templates:
        raise ValueError(f"{file}: holds no templates; expected texts such as 'a photo of a {{}}.'")
    return [one_field(template, f"{file}, template {number}") for number, template in enumerate(templates, 1)]


def one_field(template: str, name: str) -> str:
    """Return a template with its only field as `{}`.

    Raises:
        ValueError: it has no field, or several.
    """
    if len(_FIELD.findall(template)) != 1:
        raise ValueError(
            f"{name}: {template!r} has {len(_FIELD.findall(template))} fields; expected one {{}} for the class"
        )
    return _FIELD.sub("{}", template)


def _from_json(file: Path, text: str) -> list[str]:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{file}: not JSON: {error}") from None
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        hint = f"; it has {', '.join(map(str, list(value)[:5]))}: save one of them" if isinstance(value, dict) else ""
        raise ValueError(f"{file}: found a {type(value).__name__}, expected a list of texts{hint}")
    return value


def _from_python(file: Path, text: str) -> list[str]:
    try:
        module = ast.parse(text)
    except (SyntaxError, ValueError, RecursionError) as error:
        raise ValueError(f"{file}: not Python: {error}") from None
    values = [node.value for node in module.body if isinstance(node, ast.Assign | ast.Expr)]
    lists = [value for value in values if isinstance(value, ast.List | ast.Tuple)]
    if len(lists) != 1:
        raise ValueError(f"{file}: found {len(lists)} lists, expected one list of lambdas or texts")
    return [_python_template(file, node) for node in lists[0].elts]


def _python_template(file: Path, node: Any) -> str:
    """Return the template of `lambda c: f"... {c} ..."`, or of a text."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.Lambda) and isinstance(node.body, ast.JoinedStr) and len(node.args.args) == 1:
        argument, parts = node.args.args[0].arg, []
        for part in node.body.values:
            if isinstance(part, ast.Constant):
                parts.append(str(part.value))
            elif (
                isinstance(part, ast.FormattedValue)
                and isinstance(part.value, ast.Name)
                and part.value.id == argument
                and part.conversion == -1
                and part.format_spec is None
            ):
                parts.append("{}")
        if len(parts) == len(node.body.values):
            return "".join(parts)
    raise ValueError(
        f'{file}, line {node.lineno}: expected a text, or a lambda such as lambda c: f"a photo of a {{c}}."'
    )
