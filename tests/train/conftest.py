"""A model and data so small that a run takes a second."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from miniclip.config import CLIPConfig, ImageConfig, TextConfig
from miniclip.data import Shapes
from miniclip.hub import fresh
from miniclip.models.clip import CLIP
from miniclip.tokenizer import Tokenizer
from miniclip.train import Callback, TrainConfig, Trainer
from miniclip.train.drawing import EvaluationPictures

CONFIG = CLIPConfig(ImageConfig(16, 8, 32, 1, 2), TextConfig(77, 600, 32, 1, 2), 16)


@pytest.fixture(autouse=True)
def _undrawn(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the pictures of evaluations, which take longer than these runs; a test that asks for `drawn` has them."""
    if "drawn" not in request.fixturenames:
        monkeypatch.setattr(EvaluationPictures, "draw", lambda self, trainer: None)


@pytest.fixture
def drawn() -> None:
    """With the pictures of evaluations."""


@pytest.fixture(scope="session")
def train_data() -> Shapes:
    return Shapes("train", 40, image_size=16)


@pytest.fixture(scope="session")
def val_data() -> Shapes:
    return Shapes("val", 20, image_size=16)


@pytest.fixture(scope="session")
def tokenizer(train_data: Shapes) -> Tokenizer:
    return Tokenizer.train([caption for group in train_data.captions for caption in group], 600)


@pytest.fixture
def model(tokenizer: Tokenizer) -> CLIP:
    return make_model(tokenizer)


def make_model(tokenizer: Tokenizer, **changes: object) -> CLIP:
    torch.manual_seed(0)
    return fresh(dataclasses.replace(CONFIG, **changes), tokenizer)


@pytest.fixture
def start(tmp_path: Path, tokenizer: Tokenizer, train_data: Shapes, val_data: Shapes) -> Callable[..., Trainer]:
    """A trainer of a fresh model: 5 steps an epoch, 2 epochs, quiet; the same model and data at each call."""

    def make(
        run: str = "run", callbacks: list[Callback] | None = None, model: CLIP | None = None, **settings: object
    ) -> Trainer:
        config = TrainConfig(**{"epochs": 2, "batch_size": 8, "precision": "float32", "log_every": 3, **settings})
        return Trainer(
            model or make_model(tokenizer),
            train_data,
            val_data,
            config=config,
            run_dir=tmp_path / run,
            callbacks=callbacks,
            device="cpu",
        )

    return make
