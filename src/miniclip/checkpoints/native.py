"""miniclip's own layout: a directory with `model.safetensors`, `config.json` and `tokenizer.json`.

Nothing in the files can run code. All are written under temporary names, and renamed when they are complete.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized

from miniclip.checkpoints.formats.safetensors import tensors_writer
from miniclip.checkpoints.names import unwrap, unwrapped_name
from miniclip.config import CLIPConfig
from miniclip.errors import CheckpointError
from miniclip.fast import plain
from miniclip.finetuning.lora import NAMES, LoRALinear, lora_layers, merged_state
from miniclip.inference.model import CLIPModel
from miniclip.models.clip import CLIP
from miniclip.utils.atomic import write_atomically, write_together
from miniclip.utils.files import MAX_JSON, parse_json, read_limited
from miniclip.utils.formatting import one_line
from miniclip.utils.items import describe

if TYPE_CHECKING:
    from miniclip.tokenizer import TextTokenizer

WEIGHTS, CONFIG, TOKENIZER = "model.safetensors", "config.json", "tokenizer.json"
FORMAT = "miniclip"


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file, indented, atomically."""
    write_atomically(path, _json_writer(value))


def _json_writer(value: Any) -> Callable[[Path], object]:
    text = json.dumps(value, indent=2, ensure_ascii=False) + "\n"
    return lambda temporary: temporary.write_text(text, encoding="utf-8")


def read_json(path: Path, limit: int = MAX_JSON) -> dict[str, Any]:
    """Read a JSON object from a file of at most `limit` bytes.

    Raises:
        FileNotFoundError: the file does not exist.
        CheckpointError: it is not a JSON object.
    """
    try:
        value = parse_json(read_limited(path, limit))
    except ValueError as error:
        raise CheckpointError(f"{path}: not JSON ({error}); expected a configuration: copy the file again") from None
    if not isinstance(value, dict):
        raise CheckpointError(f"{path}: a JSON {type(value).__name__}; expected an object")
    return value


def save_checkpoint(model: nn.Module, path: str | Path, weights: Mapping[str, Tensor] | None = None) -> None:
    """Write a model's weights, configuration and tokenizer.

    Args:
        model: a CLIP of any precision, which the file keeps. torch.compile and DataParallel may wrap the model or its
            parts.
        path: the directory, made if it is missing. Files of the same names are replaced when all new ones are complete.
        weights: the model's state dict, for a model whose own is sharded; None: the model's own.

    Raises:
        TypeError: the model is not a CLIP.
        ValueError: the model's modules or parameters are not those of its configuration.
        OSError: writing failed, as on a full disk; the files that were there are unchanged.
    """
    clip = unwrap_clip(model)
    tensors = full_state(clip, weights)
    path = Path(path)
    path.mkdir(parents=True, exist_ok=True)
    precision = str(clip.log_scale.dtype).removeprefix("torch.")
    config = {"format": FORMAT, **clip.config.to_dict(), "precision": precision}
    writes: dict[Path, Callable[[Path], object]] = {
        path / WEIGHTS: tensors_writer(path / WEIGHTS, tensors, {"format": "pt"}),
        path / CONFIG: _json_writer(config),
    }
    if (tokenizer := available_tokenizer(clip)) is not None:
        writes[path / TOKENIZER] = lambda temporary: _write_tokenizer(tokenizer, temporary)
    write_together(writes)
    if tokenizer is None:  # another model's tokenizer would be used with these weights
        (path / TOKENIZER).unlink(missing_ok=True)


def _write_tokenizer(tokenizer: TextTokenizer, temporary: Path) -> None:
    temporary.touch()  # `save` takes a new name without .json for a directory
    tokenizer.save(temporary)


