"""Properties of a model beside weights and configuration: adapters, frozen, tied and foreign parts, and modes.

A training state has them, so that a resumed run trains the same parameters in the same way. Modules and hooks that a
user added cannot be rebuilt. Their names are kept, and a resumed run is refused without them.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from miniclip.checkpoints.names import unwrapped_name
from miniclip.config import CLIPConfig
from miniclip.data.preprocess import Preprocess
from miniclip.errors import CheckpointError
from miniclip.fast.private import has_hooks
from miniclip.fast.seam import PLAIN
from miniclip.finetuning.lora import LoRA, LoRALinear, insert, lora_layers
from miniclip.inference.model import CLIPModel
from miniclip.runtime.distributed import is_sharded
from miniclip.utils.formatting import one_line

# classes in the model of a configuration
EXPECTED: Mapping[type[nn.Module], type[nn.Module]] = {**PLAIN, LoRALinear: nn.Linear}


@dataclasses.dataclass(frozen=True)
class Structure:
    """Properties of a model besides its weights and its configuration.

    Attributes:
        frozen: names of the parameters that are not trained.
        evaluated: names of the modules in evaluation mode beside others that train, without those of frozen towers.
        tied: groups of names that belong to one parameter.
        foreign: descriptions of the modules, hooks and buffers that the configuration does not give.
        adapters: LoRA adapters, as fields of `LoRA` with the name of their layer.
        base: the name of the checkpoint that adapters belong to; empty without adapters, or if it is not known.
    """

    frozen: list[str] = dataclasses.field(default_factory=list)
    evaluated: list[str] = dataclasses.field(default_factory=list)
    tied: list[list[str]] = dataclasses.field(default_factory=list)
    foreign: list[str] = dataclasses.field(default_factory=list)
    adapters: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    base: list[str] = dataclasses.field(default_factory=list)


def structure_of(model: CLIPModel) -> Structure:
    """Return the properties of a model. A sharded model has no foreign parts, since FSDP replaces its modules."""
    frozen = [unwrapped_name(name) for name, parameter in model.named_parameters() if not parameter.requires_grad]
    sharded = any(map(is_sharded, model.parameters()))
    foreign = [] if sharded else foreign_parts(model)
    adapters = [
        {"layer": unwrapped_name(name), **dataclasses.asdict(layer.lora)} for name, layer in lora_layers(model).items()
    ]
    base = [model.source] if adapters and model.source else []
    return Structure(frozen, evaluated_modules(model), tied_names(model), foreign, adapters, base)


def is_frozen(module: nn.Module) -> bool:
    """Return whether a module has parameters and none of them is trained."""
    trained = [parameter.requires_grad for parameter in module.parameters()]
    return bool(trained) and not any(trained)


def evaluated_modules(model: CLIPModel) -> list[str]:
    """Return the names of the modules in evaluation mode, without those of frozen towers; none if no module trains."""
    if not any(module.training for module in model.modules()):
        return []
    towers = (("image", model.image), ("text", model.text))
    frozen = tuple(name for name, tower in towers if is_frozen(tower))
    names = (unwrapped_name(name) for name, module in model.named_modules() if not module.training)
    return list(dict.fromkeys(name for name in names if name.split(".")[0] not in frozen))


def tied_names(model: nn.Module) -> list[list[str]]:
    """Return the groups of names that belong to one parameter."""
    names: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(unwrapped_name(name))
    return [group for group in names.values() if len(group) > 1]


def foreign_parts(model: CLIPModel) -> list[str]:
    """Describe the modules, hooks, buffers and preprocessing that differ from those of the model's configuration."""
    expected = _expected(model.config)
    modules = {unwrapped_name(name): module for name, module in model.named_modules()}  # a wrapped one comes last
    expected_modules = dict(expected.named_modules())
    parts = [
        f"{name or 'the model'}: {type(module).__name__}"
        for name, module in modules.items()
        if not _is_alike(module, expected_modules.get(name))
    ]
    parts += [f"{name}: removed" for name in expected_modules.keys() - modules.keys()]
    hooked = [name for name, module in modules.items() if has_hooks(module) and "forward" not in vars(module)]
    parts += [f"{name or 'the model'}: a hook" for name in hooked]
    known = dict(expected.named_buffers())
    parts += [f"{name}: a buffer" for name, _ in model.named_buffers() if unwrapped_name(name) not in known]
    if repr(model.preprocess) != repr(Preprocess(model.config)):
        parts.append("preprocess")
    return sorted(parts)


