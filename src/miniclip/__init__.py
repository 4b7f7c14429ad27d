"""miniclip: CLIPModel from first principles in PyTorch.

model = miniclip.load("vit_b_16")
model.encode_image("cat.jpg") @ model.encode_text(["a cat", "a dog"]).T
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from torch import Tensor

from miniclip.config import CLIPConfig, ImageConfig, TextConfig
from miniclip.errors import CheckpointError, DataError
from miniclip.hub import export, list_models, load, push_to_hub, save
from miniclip.inference.image_items import Images
from miniclip.inference.model import CLIPModel
from miniclip.inference.texts import Texts
from miniclip.losses import contrastive_loss, sigmoid_loss
from miniclip.models.clip import CLIP, CLIPOutput
from miniclip.tokenizer import Tokenizer
from miniclip.version import __version__ as __version__

if TYPE_CHECKING:
    from miniclip import data, evaluation
    from miniclip import train as train
    from miniclip.train import TrainConfig, Trainer


# Imported on first use: inference needs neither the trainer nor the readers of datasets.
_LAZY = {"data": "data", "evaluation": "evaluation", "train": "train", "TrainConfig": "train", "Trainer": "train"}


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'miniclip' has no attribute {name!r}")
    module = import_module(f"miniclip.{_LAZY[name]}")
    globals()[name] = value = module if name == _LAZY[name] else getattr(module, name)
    return value


def __dir__() -> list[str]:
    return sorted(__all__)


def encode_image(model: CLIPModel, images: Images, **options: Any) -> Tensor:
    """Return `model.encode_image(images, **options)`: unit vectors (N, E)."""
    return model.encode_image(images, **options)


def encode_text(model: CLIPModel, texts: Texts, **options: Any) -> Tensor:
    """Return `model.encode_text(texts, **options)`: unit vectors (N, E)."""
    return model.encode_text(texts, **options)


__all__ = [
    "CLIP",
    "CLIPConfig",
    "CLIPModel",
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
