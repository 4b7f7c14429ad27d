"""MkDocs hook: parts of the pages that are generated from the code, so that they stay correct.

A page contains `{{ NAME }}` or `{{ NAME ARGUMENT }}`, with the names of MARKERS. The build fails for any other name,
and for a public name of the package that is missing on the API page.
"""

import ast
import contextlib
import dataclasses
import inspect
import io
import os
import re
from collections.abc import Iterable
from typing import Any, get_type_hints
from unittest import mock

import torch
from mkdocs.exceptions import PluginError

import miniclip
from miniclip import cli
from miniclip.cli.models import count_parameters
from miniclip.config import PRESETS
from miniclip.models import init as initialise
from miniclip.utils.checks import types_and_literals

MARKER = re.compile(r"\{\{ (\w+)(?: ([\w -]+))? \}\}")
WIDTH = "88"  # columns of the help


def on_page_markdown(markdown: str, *, page: Any, config: Any, files: Any) -> str:
    """Replace the markers by generated text."""
    if page.file.src_uri == "api.md":
        require_public_names(markdown)

    def generate(match: re.Match[str]) -> str:
        name, argument = match.groups()
        if name not in MARKERS:
            raise PluginError(f"{page.file.src_uri}: unknown marker {match[0]}; known: {', '.join(MARKERS)}")
        return str(MARKERS[name](*([argument] if argument else [])))

    return MARKER.sub(generate, markdown)


def require_public_names(markdown: str) -> None:
    """Raise PluginError unless the page has every public name of the package."""
    missing = [name for name in miniclip.__all__ if f"miniclip.{name}" not in markdown]
    if missing:
        raise PluginError(f"api.md lacks {', '.join(missing)}")


def settings() -> str:
    """Return a table of the fields of `TrainConfig`: name, type, default, meaning."""
    hints = get_type_hints(miniclip.TrainConfig)
    return table(
        ("setting", "type", "default", "meaning"),
        (
            (
                f"`{f.name}`",
                format_type(hints[f.name]),
                format_default(f.default),
                miniclip.TrainConfig.help(f.name),
            )
            for f in dataclasses.fields(miniclip.TrainConfig)
        ),
    )


def format_type(hint: Any) -> str:
    """Format an annotation: `int`, `int or unset`, or the literals."""
    kinds, words = types_and_literals(hint)
    names = [*("unset" if kind is type(None) else kind.__name__ for kind in kinds), *map(repr, words)]
    return " or ".join(f"`{name}`" if name != "unset" else name for name in names)


def format_default(value: Any) -> str:
    """Format a default as a Python literal."""
    return "unset" if value is None else f"`{value!r}`"


def presets() -> str:
    """Return a table of the presets: both towers and their numbers of parameters."""
    head = ("preset", "image tower", "text tower", "embedding", "image", "text", "total")
    return table(head, (preset_row(name) for name in PRESETS))


def preset_row(name: str) -> tuple[str, ...]:
    """Return the cells of a preset; the model is built on the meta device."""
    config = PRESETS[name][1]
    with torch.device("meta"):
        model = miniclip.CLIP(config)
    image, text = config.image, config.text
    return (
        f"`{name}`",
        f"{image.image_size} px, patch {image.patch_size}, width {image.width}, {image.layers} layers, "
        f"{image.heads} heads",
        f"{'causal' if text.causal else 'bidirectional'}, width {text.width}, {text.layers} layers, "
        f"{text.heads} heads, {text.vocab_size:,} tokens",
        str(config.embed_dim),
        *(f"{count_parameters(part):,}" for part in (model.image, model.text, model)),
    )


def model(name: str) -> str:
    """Return the output of `miniclip models NAME`."""
    return printed("models", name)


def initialisation() -> str:
    """Return the table of `models/init.py`: pattern, standard deviation, source."""
    source = inspect.getsource(initialise)
    assignments = (node for node in ast.parse(source).body if isinstance(node, ast.Assign))
    rows = next(node.value for node in assignments if getattr(node.targets[0], "id", "") == "TABLE")
    lines = source.splitlines()
    return table(
        ("the parameter's name matches", "initial value", "source"),
        (
            (
                f"`{row.elts[0].value}`",
                format_start(row.elts[1].body),
                lines[row.lineno - 1].partition("#")[2].strip(),
            )
            for row in rows.elts  # type: ignore[attr-defined]
        ),
    )


def format_start(rule: ast.expr) -> str:
    """Format a rule of the table as code."""
    code = ast.unparse(rule)
    return {"None": "ones", "0.0": "zeros"}.get(code, f"normal, σ = `{code}`")


def help(command: str | None = None) -> str:
    """Return the output of `miniclip COMMAND --help`."""
    return printed(*(command or "").split(), "--help")


def printed(*arguments: str) -> str:
    """Return the output of the command line as a block of text."""
    output = io.StringIO()
    with (
        mock.patch.dict(os.environ, COLUMNS=WIDTH, NO_COLOR="1"),
        contextlib.redirect_stdout(output),
        contextlib.suppress(SystemExit),  # --help exits
    ):
        cli.main(arguments)
    if not output.getvalue():
        raise PluginError(f"`miniclip {' '.join(arguments)}` prints nothing; expected the name of a command")
    return f"```text\n$ {' '.join(('miniclip', *arguments))}\n{output.getvalue().rstrip()}\n```"


def table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    """Format a Markdown table; pipes outside of code spans become entities."""
    cells = ([re.sub(r"(`[^`]*`)|\|", lambda match: match[1] or "&#124;", cell) for cell in row] for row in rows)
    lines = [head, ["---" for _ in head], *cells]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


MARKERS = {
    "help": help,
    "initialisation": initialisation,
    "model": model,
    "presets": presets,
    "settings": settings,
}