@functools.lru_cache(maxsize=1)
def _expected(config: CLIPConfig) -> CLIPModel:
    """The model of a configuration, without memory; a run compares its model with it at each save."""
    with torch.device("meta"):
        return CLIPModel(config)


def _is_alike(module: nn.Module, other: nn.Module | None) -> bool:
    """Return whether two modules have the same class and settings; fast forms and known adapters do not count."""
    if other is None or "forward" in vars(module):
        return False
    classes = (EXPECTED.get(type(part), type(part)) for part in (module, other))
    return len(set(classes)) == 1 and module.extra_repr() == other.extra_repr()


def restore_adapters(model: CLIPModel, structure: Structure, path: object) -> None:
    """Give a model the adapters of a run, before its weights are assigned.

    Raises:
        CheckpointError: the model has no layer of a name, or the adapters are damaged.
    """
    try:
        rows = [dict(row) for row in structure.adapters]
        insert(model, {row.pop("layer"): LoRA(**{**row, "adapted": tuple(row["adapted"])}) for row in rows})
    except (AttributeError, KeyError, TypeError, ValueError, ZeroDivisionError) as error:
        raise CheckpointError(f"{path}: damaged LoRA adapters ({one_line(error)}): use a copy of it") from None


def restore_structure(model: CLIPModel, structure: Structure, path: object) -> None:
    """Tie, freeze and switch the parts of a model that were tied, frozen and switched in a run, and only these.

    Args:
        model: with the weights of the state, without foreign parts.
        structure: from the state.
        path: the file of the state, for error messages.

    Raises:
        CheckpointError: the model has no part of a name.
    """
    model.source = str(structure.base[0]) if structure.base else None
    parameters, modules = dict(model.named_parameters()), dict(model.named_modules())
    _require_names("frozen parameters", structure.frozen, parameters, path)
    _require_names("tied parameters", [name for group in structure.tied for name in group], parameters, path)
    foreign = {part.split(":")[0] for part in structure.foreign}
    inside = [name for name in structure.evaluated if not _is_below(name, foreign)]
    _require_names("modules in evaluation mode", inside, modules, path)
    for name, parameter in parameters.items():
        parameter.requires_grad_(name not in structure.frozen)
    for first, *others in structure.tied:
        for name in others:
            module, _, attribute = name.rpartition(".")
            setattr(modules[module], attribute, parameters[first])
    for name in inside:
        modules[name].training = False


def _is_below(name: str, parts: Iterable[str]) -> bool:
    return any(name == part or name.startswith(f"{part}.") for part in parts)


def _require_names(kind: str, names: Iterable[str], known: Iterable[str], path: object) -> None:
    known = list(known)
    if unknown := sorted(set(names) - set(known)):
        raise CheckpointError(
            f"{path}: the {kind} {', '.join(unknown)} are not in the model; expected names such as {known[-1]}: state "
            "and model do not belong together"
        )


class TrainingModes:
    """Training and evaluation modes of a model's modules while it trains.

    A module that its user put into evaluation mode beside others that train stays in it. So does a tower whose
    parameters are all frozen: dropout and running statistics would change its output.
    """

    def __init__(self, model: CLIPModel) -> None:
        self.model, self._evaluated = model, evaluated_modules(model)

    def enter(self) -> None:
        """Put the model into training mode, except for these modules."""
        if any(module.training for module in self.model.modules()):  # else the modes of the last `fit` count
            self._evaluated = evaluated_modules(self.model)
        self.model.train()
        for name, module in self.model.named_modules():
            if unwrapped_name(name) in self._evaluated:
                module.training = False
        for tower in (self.model.image, self.model.text):
            if is_frozen(tower):
                tower.eval()


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Context in which a model is in evaluation mode; afterwards each module has its former mode."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, training in modes.items():
            module.training = training
