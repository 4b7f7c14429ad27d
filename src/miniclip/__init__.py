"""miniclip: CLIPModel from first principles in PyTorch.

model = miniclip.load("vit_b_16")
model.encode_image("cat.jpg") @ model.encode_text(["a cat", "a dog"]).T
"""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from miniclip.version import __version__ as __version__

if TYPE_CHECKING:
    from torch import Tensor

    from miniclip import data, evaluation
    from miniclip import train as train
    from miniclip.config import CLIPConfig, ImageConfig, TextConfig
    from miniclip.embedding import embed
    from miniclip.errors import CheckpointError, DataError
    from miniclip.explanation import explain
    from miniclip.fast.quantizing import quantize
    from miniclip.finetuning.interpolation import interpolate, soup
    from miniclip.hub import export, list_models, load, push_to_hub, save
    from miniclip.inference.image_items import Images
    from miniclip.inference.model import CLIPModel
    from miniclip.inference.texts import Texts
    from miniclip.losses import contrastive_loss, sigmoid_loss
    from miniclip.models.clip import CLIP, CLIPOutput
    from miniclip.search import Index
    from miniclip.tokenizer import Tokenizer
    from miniclip.train import TrainConfig, Trainer


# Imported on first use: the help of a command needs no torch, and inference no trainer and no readers of datasets.
_MODULES = {
    "CLIP": "models.clip",
    "CLIPConfig": "config",
    "CLIPModel": "inference.model",
    "CLIPOutput": "models.clip",
    "CheckpointError": "errors",
    "DataError": "errors",
    "ImageConfig": "config",
    "Index": "search",
    "TextConfig": "config",
    "Tokenizer": "tokenizer",
    "TrainConfig": "train",
    "Trainer": "train",
    "contrastive_loss": "losses",
    "embed": "embedding",
    "explain": "explanation",
    "export": "hub",
    "interpolate": "finetuning.interpolation",
    "list_models": "hub",
    "load": "hub",
    "push_to_hub": "hub",
    "quantize": "fast.quantizing",
    "save": "hub",
    "sigmoid_loss": "losses",
    "soup": "finetuning.interpolation",
}


def __getattr__(name: str) -> Any:
    """Return a public name, or a module of the package, as in `miniclip.data`."""
    if name in _MODULES:
        value = getattr(import_module(f"miniclip.{_MODULES[name]}"), name)
    elif not name.startswith("_") and find_spec(f"miniclip.{name}"):
        value = import_module(f"miniclip.{name}")
    else:
        raise AttributeError(f"module 'miniclip' has no attribute {name!r}")
    globals()[name] = value
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
    "Index",
    "TextConfig",
    "Tokenizer",
    "TrainConfig",
    "Trainer",
    "contrastive_loss",
    "data",
    "embed",
    "encode_image",
    "encode_text",
    "evaluation",
    "explain",
    "export",
    "interpolate",
    "list_models",
    "load",
    "push_to_hub",
    "quantize",
    "save",
    "sigmoid_loss",
    "soup",
]
