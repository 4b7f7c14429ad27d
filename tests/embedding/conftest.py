"""Fixtures: a toy model, a folder of images, and the small chunks that make resuming visible."""

from pathlib import Path

import pytest

from miniclip.data import Shapes
from miniclip.embedding import parts, writing
from miniclip.tokenizer import Tokenizer
from tests.toys import make_model

COUNT = 30


@pytest.fixture(scope="session")
def toy():
    data = Shapes("train", 40, image_size=16)
    return make_model(Tokenizer.train([caption for group in data.captions for caption in group], 600)).cpu()


@pytest.fixture(scope="session")
def photos(tmp_path_factory) -> Path:
    """Folder of 30 images, some in a folder below, with unusual names."""
    root, data = tmp_path_factory.mktemp("source") / "photos", Shapes("val", COUNT, image_size=16)
    (root / "été 夏").mkdir(parents=True)
    for index in range(COUNT):
        data[index][0].save(root / ("été 夏" if index % 3 == 0 else "") / f"{index:02}.{'png' if index % 2 else 'jpg'}")
    return root


@pytest.fixture
def small_chunks(monkeypatch):
    """A chunk of the journal has one batch of images, or three texts."""
    monkeypatch.setattr(writing, "CHUNK_ITEMS", 1)
    monkeypatch.setattr(parts, "TEXTS", 3)
