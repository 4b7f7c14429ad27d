"""Files beside the models: preprocessing, tokenizer, and checks that an application will tokenize like the model."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from miniclip.checkpoints.export import tokenizer_config
from miniclip.checkpoints.native import TOKENIZER, write_json
from miniclip.inference.model import CLIPModel

if TYPE_CHECKING:
    from miniclip.tokenizer import TextTokenizer

TOKENIZER_CONFIG = "tokenizer_config.json"


def preprocess_cfg(model: CLIPModel) -> dict[str, Any]:
    """Return the preprocessing in open_clip's words, with `crop_rounding` of miniclip."""
    config = model.config
    return {
        "size": [config.image.image_size] * 2,
        "mode": "RGB",
        "mean": list(config.mean),
        "std": list(config.std),
        "interpolation": config.interpolation,
        "resize_mode": config.resize,
        "fill_color": 0,
        "crop_rounding": config.crop_rounding,
    }


def required_tokenizer(model: CLIPModel, application: str) -> TextTokenizer:
    """Return a model's tokenizer.

    Raises:
        ValueError: the model has none.
    """
    tokenizer = model.tokenizer
    if tokenizer is None:
        raise ValueError(
            f"{application} needs a tokenizer, and this model has none: set model.tokenizer = Tokenizer.load(path), or "
            "write it into the checkpoint first with `miniclip convert SOURCE TARGET --tokenizer PATH`"
        )
    return tokenizer


def save_tokenizer(tokenizer: TextTokenizer, file: Path) -> None:
    """Write a tokenizer.json.

    Raises:
        ValueError: the tokenizer cannot be written as one.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    try:
        tokenizer.save(file)
    except (AttributeError, NotImplementedError, TypeError) as error:
        raise ValueError(
            f"the tokenizer, a {type(tokenizer).__name__}, cannot be written as tokenizer.json ({error}): use one that "
            "miniclip.Tokenizer or miniclip.tokenizer.load_tokenizer reads"
        ) from error


def write_tokenizer(tokenizer: TextTokenizer, model: CLIPModel, folder: Path) -> dict[str, Any]:
    """Write tokenizer.json and tokenizer_config.json; return the content of the latter."""
    save_tokenizer(tokenizer, folder / TOKENIZER)
    values = tokenizer_config(folder / TOKENIZER, model.config)
    write_json(folder / TOKENIZER_CONFIG, values)
    return values
