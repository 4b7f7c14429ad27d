"""A folder of small images, and an index of it by a toy model."""

from pathlib import Path

import pytest

from miniclip import Index
from miniclip.data.shapes import Shapes
from miniclip.inference.model import CLIPModel
from miniclip.tokenizer import Tokenizer
from tests.toys import make_model

COUNT = 12


def write_images(folder: Path, count: int = COUNT, first: int = 0) -> None:
    """Write images of shapes: `0.png`, `1.png`, …"""
    folder.mkdir(parents=True, exist_ok=True)
    data = Shapes("train", first + count, image_size=16)
    for number in range(first, first + count):
        data[number][0].save(folder / f"{number}.png")


@pytest.fixture(scope="session")
def search_model(tokenizer: Tokenizer) -> CLIPModel:
    """Toy model of 16 px images and embeddings of 16 numbers."""
    return make_model(tokenizer).eval()


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """A folder of 12 images, three of them in a folder below."""
    folder = tmp_path / "photos"
    write_images(folder, COUNT - 3)
    write_images(folder / "below", 3, COUNT - 3)
    return folder


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory, search_model: CLIPModel) -> Path:
    """The directory of an index of 12 images, which tests only read."""
    folder = tmp_path_factory.mktemp("built") / "photos"
    write_images(folder)
    Index.build(search_model, folder).close()
    return folder.with_name("photos.index")


@pytest.fixture
def index(built: Path, search_model: CLIPModel) -> Index:
    """An open index of 12 images, which tests only read."""
    return Index.open(built, search_model)
