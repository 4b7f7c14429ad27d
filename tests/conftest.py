"""What all tests share: hypothesis without deadlines or chance, torch's generator seeded, and a CLIP of toy size."""

import importlib.util
from pathlib import Path

import pytest
import torch
from hypothesis import settings

from miniclip.config import CLIPConfig, ImageConfig, TextConfig
from miniclip.tokenizer import Tokenizer

settings.register_profile("miniclip", deadline=None, derandomize=True, max_examples=50)
settings.load_profile("miniclip")

CAPTIONS = ["a red circle above a blue square", "a blue square", "a green triangle left of a red circle", "a dog"] * 3


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def toy_tokenizer() -> Tokenizer:
    """Of 540 tokens, which knows the words of some shapes."""
    return Tokenizer.train(CAPTIONS, 540)


@pytest.fixture(scope="session")
def toy_config(toy_tokenizer: Tokenizer) -> CLIPConfig:
    """A model that runs in a millisecond: 16 px pictures of 16 patches, 12 tokens of context, 8 numbers out."""
    text = TextConfig(12, toy_tokenizer.vocab_size, width=16, layers=2, heads=2)
    return CLIPConfig(ImageConfig(16, 4, width=24, layers=2, heads=3), text, embed_dim=8)


@pytest.fixture
def hub_server(monkeypatch, tmp_path_factory):
    """A Hub without repositories (`hub_server.py`); huggingface_hub talks to it alone, its cache empty."""
    spec = importlib.util.spec_from_file_location("hub_server", Path(__file__).with_name("hub_server.py"))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    with module.HubServer({}) as server:
        server.attach(monkeypatch, tmp_path_factory.mktemp("hub"))
        yield server
