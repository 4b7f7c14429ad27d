"""Import rules: no cycle between modules, one order of the rooms, cheap `import miniclip`, a fixed public surface."""

import ast
import functools
import graphlib
import json
import subprocess
import sys
from collections.abc import Mapping, Set

import pytest

import miniclip
from tests.house.source import PACKAGE, read

# From the ground up. A module imports from its own row and from the rows above it in this list. The longest matching
# entry counts: `losses.reference` is not in the row of `losses`. "" is the package itself, `miniclip/__init__.py`.
ORDER: list[tuple[str, ...]] = [
    ("errors", "version", "utils", "runtime.distributed", "runtime.cores", "runtime.devices"),
    ("config", "tower_config"),
    ("recipes",),
    ("models", "losses.reference", "train.step"),  # the method
    ("tokenizer", "runtime.precision", "hub.download", "hub.client_errors"),
    ("finetuning.lora",),  # which the fast forms compute too
    ("fast",),
    ("losses",),
    ("data",),
    ("inference",),
    ("checkpoints", "evaluation"),
    ("deployment",),
    ("finetuning.adapters",),
    ("hub", "finetuning.interpolation", "finetuning.sweep"),
    ("train", "runtime", "runs"),
    ("loggers", "plots", "diagnostics"),
    ("explanation",),
    ("search",),
    ("embedding", "demo"),
    ("finetuning",),
    ("train.setup", "train.trainer"),
    ("diagnostics.plan", "diagnostics.timing"),  # they plan and time a trainer
    ("train.__init__",),
    ("",),
    ("cli", "__main__"),
]
ROWS = {name: row for row, names in enumerate(ORDER) for name in names}

PUBLIC = [
    "CLIP",
    "CLIPConfig",
    "CLIPModel",
    "CLIPOutput",
    "CheckpointError",
    "DataError",
    "ImageConfig",
    "Index",
    "TextConfig",
    "Tokenizer",
    "TrainConfig",
    "Trainer",
    "contrastive_loss",
    "data",
    "embed",
    "encode_image",
    "encode_text",
    "evaluation",
    "explain",
    "export",
    "interpolate",
    "list_models",
    "load",
    "push_to_hub",
    "quantize",
    "save",
    "sigmoid_loss",
    "soup",
]


def exists(module: str) -> bool:
    """Return whether src has a module or package of that name."""
    path = PACKAGE.parent.joinpath(*module.split("."))
    return path.is_dir() or path.with_suffix(".py").is_file()


def imports_of(source: str, module: str, is_package: bool = False) -> set[str]:
    """Return the modules of miniclip that a source imports, also inside functions and under TYPE_CHECKING."""
    names = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parents = module.split(".")[: (1 if is_package else 0) - node.level or None]
                base = ".".join([*parents, base]).rstrip(".")
            for alias in node.names:
                submodule = f"{base}.{alias.name}"
                names.add(submodule if base.startswith("miniclip") and exists(submodule) else base)
    return {name for name in names if name.split(".")[0] == "miniclip"} - {module}


@functools.cache
def read_graph() -> dict[str, set[str]]:
    """Return the imports of every module of the package."""
    graph = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        names = path.relative_to(PACKAGE.parent).with_suffix("").parts
        is_package = names[-1] == "__init__"
        module = ".".join(names[:-1] if is_package else names)
        graph[module] = imports_of(read(path), module, is_package)
    return graph


def cycle_in(graph: Mapping[str, Set[str]]) -> list[str]:
    """Return one import cycle, or an empty list."""
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        return list(error.args[1])
    return []


def row_of(module: str) -> int | None:
    """Return the row of ORDER of the longest entry that a module's name starts with."""
    parts = module.split(".")[1:]
    if parts == ["train"]:  # the package gathers the names of its modules
        return ROWS["train.__init__"]
    entries = (".".join(parts[:length]) for length in range(len(parts), 0 if parts else -1, -1))
    return next((ROWS[entry] for entry in entries if entry in ROWS), None)


def wrong_imports(graph: Mapping[str, Set[str]]) -> list[str]:
    """Return the imports that ORDER forbids, as sentences."""
    lines = []
    for module, names in graph.items():
        row = row_of(module)
        if row is None:
            lines.append(f"{module} is in no row of ORDER; add its room there")
            continue
        for name in sorted(names):
            other = row_of(name)
            if other is None or other > row:
                lines.append(f"{module} imports {name}, which stands above it in ORDER")
            elif name.startswith("miniclip.cli") and not module.startswith(("miniclip.cli", "miniclip.__main__")):
                lines.append(f"{module} imports {name}; nothing imports the command line")
    return lines


