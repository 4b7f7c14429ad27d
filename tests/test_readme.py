"""The README keeps its promises: two commands, a tree that names every file, an example of the API that exists."""

import re
from pathlib import Path

import miniclip

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```", README, re.S | re.M)


def test_the_two_commands_come_first():
    first, second = [text for language, text in BLOCKS if language == "bash"][:2]
    assert "pip install ." in first
    assert first.strip().endswith("miniclip train")
    assert second.strip().endswith("&& pytest -n 2 --dist loadfile")


def test_the_tree_names_every_file_once():
    (tree,) = [text for _, text in BLOCKS if text.startswith("src/miniclip/")]
    below = tree.split("hubconf.py")[0].splitlines()[1:]
    named = [line.split()[0] for line in below if line.startswith("  ")]
    package = ROOT / "src" / "miniclip"
    files = [path.relative_to(package).as_posix() for path in package.rglob("*.py") if "__" not in path.name]
    assert sorted(named) == sorted(files)


def test_the_example_uses_what_there_is():
    (example,) = [text for language, text in BLOCKS if language == "python"]
    compile(example, "README.md", "exec")
    for name in re.findall(r"miniclip\.([\w.]+)\(", example):
        thing = miniclip
        for part in name.split("."):
            thing = getattr(thing, part)


def test_its_pictures_are_there():
    pictures = re.findall(r"!\[[^\]]*\]\(([^)]+)\)", README)
    assert pictures
    assert all((ROOT / picture).is_file() for picture in pictures)
