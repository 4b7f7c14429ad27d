"""Our own layout, written atomically, so that a reader never sees half a file.

A checkpoint is a directory with `model.safetensors`, `config.json` and `tokenizer.json`; nothing in it can run code.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from miniclip.checkpoints.formats.safetensors import write_tensors
from miniclip.config import CLIPConfig
from miniclip.errors import CheckpointError
from miniclip.inference.model import CLIPModel
from miniclip.utils.atomic import write_atomically

if TYPE_CHECKING:
    from miniclip.tokenizer import TextTokenizer

WEIGHTS, CONFIG, TOKENIZER = "model.safetensors", "config.json", "tokenizer.json"
FORMAT = "miniclip"


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file, indented, atomically."""
    text = json.dumps(value, indent=2, ensure_ascii=False) + "\n"
    write_atomically(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        FileNotFoundError: there is no such file.
        CheckpointError: it is no JSON object.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise CheckpointError(f"{path}: not JSON ({error}); expected a configuration: copy the file again") from None
    if not isinstance(value, dict):
        raise CheckpointError(f"{path}: a JSON {type(value).__name__}; expected an object")
    return value


def save_checkpoint(model: CLIPModel, path: str | Path, weights: Mapping[str, Tensor] | None = None) -> None:
    """Write a model with all that it needs: weights, configuration, tokenizer.

    Args:
        model: any precision; the file keeps it.
        path: the directory, made where it is missing; files of the same names are replaced one by one, each atomically.
        weights: the model's state, where the model itself does not hold it whole; None: it does.
    """
    path = Path(path)
    path.mkdir(parents=True, exist_ok=True)
    precision = str(model.log_scale.dtype).removeprefix("torch.")
    write_json(path / CONFIG, {"format": FORMAT, **model.config.to_dict(), "precision": precision})
    if (tokenizer := tokenizer_at_hand(model)) is not None:
        tokenizer.save(path / TOKENIZER)
    else:  # one that an earlier model left there would be taken for this one's
        (path / TOKENIZER).unlink(missing_ok=True)
    write_tensors(path / WEIGHTS, dict(model.state_dict() if weights is None else weights), {"format": "pt"})


def tokenizer_at_hand(model: CLIPModel) -> TextTokenizer | None:
    """A model's tokenizer; None, with a warning, where it is still to be fetched and cannot be."""
    try:
        return model.tokenizer
    except (ImportError, OSError) as error:
        warnings.warn(f"written without a tokenizer: {error}", UserWarning, stacklevel=3)
        return None


def parse_config(path: Path, values: Mapping[str, Any]) -> CLIPConfig:
    """The configuration in a checkpoint's `config.json`.

    Raises:
        CheckpointError: it is no configuration of miniclip's.
    """
    values = dict(values)
    if values.pop("format", None) != FORMAT:
        raise CheckpointError(f'{path}: no "format": "{FORMAT}" in it; expected a configuration that miniclip wrote')
    values.pop("precision", None)  # the weights say it themselves
    try:
        return CLIPConfig.from_dict(values)
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"{path}: {error}") from None
