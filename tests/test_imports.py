"""Imports run one way, importing costs little, and the public surface changes on purpose alone."""

import ast
import graphlib
import json
import subprocess
import sys
from pathlib import Path

import pytest

import miniclip

ROOT = Path(miniclip.__file__).parent

# A module imports from its own layer and from those before it; `miniclip` itself is the package's __init__.
LAYERS = [
    {
        "errors",
        "checks",
        "atomic",
        "config",
        "pretrained",
        "randomness",
        "pictures",
        "products",
        "precision",
        "transforms",
        "tokenizer",
        "distributed",
        "remote",
        "model_card",
        "threads",
    },
    {"models", "losses", "checkpoints", "data", "evaluation", "search"},
    {"train", "hub"},
    {"miniclip"},
    {"cli", "__main__"},
]
HEIGHT = {name: height for height, layer in enumerate(LAYERS) for name in layer}
FORBIDDEN = {"train": {"hub"}, "evaluation": {"hub", "train"}, "search": {"hub"}, "hub": {"train"}}

PUBLIC = [
    "CLIP",
    "CLIPConfig",
    "CLIPOutput",
    "CheckpointError",
    "DataError",
    "ImageConfig",
    "TextConfig",
    "Tokenizer",
    "TrainConfig",
    "Trainer",
    "contrastive_loss",
    "data",
    "encode_image",
    "encode_text",
    "evaluation",
    "export",
    "list_models",
    "load",
    "push_to_hub",
    "save",
    "sigmoid_loss",
]


def part(module: str) -> str:
    """`miniclip.train.step` is of the part `train`; `miniclip` is its own."""
    names = module.split(".")
    return names[1] if len(names) > 1 else names[0]


def exists(module: str) -> bool:
    path = ROOT.parent.joinpath(*module.split("."))
    return path.is_dir() or path.with_suffix(".py").is_file()


def imported(source: str, module: str, is_package: bool) -> set[str]:
    """The modules of miniclip that a source imports, inside functions and for type checkers too."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                up = module.split(".")[: (1 if is_package else 0) - node.level or None]
                base = ".".join([*up, base]).rstrip(".")
            for alias in node.names:
                below = f"{base}.{alias.name}"
                found.add(below if base.startswith("miniclip") and exists(below) else base)
    return {name for name in found if name.split(".")[0] == "miniclip"}


def graph() -> dict[str, set[str]]:
    modules = {}
    for path in sorted(ROOT.rglob("*.py")):
        names = path.relative_to(ROOT.parent).with_suffix("").parts
        is_package = names[-1] == "__init__"
        module = ".".join(names[:-1] if is_package else names)
        modules[module] = imported(path.read_text(encoding="utf-8"), module, is_package)
    return modules


GRAPH = graph()


def test_the_reader_of_imports_sees_every_kind():
    source = (
        "import os, miniclip.hub\nfrom miniclip import data, load\nfrom miniclip.train import steps, Trainer\n"
        "def f():\n    from miniclip.cli import main\nfrom .vision import x\nfrom ..losses import reference\n"
    )
    assert imported(source, "miniclip.models.clip", is_package=False) == {
        "miniclip.hub", "miniclip.data", "miniclip", "miniclip.train.step", "miniclip.train", "miniclip.cli",
        "miniclip.models.vision", "miniclip.losses.reference",
    }  # fmt: skip
    assert imported("from . import vision", "miniclip.models", is_package=True) == {"miniclip.models.vision"}
    assert imported("from .. import hub", "miniclip.models.clip", is_package=False) == {"miniclip.hub"}
    assert GRAPH["miniclip.models.clip"] >= {"miniclip.models.text", "miniclip.losses.reference", "miniclip.config"}


@pytest.mark.parametrize("module", GRAPH)
def test_imports_run_one_way(module):
    here = part(module)
    assert here in HEIGHT, f"{module}: give its part a place in LAYERS, and in DESIGN.md"
    for name in GRAPH[module]:
        there = part(name)
        assert HEIGHT[there] <= HEIGHT[here], f"{module} imports {name}, which is above it"
        assert there not in FORBIDDEN.get(here, set()), f"{module} imports {name}"
        assert there != "cli" or here in LAYERS[-1], f"{module} imports {name}: nothing imports the command line"


def test_no_two_parts_import_each_other():
    parts: dict[str, set[str]] = {}
    for module, names in GRAPH.items():
        parts.setdefault(part(module), set()).update(part(name) for name in names if part(name) != part(module))
    graphlib.TopologicalSorter(parts).prepare()  # raises CycleError, which names the circle


def test_import_loads_nothing_slow():
    slow = [
        "torchvision",
        "matplotlib",
        "ftfy",
        "transformers",
        "open_clip",
        "tqdm",
        "huggingface_hub",
        "torch._dynamo",
    ]
    code = (
        "import sys, json, torch; before = set(sys.modules); import miniclip; "
        f"print(json.dumps([n for n in {slow!r} if n in sys.modules and n not in before])); "
        "print(json.dumps('miniclip.models.clip' in sys.modules))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert [json.loads(line) for line in run.stdout.splitlines()] == [[], True]


def test_what_encoding_does_not_need_comes_when_it_is_asked_for():
    code = (
        "import sys, miniclip\n"
        "assert not {'miniclip.train', 'miniclip.data', 'miniclip.evaluation'} & set(sys.modules)\n"
        "assert {'Trainer', 'TrainConfig', 'data', 'evaluation', 'load'} <= set(dir(miniclip))\n"
        "from miniclip import *\n"
        "assert Trainer is miniclip.Trainer is miniclip.train.Trainer and data is sys.modules['miniclip.data']\n"
        "assert evaluation.retrieval and TrainConfig(epochs=2).epochs == 2\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    with pytest.raises(AttributeError, match="module 'miniclip' has no attribute 'Trainr'"):
        miniclip.Trainr  # noqa: B018


def test_the_public_surface():
    assert sorted(miniclip.__all__) == PUBLIC
    assert all(hasattr(miniclip, name) for name in PUBLIC)