def test_reader_finds_every_kind_of_import():
    source = (
        "import os, miniclip.hub\nfrom miniclip import data, load\nfrom miniclip.train import schedule, Trainer\n"
        "def f():\n    from miniclip.cli import main\nif TYPE_CHECKING:\n    from .vision import x\n"
        "from ..losses import reference\n"
    )
    assert imports_of(source, "miniclip.models.clip") == {
        "miniclip.hub", "miniclip.data", "miniclip", "miniclip.train.schedule", "miniclip.train", "miniclip.cli",
        "miniclip.models.vision", "miniclip.losses.reference",
    }  # fmt: skip
    assert imports_of("from . import vision", "miniclip.models", is_package=True) == {"miniclip.models.vision"}
    assert imports_of("from .. import hub", "miniclip.models.clip") == {"miniclip.hub"}
    assert read_graph()["miniclip.models.clip"] >= {"miniclip.models.text", "miniclip.config"}
    assert len(read_graph()) > 100


def test_cycle_is_named():
    graph = {"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": set()}
    assert set(cycle_in(graph)) == {"a", "b", "c"}
    assert cycle_in({"a": {"b"}, "b": set()}) == []


def test_order_refuses_upward_imports():
    assert wrong_imports({"miniclip.losses.reference": {"miniclip.losses.chunked"}})
    assert wrong_imports({"miniclip.train.callbacks": {"miniclip.train.trainer"}})
    assert wrong_imports({"miniclip.loggers.console": {"miniclip.train.setup"}})
    assert wrong_imports({"miniclip.data.loader": {"miniclip.cli.parsing"}})
    assert wrong_imports({"miniclip.attic.stairs": set()})
    assert not wrong_imports({"miniclip.loggers.console": {"miniclip.train.callbacks", "miniclip.runs.history"}})


def test_no_import_cycle():
    assert cycle_in(read_graph()) == []


def test_imports_run_one_way():
    lines = wrong_imports(read_graph())
    assert not lines, "\n".join(lines)


SLOW = [
    "torchvision",
    "matplotlib",
    "ftfy",
    "transformers",
    "open_clip",
    "tqdm",
    "huggingface_hub",
    "torch._dynamo",
]
FIRST_USE = f"""
import json, sys, torch
before = set(sys.modules)
import miniclip
assert not {{'miniclip.train', 'miniclip.data.opening', 'miniclip.evaluation'}} & set(sys.modules)
assert sorted(miniclip.__all__) == [n for n in dir(miniclip) if not n.startswith('_')]
miniclip.load
print(json.dumps([n for n in {SLOW!r} if n in sys.modules and n not in before]))
print(json.dumps('miniclip.models.clip' in sys.modules))
assert miniclip.train.Trainer is miniclip.Trainer
from miniclip import *
assert Trainer is miniclip.Trainer is miniclip.train.Trainer and data is sys.modules['miniclip.data']
assert evaluation.retrieval and TrainConfig(epochs=2).epochs == 2
import miniclip.cli.train, miniclip.cli.finetuning.against, miniclip.explanation.faithfulness
from io import BytesIO
from PIL import Image
from miniclip.data.decoding.jpeg import decode_image
file = BytesIO()
Image.new('RGB', (8, 8)).save(file, 'JPEG')
assert torch.is_tensor(decode_image(file.getvalue()))  # by torchvision's decoder, without its models
assert 'miniclip.evaluation.corruptions' in sys.modules and not {{'torchvision', 'torch._dynamo'}} & set(sys.modules)
"""


def test_parts_are_imported_on_first_use_and_nothing_slow_before():
    command = [sys.executable, "-W", "error::UserWarning", "-c", FIRST_USE]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    assert [json.loads(line) for line in run.stdout.splitlines()] == [[], True]
    with pytest.raises(AttributeError, match="module 'miniclip' has no attribute 'Trainr'"):
        miniclip.Trainr  # noqa: B018


def test_public_surface():
    assert sorted(miniclip.__all__) == PUBLIC
    assert all(hasattr(miniclip, name) for name in PUBLIC)
