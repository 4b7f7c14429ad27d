"""A toy model for shapes, and a labelled dataset of its images."""

import pytest

from miniclip.data import Shapes
from miniclip.evaluation import ShapeClasses
from miniclip.tokenizer import Tokenizer
from tests.toys import make_model


@pytest.fixture(scope="session")
def shape_model(tokenizer: Tokenizer):
    """Toy model of 16 px, untrained."""
    return make_model(tokenizer)


@pytest.fixture(scope="session")
def colors() -> ShapeClasses:
    return ShapeClasses("color", "test", image_size=16)


@pytest.fixture(scope="session")
def small_shapes() -> Shapes:
    return Shapes("test", 24, image_size=16)
