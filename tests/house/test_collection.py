"""Test ids must not depend on time, order or chance: parametrize takes literals and sorted values only.

.ci/run also collects the whole suite in two processes and compares the ids.
"""

import ast

from tests.house.source import python_files, read, relative

# Names whose value differs between two processes.
UNSTABLE = {
    "datetime",
    "getpid",
    "glob",
    "id",
    "iterdir",
    "listdir",
    "mkdtemp",
    "monotonic",
    "now",
    "object",
    "perf_counter",
}
UNSTABLE |= {"random", "rglob", "set", "frozenset", "time", "today", "token_hex", "urandom", "uuid4", "rand", "randint"}


def unstable_parameters(source: str) -> list[str]:
    """Return the uses of unordered or random values in the decorators of tests."""
    lines = []
    for node in ast.walk(ast.parse(source)):
        decorators = node.decorator_list if isinstance(node, ast.FunctionDef | ast.ClassDef) else []
        for decorator in decorators:
            if (
                "parametrize" in ast.unparse(decorator).split("(")[0]
                or "fixture" in ast.unparse(decorator).split("(")[0]
            ):
                lines += [f"line {part.lineno}: {ast.unparse(part)}" for part in unordered(decorator)]
    return lines


def unordered(node: ast.AST, is_sorted: bool = False) -> list[ast.expr]:
    """Return the expressions below a node whose order or value is not fixed, unless `sorted` encloses them."""
    unstable: list[ast.expr] = []
    if isinstance(node, ast.Call):
        name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        is_sorted = is_sorted or name == "sorted"
        is_empty = name in ("set", "frozenset") and not node.args
        unstable += [node] if name in UNSTABLE and not is_sorted and not is_empty else []
    elif isinstance(node, ast.SetComp) and not is_sorted:
        unstable.append(node)
    return unstable + [part for child in ast.iter_child_nodes(node) for part in unordered(child, is_sorted)]


def test_unstable_parameters_are_seen():
    head = "import pytest, time\n"
    for values in ("set('ab')", "[time.time()]", "{x for x in y}", "path.glob('*')", "[random.random()]", "[object()]"):
        assert unstable_parameters(f"{head}@pytest.mark.parametrize('a', {values})\ndef test(a): ..."), values
    assert not unstable_parameters(f"{head}@pytest.mark.parametrize('a', sorted(set('ab')))\ndef test(a): ...")
    assert not unstable_parameters(f"{head}@pytest.mark.parametrize('a', [1, 'b', {{'x', 'y'}}])\ndef test(a): ...")


def test_ids_are_stable():
    lines = [f"{relative(path)}, {line}" for path in python_files("tests") for line in unstable_parameters(read(path))]
    assert not lines, "\n".join(lines)
