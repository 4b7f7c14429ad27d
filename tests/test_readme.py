"""The README keeps its promises: two commands first, an example that runs, images that exist, measured numbers."""

import re
from pathlib import Path

import miniclip

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```", README, re.S | re.M)


def test_two_commands_come_first():
    assert [text.strip() for language, text in BLOCKS if language == "bash"][:2] == [
        'python -m pip install ".[probe]" && miniclip train',
        'python -m pip install -e ".[test]" && pytest -n 2 --dist loadfile',
    ]


def test_example_uses_existing_names():
    (example,) = [text for language, text in BLOCKS if language == "python"]
    assert len([line for line in example.splitlines() if line]) <= 10
    compile(example, "README.md", "exec")
    for name in re.findall(r"miniclip\.([\w.]+)\(", example):
        value = miniclip
        for part in name.split("."):
            value = getattr(value, part)


def test_images_exist():
    images = re.findall(r"!\[[^\]]*\]\(([^)]+)\)", README)
    assert images
    assert all((ROOT / image).is_file() for image in images)


def test_measurements_are_those_of_the_benchmark():
    """Every number of the README's table stands in one row of the table that the benchmark wrote."""
    results = (ROOT / "docs" / "benchmark" / "results.md").read_text(encoding="utf-8").splitlines()
    table = README.split("Three measured reasons")[1].split("![")[0]
    rows = [
        re.findall(r"(?<!\S)[\d,.]+(?!\S)", line.split("|", 2)[2])
        for line in table.splitlines()
        if line.startswith("| ")
    ]
    rows = [numbers for numbers in rows if numbers]
    assert len(rows) == 3
    for numbers in rows:
        assert any(all(re.search(rf"(?<![\d.,]){re.escape(n)}(?![\d,])", row) for n in numbers) for row in results), (
            numbers
        )
