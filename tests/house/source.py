"""Readers of the repository's files for the tests of the design: paths, sources, and prose with line numbers."""

import ast
import io
import re
import tokenize
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "src" / "miniclip"

# For rules that the tree does not keep yet. The rebuild ends when no test carries it.


def python_files(*folders: str) -> list[Path]:
    """Return the Python files below the given folders of the repository, sorted."""
    return sorted(path for folder in folders for path in (ROOT / folder).rglob("*.py"))


def pages() -> list[Path]:
    """Return the README and the hand-written pages of the documentation."""
    return [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def relative(path: Path) -> str:
    """Return a path relative to the repository, with forward slashes."""
    return path.relative_to(ROOT).as_posix()


def read(path: Path) -> str:
    """Return the text of a file."""
    return path.read_text(encoding="utf-8")


@dataclass(frozen=True)
class Prose:
    """A piece of text that a person reads.

    Attributes:
        kind: "docstring", "comment", "message", "name" or "page".
        line: line number of its start.
        text: the text, without quotes or comment marks.
    """

    kind: str
    line: int
    text: str


def prose_of_python(source: str, messages: bool = True) -> Iterator[Prose]:
    """Yield the docstrings, comments, messages and test names of a Python source.

    Args:
        source: the source.
        messages: also yield string literals that hold more than one word.
    """
    nodes = list(ast.walk(ast.parse(source)))
    docstrings = set()
    for node in nodes:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef | ast.Module):
            first = node.body[0] if node.body else None
            if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant) and ast.get_docstring(node):
                docstrings.add(first.value)
                yield Prose("docstring", first.lineno, str(ast.get_docstring(node)))
            if not isinstance(node, ast.Module) and node.name.lower().startswith("test"):
                yield Prose("name", node.lineno, node.name.replace("_", " "))
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT and not token.string.startswith(("# noqa", "# type:", "# fmt", "#!")):
            yield Prose("comment", token.start[0], token.string.lstrip("# "))
    if messages:
        for node in nodes:
            is_string = isinstance(node, ast.Constant) and isinstance(node.value, str)
            if is_string and node not in docstrings and " " in node.value.strip():
                yield Prose("message", node.lineno, node.value)


def prose_of_page(source: str) -> Iterator[Prose]:
    """Yield the paragraphs of a Markdown page, without code, links' targets and API directives."""
    blank = re.compile(r"[^\n]")
    source = re.sub(r"^( *)```.*?^\1```", lambda match: blank.sub("", match[0]), source, flags=re.S | re.M)
    source = re.sub(r"^:::.*$|^\{\{.*$|^(    .*)$", "", source, flags=re.M)
    source = re.sub(r"\]\([^)]*\)", "]", re.sub(r"`[^`]*`", "`code`", source))
    line = 1
    for paragraph in re.split(r"\n(?=\s*\n|[-*|#] |\d+\. |\| )", source):
        start = line + len(paragraph) - len(paragraph.lstrip("\n"))
        if paragraph.strip():
            yield Prose("page", start, paragraph)
        line += paragraph.count("\n") + 1