def unwrap_clip(model: nn.Module) -> CLIPModel:
    """Return the CLIP inside a model's wrappers.

    Raises:
        TypeError: the module is not a CLIPModel, or holds none.
    """
    inner = unwrap(model) if isinstance(model, nn.Module) else model
    if type(inner) is CLIP:
        raise TypeError(
            "the model is a CLIP, without preprocessing and tokenizer: build it as CLIPModel(config, tokenizer)"
        )
    if not isinstance(inner, CLIPModel):
        raise TypeError(
            f"the model is {describe(inner)}; expected a CLIPModel: merge the adapters of a peft model "
            "first, with model = model.merge_and_unload()"
        )
    return inner


def full_state(model: CLIPModel, weights: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
    """Return a model's state dict under the names that `load` opens.

    A parametrized weight is written as the weight that it computes, and a LoRA layer with its adapter merged.

    Raises:
        ValueError: the modules or parameters are not those of the model's configuration.
    """
    state = _computed_state(model) if weights is None else weights
    require_plain(model, state)
    adapters = {unwrapped_name(name): layer.lora for name, layer in lora_layers(model).items()}
    return merged_state(adapters, {unwrapped_name(name): tensor.detach() for name, tensor in state.items()})


def require_plain(model: CLIPModel, names: Iterable[str]) -> None:
    """Check that `load` rebuilds a model from its configuration.

    Args:
        model: the model; wrappers may be around its parts.
        names: of its weights; adapters of LoRA layers do not count.

    Raises:
        ValueError: a module was replaced, as by quantization or an adapter, or the weights have other names.
    """
    with torch.device("meta"):
        expected = plain(CLIPModel(model.config))
    modules = {
        unwrapped_name(name): module for name, module in model.named_modules()
    }  # a wrapped one after its wrapper
    replaced = [
        f"{name} is a {type(modules.get(name)).__module__}.{type(modules.get(name)).__qualname__}"
        for name, module in expected.named_modules()
        if not isinstance(modules.get(name), type(module))
    ]
    adapted = [name for name, module in modules.items() if isinstance(module, LoRALinear)]
    plain_names = {unwrapped_name(name) for name in names} - {f"{name}.{part}" for name in adapted for part in NAMES}
    different = replaced or sorted(plain_names ^ expected.state_dict().keys())
    if different:
        raise ValueError(
            f"the model is not that of its configuration, so it could not be loaded again: {', '.join(different[:4])}; "
            "restore replaced modules, save the model before it is quantized, and merge the adapters of a peft model "
            "with merge_and_unload()"
        )


@torch.no_grad()
def _computed_state(model: CLIPModel) -> dict[str, Tensor]:
    """Return a model's state dict, with the weights that parametrizations compute in place of their parameters."""
    state: dict[str, Tensor] = model.state_dict()
    for name, module in model.named_modules():
        parametrizations = module.parametrizations if is_parametrized(module) else {}
        for weight in parametrizations:
            start = f"{name}." if name else ""
            inner = tuple(key for key in state if key.startswith(f"{start}parametrizations.{weight}."))
            state = {key: value for key, value in state.items() if key not in inner}
            state[f"{start}{weight}"] = getattr(module, str(weight))
    return state


def available_tokenizer(model: CLIPModel) -> TextTokenizer | None:
    """Return a model's tokenizer; None, with a warning, if it cannot be fetched now."""
    try:
        return model.tokenizer
    except (ImportError, OSError) as error:
        warnings.warn(f"written without a tokenizer: {error}", UserWarning, stacklevel=3)
        return None


def parse_config(path: Path, values: Mapping[str, Any]) -> CLIPConfig:
    """Return the configuration in a checkpoint's `config.json`.

    Raises:
        CheckpointError: it is not a configuration of miniclip's.
    """
    values = dict(values)
    if values.pop("format", None) != FORMAT:
        raise CheckpointError(f'{path}: no "format": "{FORMAT}" in it; expected a configuration that miniclip wrote')
    values.pop("precision", None)  # for readers; the weights have their data type
    try:
        return CLIPConfig.from_dict(values)
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"{path}: {one_line(error, 1000)}") from None
