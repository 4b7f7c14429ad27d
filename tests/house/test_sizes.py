"""Limits on sizes: files in a folder, lines of a function, lines of a module."""

import ast
from collections import Counter

import pytest

from tests.house.source import PACKAGE, python_files, read, relative

MAX_FILES = 13  # without __init__.py
MAX_FUNCTION_LINES = 60
MAX_MODULE_LINES = 400
MANY_FILES = {"src/miniclip/data/formats"}  # one reader a file


def long_functions(source: str, limit: int = MAX_FUNCTION_LINES) -> list[str]:
    """Return the functions that are longer than the limit, decorators and docstring counted."""
    lines = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            length = int(node.end_lineno or 0) - node.lineno + 1
            if length > limit:
                lines.append(f"line {node.lineno}: {node.name} has {length} lines, at most {limit}")
    return lines


def test_long_function_is_seen():
    assert long_functions("def f():\n" + "    x = 1\n" * 60) == ["line 1: f has 61 lines, at most 60"]
    assert long_functions("class A:\n  def f(self):\n" + "    x = 1\n" * 59) == []


def test_files_in_a_folder():
    counts = Counter(relative(path.parent) for path in python_files("src") if path.name != "__init__.py")
    assert counts["src/miniclip/data/formats"] > 5
    crowded = {folder: count for folder, count in counts.items() if count > MAX_FILES and folder not in MANY_FILES}
    assert not crowded, f"folders of more than {MAX_FILES} files: {crowded}"


@pytest.mark.parametrize("folder", ["src", "benchmarks", "docs"])
def test_functions_fit_a_screen(folder):
    lines = [f"{relative(path)}, {line}" for path in python_files(folder) for line in long_functions(read(path))]
    assert not lines, "\n".join(lines)


def test_modules_are_short():
    lengths = {relative(path): len(read(path).splitlines()) for path in python_files(str(PACKAGE))}
    long = {name: length for name, length in lengths.items() if length > MAX_MODULE_LINES}
    assert lengths
    assert not long, f"modules of more than {MAX_MODULE_LINES} lines: {long}"
