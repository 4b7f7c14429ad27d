"""A hook of mkdocs: the parts of the pages that are made from the code, so that they cannot go stale.

A page holds `{{ NAME }}` or `{{ NAME ARGUMENT }}`, with the names of MARKERS. Any other name fails the build, as does
a public name of the package that the page of the API leaves out.
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
    """Put the code's answers in the markers' places."""
    if page.file.src_uri == "api.md":
        require_public_names(markdown)

    def answer(match: re.Match[str]) -> str:
        name, argument = match.groups()
        if name not in MARKERS:
            raise PluginError(f"{page.file.src_uri}: unknown marker {match[0]}; known: {', '.join(MARKERS)}")
        return str(MARKERS[name](*([argument] if argument else [])))

    return MARKER.sub(answer, markdown)


def require_public_names(markdown: str) -> None:
    """Fail unless each public name of the package has its place on the page."""
    missing = [name for name in miniclip.__all__ if f"miniclip.{name}" not in markdown]
    if missing:
        raise PluginError(f"api.md lacks {', '.join(missing)}")


def settings() -> str:
    """`TrainConfig`'s fields: name, type, default, meaning."""
    hints = get_type_hints(miniclip.TrainConfig)
    return table(
        ("setting", "type", "default", "meaning"),
        (
            (
                f"`{f.name}`",
                type_in_words(hints[f.name]),
                default_in_words(f.default),
                miniclip.TrainConfig.help(f.name),
            )
            for f in dataclasses.fields(miniclip.TrainConfig)
        ),
    )


def type_in_words(hint: Any) -> str:
    """`int`, `int, or unset`, or the words to choose from."""
    kinds, words = types_and_literals(hint)
    names = [*("unset" if kind is type(None) else kind.__name__ for kind in kinds), *map(repr, words)]
    return " or ".join(f"`{name}`" if name != "unset" else name for name in names)


def default_in_words(value: Any) -> str:
    """A default as Python writes it."""
    return "unset" if value is None else f"`{value!r}`"


def presets() -> str:
    """The presets: both towers and their parameters, counted on the model itself."""
    head = ("preset", "image tower", "text tower", "embedding", "image", "text", "in all")
    return table(head, (preset_row(name) for name in PRESETS))


def preset_row(name: str) -> tuple[str, ...]:
    """A preset's cells; its tensors have shapes and no memory."""
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
    """What `miniclip models NAME` prints."""
    return printed("models", name)


def initialisation() -> str:
    """The table in `models/initialise.py`: pattern, standard deviation, the comment behind it."""
    source = inspect.getsource(initialise)
    assignments = (node for node in ast.parse(source).body if isinstance(node, ast.Assign))
    rows = next(node.value for node in assignments if getattr(node.targets[0], "id", "") == "TABLE")
    lines = source.splitlines()
    return table(
        ("the parameter's name matches", "it starts as", "after"),
        (
            (
                f"`{row.elts[0].value}`",
                start_in_words(row.elts[1].body),
                lines[row.lineno - 1].partition("#")[2].strip(),
            )
            for row in rows.elts  # type: ignore[attr-defined]
        ),
    )


def start_in_words(rule: ast.expr) -> str:
    """A rule of the table as the code writes it."""
    code = ast.unparse(rule)
    return {"None": "ones", "0.0": "zeros"}.get(code, f"normal, σ = `{code}`")


def help(command: str | None = None) -> str:
    """What `miniclip COMMAND --help` prints."""
    return printed(*(command or "").split(), "--help")


def printed(*arguments: str) -> str:
    """What the command line prints, as a block of text."""
    output = io.StringIO()
    with (
        mock.patch.dict(os.environ, COLUMNS=WIDTH, NO_COLOR="1"),
        contextlib.redirect_stdout(output),
        contextlib.suppress(SystemExit),  # --help ends the program
    ):
        cli.main(arguments)
    return f"```text\n$ {' '.join(('miniclip', *arguments))}\n{output.getvalue().rstrip()}\n```"


def table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    """A table in Markdown; a pipe in a cell would end it."""
    lines = [head, tuple("---" for _ in head), *(tuple(cell.replace("|", "\\|") for cell in row) for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


MARKERS = {
    "help": help,
    "initialisation": initialisation,
    "model": model,
    "presets": presets,
    "settings": settings,
}
