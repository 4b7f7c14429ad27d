"""Checkpoints on disk: read safely, and written atomically, so that a reader never sees half a file.

A checkpoint is a directory with `model.safetensors`, `config.json` and `tokenizer.json`; nothing in it can run code.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as to_bytes
from torch import Tensor, nn

from miniclip.atomic import write_atomically
from miniclip.config import CLIPConfig
from miniclip.errors import CheckpointError
from miniclip.models.clip import CLIP
from miniclip.tokenizer import Tokenizer

WEIGHTS, CONFIG, TOKENIZER = "model.safetensors", "config.json", "tokenizer.json"


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


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> None:
    """Write a safetensors file, atomically."""
    data = to_bytes({k: v.detach().contiguous() for k, v in tensors.items()}, dict(metadata) if metadata else None)
    write_atomically(path, lambda temporary: temporary.write_bytes(data))


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read a safetensors file.

    Returns:
        The tensors, and the file's metadata.

    Raises:
        FileNotFoundError: there is no such file.
        CheckpointError: it is no whole safetensors file.
    """
    try:
        with safe_open(path, framework="pt") as file:
            return {key: _aligned(file.get_tensor(key)) for key in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except SafetensorError as error:
        raise CheckpointError(
            f"{path}: not a whole safetensors file ({error}); it may have been cut short: copy or download it again"
        ) from None


def _aligned(tensor: Tensor) -> Tensor:
    """The tensor in memory that starts as torch's own does.

    A file's start at any byte, and kernels sum in another order there: the last bit of a result would differ between a
    model that was trained and the same one loaded.
    """
    return tensor if tensor.data_ptr() % 64 == 0 else tensor.clone()


def save_checkpoint(model: CLIP, path: str | Path) -> None:
    """Write a model with all that it needs: weights, configuration, tokenizer.

    Args:
        model: any precision; the file keeps it.
        path: the directory, made where it is missing; files of the same names are replaced one by one, each atomically.
    """
    path = Path(path)
    path.mkdir(parents=True, exist_ok=True)
    precision = str(model.log_scale.dtype).removeprefix("torch.")
    write_json(path / CONFIG, {"format": "miniclip", **model.config.to_dict(), "precision": precision})
    if model.tokenizer is not None:
        model.tokenizer.save(path / TOKENIZER)
    else:  # one that an earlier model left there would be taken for this one's
        (path / TOKENIZER).unlink(missing_ok=True)
    write_tensors(path / WEIGHTS, model.state_dict(), {"format": "pt"})


def load_checkpoint(path: str | Path, tokenizer: Tokenizer | None = None) -> CLIP:
    """Read what `save_checkpoint` wrote.

    Args:
        path: the directory.
        tokenizer: in place of the directory's own.

    Raises:
        FileNotFoundError: the directory or a file of it is missing.
        CheckpointError: a file is damaged, or the weights do not fit the configuration.
        ValueError: the tokenizer does not fit the model.
    """
    path = Path(path)
    for name in (CONFIG, WEIGHTS):
        if not (path / name).is_file():
            raise FileNotFoundError(
                f"{path}: no {name} in it; a checkpoint is a directory with {CONFIG}, {WEIGHTS} and {TOKENIZER}"
            )
    config = read_config(path / CONFIG)
    if tokenizer is None and (path / TOKENIZER).is_file():
        tokenizer = Tokenizer.load(path / TOKENIZER)
    with torch.device("meta"):  # no memory and no time for weights that the file replaces
        model = CLIP(config, tokenizer)
    load_weights(model, read_tensors(path / WEIGHTS)[0], str(path / WEIGHTS))
    return model


def read_config(path: Path) -> CLIPConfig:
    """Read a checkpoint's `config.json`.

    Raises:
        CheckpointError: it is no configuration of miniclip's.
    """
    values = read_json(path)
    if values.pop("format", None) != "miniclip":
        raise CheckpointError(f'{path}: no "format": "miniclip" in it; expected a configuration that miniclip wrote')
    values.pop("precision", None)  # the weights say it themselves
    try:
        return CLIPConfig.from_dict(values)
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"{path}: {error}") from None


def load_weights(module: nn.Module, tensors: Mapping[str, Tensor], source: str) -> None:
    """Give a module its weights, every one, without a copy.

    Raises:
        CheckpointError: keys are missing, unknown, or of another shape; it names them.
    """
    expected = {key: tuple(value.shape) for key, value in module.state_dict().items()}
    found = {key: tuple(value.shape) for key, value in tensors.items()}
    problems = [f"{key} is missing" for key in expected.keys() - found.keys()]
    problems += [f"{key} is unknown" for key in found.keys() - expected.keys()]
    problems += [
        f"{key} has the shape {found[key]}, expected {expected[key]}"
        for key in expected.keys() & found.keys()
        if found[key] != expected[key]
    ]
    if problems:
        shown = "; ".join(sorted(problems)[:4]) + (f"; and {len(problems) - 4} more" if len(problems) > 4 else "")
        raise CheckpointError(f"{source}: the weights do not fit the configuration beside them: {shown}")
    module.load_state_dict(dict(tensors), assign=True)
