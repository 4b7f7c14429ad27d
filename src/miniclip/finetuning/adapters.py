"""LoRA adapters on disk: a few MB beside a base model that stays as it is.

An adapter is a directory with `adapter_model.safetensors` and `adapter_config.json`, in the names and format of peft.
If transformers' CLIPModel can hold the base, peft opens the adapter on it. The metadata of the weights have a digest of
the base. An adapter is refused on other weights, since it would give wrong embeddings without an error. Only position
embeddings do not count: a load at another size interpolates them, and machines differ in the last bits of the result.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from miniclip.checkpoints.files import ADAPTER_CONFIG, RUN_CHECKPOINTS
from miniclip.checkpoints.formats.safetensors import read_tensors, write_tensors
from miniclip.checkpoints.names import unwrapped_name
from miniclip.checkpoints.native import read_json, unwrap_clip, write_json
from miniclip.config import CLIPConfig
from miniclip.errors import CheckpointError
from miniclip.finetuning.lora import NAMES, LoRA, insert, is_lora, lora_layers, merged_weight
from miniclip.inference.fingerprint import add_weights
from miniclip.inference.model import CLIPModel
from miniclip.utils.formatting import short
from miniclip.utils.option_names import option
from miniclip.utils.target import require_target

WEIGHTS = "adapter_model.safetensors"  # peft's name
FOLDER = "adapter"  # subfolder of a checkpoint in a run
FORMAT = "miniclip adapter 1"
START = "base_model.model."  # prefix of peft's names
TOWERS = {"image": "vision_model", "text": "text_model"}
LAYERS = {  # miniclip's layer and group of rows to transformers' layer
    ("attention.qkv", 0): "self_attn.q_proj",
    ("attention.qkv", 1): "self_attn.k_proj",
    ("attention.qkv", 2): "self_attn.v_proj",
    ("attention.out", 0): "self_attn.out_proj",
    ("mlp.up", 0): "mlp.fc1",
    ("mlp.down", 0): "mlp.fc2",
}
WITH_PEFT = "apply it to its base with peft, merge it with merge_and_unload(), and load the merged model"
# peft's settings that change what an adapter computes, and the value that LoRA here has
EXPECTED = {
    "peft_type": "LORA", "bias": "none", "use_dora": False, "use_rslora": False, "fan_in_fan_out": False,
    "rank_pattern": {}, "alpha_pattern": {}, "modules_to_save": None, "layers_to_transform": None,
}  # fmt: skip


class Adapter(NamedTuple):
    """Adapter of one layer: its shape and its matrices."""

    lora: LoRA
    A: Tensor  # (G r, K)
    B: Tensor  # (G n, r)


def save_adapter(model: nn.Module, path: str | Path, *, overwrite: bool = False) -> None:
    """Write a model's LoRA adapters, without the base model, to a directory.

    Args:
        model: a CLIPModel with adapters, whose other weights are frozen.
        path: directory, created if it does not exist.
        overwrite: allow a directory with files, such as an earlier adapter; those of the same names are replaced.

    Raises:
        ValueError: the model has no adapters or several ranks, or other weights of it are trained.
        FileExistsError: the directory has files, or belongs to a run, or the path is a file.
        TypeError: the model is not a CLIPModel.
    """
    clip = unwrap_clip(model)
    if not lora_layers(clip):
        raise ValueError("the model has no LoRA adapters; miniclip.save(model, path) writes all weights")
    if trained := other_trained(clip):
        raise ValueError(
            f"{len(trained)} other parameters of the model are trained, such as {trained[0]}, and an adapter does not "
            "hold them: write the whole model with miniclip.save(model, path), or freeze them before training"
        )
    write_adapter(clip, require_target(path, overwrite), clip.state_dict())


def other_trained(model: nn.Module) -> list[str]:
    """Return the names of the trained parameters that are not adapters."""
    return [name for name, parameter in model.named_parameters() if parameter.requires_grad and not is_lora(name)]


def write_adapter(model: CLIPModel, path: Path, weights: Mapping[str, Tensor]) -> None:
    """Write the adapters of a model to a directory.

    Args:
        model: the model, for the shapes.
        path: the directory, made if it is missing.
        weights: the model's state dict.

    Raises:
        ValueError: the adapters have several ranks or alphas.
    """
    weights = {unwrapped_name(name): value for name, value in weights.items()}
    layers = {unwrapped_name(name): layer.lora for name, layer in lora_layers(model).items()}
    settings = sorted({(lora.rank, lora.alpha) for lora in layers.values()})
    if len(settings) > 1:
        raise ValueError(f"the adapters have several ranks and alphas, {settings}; expected the same in all layers")
    tensors = {}
    for layer, lora in layers.items():
        for part in NAMES:
            pieces = weights[f"{layer}.{part}"].chunk(len(lora.adapted))
            for group, piece in zip(lora.adapted, pieces, strict=True):
                tensors[f"{START}{_foreign_name(layer, group)}.{part}.weight"] = piece
    (rank, alpha), sizes = settings[0], _sizes(model)
    facts = {"format": FORMAT, "base": base_fingerprint(model.config, weights), **sizes}
    config = {
        **EXPECTED,
        "task_type": None,
        "base_model_name_or_path": model.source,
        "r": rank,
        "lora_alpha": alpha,
        "lora_dropout": 0.0,
        "inference_mode": True,
        "target_modules": _pattern(tensors),
    }
    path.mkdir(parents=True, exist_ok=True)
    write_json(path / ADAPTER_CONFIG, config)
    write_tensors(path / WEIGHTS, tensors, {"format": "pt", "miniclip": json.dumps(facts)})


def base_fingerprint(config: CLIPConfig, weights: Mapping[str, Tensor]) -> str:
    """Return a digest of a configuration and of a state dict without adapters, 64 hexadecimal digits.

    Weights count by their values as float32. Position embeddings do not count: a load at another size interpolates
    them, and machines differ in the last bits of the result. `_sizes` compares the sizes. The initial values of scale
    and bias mean nothing any more.
    """
    values = config.to_dict()
    for part, name in ((values["image"], "image_size"), (values["text"], "context_length")):
        del part[name]
    del values["logit_scale"], values["logit_bias"]
    digest = hashlib.sha256(json.dumps(values, sort_keys=True).encode())
    add_weights(digest, {n: value for n, value in weights.items() if not is_lora(n) and not n.endswith("positions")})
    return digest.hexdigest()


def load_adapter(model: CLIPModel, path: str | Path) -> CLIPModel:
    """Add a saved adapter to its base model, in place, to train it on. `miniclip.load(base, adapter=path)` merges it.

    All other parameters are frozen.

    Args:
        model: the base model.
        path: an adapter's directory; or a run, of which the adapter of `best/` or else `last/` is loaded.

    Returns:
        The model.

    Raises:
        FileNotFoundError: no adapter there.
        CheckpointError: the adapter is damaged, belongs to another base, or is of a kind that LoRA here is not.
        ValueError: the model has adapters already.
    """
    if lora_layers(model):
        raise ValueError("the model has LoRA adapters already: merge them first, miniclip.finetuning.merge(model)")
    adapters = read_adapter(model, Path(path))
    insert(model, {layer: adapter.lora for layer, adapter in adapters.items()})
    for name, layer in lora_layers(model).items():
        layer.lora_A.data.copy_(adapters[name].A)
        layer.lora_B.data.copy_(adapters[name].B)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(is_lora(name))
    return model


@torch.no_grad()
def merge_adapter(model: CLIPModel, path: str | Path) -> None:
    """Add a saved adapter to the weights of its base model, in place; errors as in `load_adapter`."""
    for layer, adapter in read_adapter(model, Path(path)).items():
        weight = model.get_submodule(layer).weight
        assert isinstance(weight, Tensor)
        A, B = adapter.A.to(weight.device), adapter.B.to(weight.device)
        weight.copy_(merged_weight(weight, A, B, adapter.lora))


def read_adapter(model: CLIPModel, path: Path) -> dict[str, Adapter]:
    """Read an adapter, and check that it belongs to a base model.

    Returns:
        The adapters by name of the layer.

    Raises:
        FileNotFoundError: no adapter there.
        CheckpointError: the adapter is damaged, belongs to another base, or is of a kind that LoRA here is not.
    """
    folder = find_adapter(path)
    config = read_json(folder / ADAPTER_CONFIG)
    for name, expected in EXPECTED.items():
        if (value := config.get(name, expected)) != expected and (value or expected):
            raise CheckpointError(f"{folder}: {name} is {short(value)}, expected {short(expected)}: {WITH_PEFT}")
    tensors, metadata = read_tensors(folder / WEIGHTS)
    facts = parse_facts(folder, metadata)
    sizes = _sizes(model)
    for name, size in sizes.items():
        if facts.get(name) != size:
            raise CheckpointError(
                f"{folder}: the adapter was trained at {name} {short(facts.get(name))}, and the model has {size}: load "
                f"the base with {option(name, facts.get(name))}"
            )
    if (found := base_fingerprint(model.config, model.state_dict())) != facts.get("base"):
        raise CheckpointError(
            f"{folder}: the adapter belongs to a base with the digest {short(facts.get('base'))}, and the weights of "
            f"{model.source or 'this model'} have {found[:16]}…: load it with the base that it was trained on"
            + (f", {config['base_model_name_or_path']}" if config.get("base_model_name_or_path") else "")
        )
    return _adapters(folder, model, config, tensors)


def find_adapter(path: Path) -> Path:
    """Return the directory of an adapter: the path, or the one of a checkpoint or run.

    Raises:
        FileNotFoundError: no adapter there.
    """
    path = path.expanduser()
    folders = (path, path / FOLDER, *(path / name / FOLDER for name in RUN_CHECKPOINTS))
    folder = next((folder for folder in folders if (folder / ADAPTER_CONFIG).is_file()), None)
    if folder is None:
        raise FileNotFoundError(
            f"{path}: no {ADAPTER_CONFIG} there; expected a directory that miniclip.finetuning.save_adapter wrote, or "
            "a run of LoRA"
        )
    return folder


def parse_facts(folder: Path, metadata: Mapping[str, str]) -> dict[str, Any]:
    """Return what the metadata of an adapter's weights tell of its base.

    Raises:
        CheckpointError: miniclip did not write them.
    """
    try:
        facts = json.loads(metadata["miniclip"])
        if facts["format"] == FORMAT:
            return dict(facts)
    except (KeyError, TypeError, ValueError):
        pass
    raise CheckpointError(
        f"{folder / WEIGHTS}: no digest of the base model in its metadata, expected {FORMAT!r}: {WITH_PEFT}"
    )


def _adapters(
    folder: Path, model: CLIPModel, config: Mapping[str, Any], tensors: Mapping[str, Tensor]
) -> dict[str, Adapter]:
    """Gather the tensors of each layer, whose groups peft keeps apart.

    Raises:
        CheckpointError: names or shapes are not those of the model.
    """
    rank, alpha, left = config.get("r"), config.get("lora_alpha"), set(tensors)
    if type(rank) is not int or rank < 1 or not isinstance(alpha, int | float):
        raise CheckpointError(f"{folder}: found r {short(rank)} and lora_alpha {short(alpha)}, expected numbers")
    adapters = {}
    for name, layer in model.named_modules():
        if not isinstance(layer, nn.Linear) or ".blocks." not in name:
            continue
        groups = 3 if name.endswith("qkv") else 1
        keys = {g: [f"{START}{_foreign_name(name, g)}.{part}.weight" for part in NAMES] for g in range(groups)}
        adapted = tuple(group for group, pair in keys.items() if set(pair) <= set(tensors))
        if not adapted:
            continue
        (N, K), shape = layer.weight.shape, LoRA(rank, float(alpha), adapted, groups)
        for group in adapted:
            found = [tuple(tensors[key].shape) for key in keys[group]]
            if found != [(rank, K), (N // groups, rank)]:
                raise CheckpointError(f"{folder}: {keys[group][0]} and lora_B have the shapes {found}; r is {rank}")
            left -= set(keys[group])
        A, B = (torch.cat([tensors[keys[group][part]] for group in adapted]) for part in (0, 1))
        adapters[name] = Adapter(shape, A, B)
    if left or not adapters:
        raise CheckpointError(f"{folder / WEIGHTS}: {min(left, default='nothing')} has no place in the model")
    return adapters


def _foreign_name(layer: str, group: int) -> str:
    """Return transformers' name of a layer.

    >>> _foreign_name("image.blocks.0.attention.qkv", 1)
    'vision_model.encoder.layers.0.self_attn.k_proj'
    """
    tower, _, block, rest = layer.split(".", 3)
    return f"{TOWERS[tower]}.encoder.layers.{block}.{LAYERS[rest, group]}"


def _pattern(names: Mapping[str, Tensor]) -> str:
    """Return peft's regular expression of the adapted layers."""
    parts = [re.sub(r"\.\d+\.", ".N.", name.removeprefix(START).rpartition(".lora_")[0]) for name in names]
    return "|".join(sorted({re.escape(part).replace("N", r"\d+") for part in parts}))


def _sizes(model: CLIPModel) -> dict[str, int]:
    """Sizes of the base that change its positions, which the digest leaves out."""
    return {"image_size": model.config.image.image_size, "context_length": model.config.text.context_length}
