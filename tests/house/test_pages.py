"""Rule 3 of the design: one short reading order and one tree in the README; every path that a page names exists."""

import re

from tests.house.source import PACKAGE, ROOT, pages, read, relative

README = ROOT / "README.md"
MAX_README_LINES = 170
MAX_METHOD_LINES = 1_200  # code, comments and docstrings; blank lines are not counted

STEP = re.compile(r"^\d+\. \[?`([\w/]+\.py)`", re.M)
# Paths in code and in links; other names with a slash are files of a user or of another project.
NAMED = re.compile(
    r"`([\w./-]+?\.(?:py|md|toml|ya?ml)|\.ci/[\w.-]+|(?:src|tests|docs|benchmarks|fast|data)(?:/[\w-]+)*/)`"
)
LINKED = re.compile(r"\]\((?!https?:|#|mailto:)([^)#\s]+)[^)]*\)")
PLACEHOLDERS = {"recipe.toml", "train.py"}  # files of a user in examples


def reading_order(readme: str) -> list[str]:
    """Return the files of the numbered list, relative to src/miniclip."""
    return STEP.findall(readme)


def tree_folders(readme: str) -> list[str]:
    """Return the folders that the README's tree names, relative to src/miniclip."""
    tree = re.search(r"^```\w*\nsrc/miniclip/\n(.*?)^```", readme, re.S | re.M)
    assert tree, "the README has no block that starts with src/miniclip/"
    folders, parents = [], {0: ""}
    for line in tree[1].splitlines():
        if not line.startswith(" "):
            break
        depth, name = len(line) - len(line.lstrip()), line.split()[0]
        parents[depth] = f"{parents[max(level for level in parents if level < depth)]}{name}"
        folders += [parents[depth].rstrip("/")] if name.endswith("/") else []
        if not name.endswith("/"):
            assert (PACKAGE / parents[depth]).is_file(), f"the tree names {parents[depth]}, which does not exist"
    return folders


def missing_files(page: str, folder: str) -> list[str]:
    """Return the paths that a page names and that do not exist.

    Args:
        page: Markdown.
        folder: the folder of the page, relative to the repository; links are relative to it.
    """
    bases = [ROOT, PACKAGE, ROOT / folder, *(path for path in PACKAGE.iterdir() if path.is_dir())]
    names = {name for name in NAMED.findall(page) if name not in PLACEHOLDERS}
    missing = [name for name in names if not any((base / name).exists() for base in bases)]
    return sorted(missing + [link for link in LINKED.findall(page) if not (ROOT / folder / link).exists()])


def test_readers_of_the_readme():
    assert reading_order("1. `config.py` is\n2. [`models/layers.py`](src) is\n3. nothing") == [
        "config.py", "models/layers.py",
    ]  # fmt: skip
    readme = "```\nsrc/miniclip/\n  config.py  a\n  data/  b\n    formats/  c\ntests/  d\n```\n"
    assert tree_folders(readme) == ["data", "data/formats"]


def test_missing_files_are_seen():
    page = (
        "See `models/vision.py`, `models/nowhere.py`, `runs/mine/`, [a](index.md), [b](gone.md#x), <https://a.b/c.md>."
    )
    assert missing_files(page, "docs") == ["gone.md", "models/nowhere.py"]


def test_readme_is_a_front_door():
    lines = len(read(README).splitlines())
    assert lines <= MAX_README_LINES, f"README.md has {lines} lines, at most {MAX_README_LINES}"


def test_the_method_can_be_read_in_an_afternoon():
    files = reading_order(read(README))
    assert files[0] == "config.py"
    assert {"models/clip.py", "losses/reference.py", "train/step.py", "train/trainer.py"} <= set(files)
    assert len(set(files)) == len(files)
    lines = {file: len(read(PACKAGE / file).splitlines()) for file in files}
    total = sum(lines.values())
    assert total <= MAX_METHOD_LINES, f"the reading order has {total} lines, at most {MAX_METHOD_LINES}: {lines}"


def test_the_tree_gives_every_folder_one_line():
    folders = sorted({relative(path.parent) for path in PACKAGE.rglob("*.py")} - {relative(PACKAGE)})
    assert sorted(tree_folders(read(README))) == [name.removeprefix("src/miniclip/") for name in folders]


def test_files_that_pages_name_exist():
    lines = [
        f"{relative(page)} names {name}"
        for page in pages()
        for name in missing_files(read(page), relative(page.parent))
    ]
    assert not lines, "\n".join(lines)
