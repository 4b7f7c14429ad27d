"""Rules 1 and 2 of the design: the method is pure, and private symbols of torch stand in one file."""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

from tests.house.source import PACKAGE, python_files, read, relative
from tests.house.test_imports import imports_of

METHOD = [*sorted((PACKAGE / "models").glob("*.py")), PACKAGE / "losses/reference.py", PACKAGE / "train/step.py"]
METHOD_IMPORTS = ("miniclip.config", "miniclip.tower_config", "miniclip.models", "miniclip.losses.reference")
FORBIDDEN_NAMES = {
    "compile", "contiguous", "device_type", "functorch", "is_autocast_enabled", "is_available", "is_compiling",
    "is_contiguous", "is_cpu", "is_cuda", "is_exporting", "is_mps", "is_scripting", "is_tracing",
    "memory_format", "mkldnn", "ops", "stride", "_C", "_backward_hooks", "_forward_hooks", "_forward_pre_hooks",
}  # fmt: skip
COMPARED_NAMES = {"device", "dtype", "type"}  # fine to pass on, refused in a condition

PRIVATE_FILE = "src/miniclip/fast/private.py"
# Places that still use a private symbol outside PRIVATE_FILE; each has its reason. The list only shrinks.
EXCEPTIONS: dict[str, set[str]] = {
    "src/miniclip/data/decoding/jpeg.py": {"torch.ops.image"},  # torchvision's decoder, without its import
    "src/miniclip/fast/layers.py": {"torch.ops.aten"},  # GELU in place
    "src/miniclip/runtime/allocation.py": {"torch.utils._python_dispatch"},  # TorchDispatchMode counts allocations
}


def impurities(source: str, module: str) -> list[str]:
    """Return what a file of the method must not hold: foreign imports, and tests of anything but the mathematics."""
    lines = [f"imports {name}" for name in sorted(imports_of(source, module)) if not name.startswith(METHOD_IMPORTS)]
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else [node.module or ""]
            roots = {name.split(".")[0] for name in names} - {"torch", "miniclip", ""} - sys.stdlib_module_names
            lines += [f"line {node.lineno}: imports {root}" for root in sorted(roots)]
        if isinstance(node, ast.Attribute) and node.attr in FORBIDDEN_NAMES:
            lines.append(f"line {node.lineno}: uses {node.attr}")
        for condition in conditions(node):
            names = {part.attr for part in without_keywords(condition) if isinstance(part, ast.Attribute)}
            lines += [f"line {condition.lineno}: tests {name}" for name in sorted(names & COMPARED_NAMES)]
    return list(dict.fromkeys(lines))


def conditions(node: ast.AST) -> list[ast.expr]:
    """Return the expressions that decide which way a node goes."""
    if isinstance(node, ast.If | ast.IfExp | ast.While | ast.Assert):
        return [node.test]
    if isinstance(node, ast.Compare | ast.BoolOp):
        return [node]
    return [node.subject] if isinstance(node, ast.Match) else []


def without_keywords(node: ast.AST) -> Iterator[ast.AST]:
    """Yield the nodes below a node, except keyword arguments: `device=x.device` passes a device on."""
    yield node
    for child in ast.iter_child_nodes(node):
        if not isinstance(child, ast.keyword):
            yield from without_keywords(child)


def dotted(node: ast.expr) -> str:
    """Return `torch.ops.mkldnn` of an attribute chain, or an empty string."""
    parts: list[str] = []
    while isinstance(node, ast.Attribute):
        parts.append(node.attr)
        node = node.value
    return ".".join(reversed([*parts, node.id])) if isinstance(node, ast.Name) else ""


def private_symbols(source: str) -> set[str]:
    """Return the private names of torch that a source uses, cut after the first private part."""
    names = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Attribute):
            names.add(dotted(node))
        elif isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    private = set()
    for parts in (name.split(".") for name in names if name.startswith("torch.")):
        for index, part in enumerate(parts):
            is_private = part.startswith("_") and not part.startswith("__")
            if is_private or (part == "ops" and index == 1):
                private.add(".".join(parts[: index + 1 + (part == "ops")]))
                break
    return private - {"torch.ops", "torch.ops.load_library"}  # documented: the one way to load operators


def test_impurities_are_seen():
    bad = {
        "from miniclip.fast import matmul": "imports miniclip.fast",
        "import numpy": "imports numpy",
        "def f():\n    import torchvision.ops": "imports torchvision",
        "if x.is_cuda: pass": "uses is_cuda",
        "y = a if x.device.type == 'cpu' else b": "tests device",
        "assert x.dtype == torch.float32": "tests dtype",
        "if module._forward_hooks: pass": "uses _forward_hooks",
        "while torch.compiler.is_compiling(): pass": "uses is_compiling",
        "z = x.contiguous()": "uses contiguous",
        "torch._C.f()": "uses _C",
    }
    for source, expected in bad.items():
        assert any(expected in line for line in impurities(source, "miniclip.models.x")), source
    good = (
        "import math\nimport torch.nn.functional as F\nfrom miniclip.config import CLIPConfig\n"
        "from miniclip.models.layers import MLP\nfrom miniclip.losses.reference import contrastive_loss\n"
        "x = torch.arange(3, device=y.device, dtype=y.dtype) > 0\nif mask is not None: pass\n"
    )
    assert impurities(good, "miniclip.models.x") == []


def test_private_symbols_are_seen():
    source = "import torch\ntorch._C._x()\ntorch.ops.mkldnn.f(x)\ntorch.utils._pytree.map()\ntorch.__version__\n"
    source += "from torch._dynamo import reset\nfrom torch.distributed import _tensor\ntorch.nn.Linear\n"
    assert private_symbols(source) == {
        "torch._C", "torch.ops.mkldnn", "torch.utils._pytree", "torch._dynamo", "torch.distributed._tensor",
    }  # fmt: skip


def test_the_method_is_pure():
    lines = [
        f"{relative(path)}: {line}"
        for path in METHOD
        for line in impurities(read(path), ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts))
    ]
    assert not lines, "\n".join(lines)


def test_private_symbols_stand_in_one_file():
    lines = []
    for path in python_files("src"):
        if relative(path) != PRIVATE_FILE:
            names = private_symbols(read(path))
            allowed = EXCEPTIONS.get(relative(path), set())
            lines += [f"{relative(path)}: {name}; move it to {PRIVATE_FILE}" for name in sorted(names - allowed)]
            lines += [
                f"{relative(path)}: {name} is no longer used; drop it from EXCEPTIONS" for name in allowed - names
            ]
    gone = [name for name in EXCEPTIONS if not Path(PACKAGE.parents[1], name).is_file()]
    assert not lines + gone, "\n".join(lines + gone)
