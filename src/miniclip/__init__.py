"""miniclip: CLIPModel from first principles in PyTorch.

model = miniclip.load("vit_b_16")
model.encode_image("cat.jpg") @ model.encode_text(["a cat", "a dog"]).T
"""

from collections.abc import Sequence
from importlib import import_module
from typing import TYPE_CHECKING, Any

from torch import Tensor

from miniclip.config import CLIPConfig, ImageConfig, TextConfig
from miniclip.errors import CheckpointError, DataError
from miniclip.hub import export, list_models, load, push_to_hub, save
from miniclip.inference.model import CLIPModel
from miniclip.losses import contrastive_loss, sigmoid_loss
from miniclip.models.clip import CLIPOutput
from miniclip.tokenizer import Tokenizer

if TYPE_CHECKING:
    from miniclip import data, evaluation
    from miniclip.train import TrainConfig, Trainer

__version__ = "0.1.0"

# Imported when they are first asked for: who encodes needs no trainer, and no readers of data sets.
_LATER = {"data": "data", "evaluation": "evaluation", "TrainConfig": "train", "Trainer": "train"}


def __getattr__(name: str) -> Any:
    if name not in _LATER:
        raise AttributeError(f"module 'miniclip' has no attribute {name!r}")
    module = import_module(f"miniclip.{_LATER[name]}")
    globals()[name] = found = module if name == _LATER[name] else getattr(module, name)
    return found


def __dir__() -> list[str]:
    return sorted(globals().keys() | _LATER.keys())


def encode_image(model: CLIPModel, images: Any, **options: Any) -> Tensor:
    """`model.encode_image(images, …)`: pictures to unit vectors (N, E)."""
    return model.encode_image(images, **options)


def encode_text(model: CLIPModel, texts: str | Sequence[str] | Tensor, **options: Any) -> Tensor:
    """`model.encode_text(texts, …)`: texts to unit vectors (N, E)."""
    return model.encode_text(texts, **options)


__all__ = [
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
