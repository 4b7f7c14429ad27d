"""Fixtures of the readers' tests."""

from pathlib import Path

import pytest
from PIL import Image

from miniclip.data import Captions


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Folder with four images, a.jpg to d.jpg; tables are written beside them."""
    root = tmp_path_factory.mktemp("tables")
    for name in "abcd":
        Image.new("RGB", (4, 3), (200, 30, 30)).save(root / f"{name}.jpg")
    return root


@pytest.fixture
def read(folder):
    """Write a table beside the images and read it."""

    def write_and_read(content: str | bytes, name: str = "table.csv", **options):
        path = folder / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        reader = Captions.from_jsonl if path.suffix in {".jsonl", ".json"} else Captions.from_csv
        return reader(path, **options)

    return write_and_read
