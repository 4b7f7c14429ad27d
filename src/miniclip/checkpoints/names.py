"""Parameter names without the prefixes that wrappers add: torch.compile, DataParallel, FSDP, checkpoint_wrapper."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import TypeVar

from torch import nn

PREFIXES = ("module.", "_orig_mod.")  # before every name: of DistributedDataParallel and of torch.compile
WRAPPER_ATTRIBUTES = frozenset({"module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"})

T = TypeVar("T")


def unwrap(model: nn.Module) -> nn.Module:
    """Return the module inside `torch.compile(model)`, `DataParallel(model)` and other wrappers."""
    while inner := next((m for name, m in model.named_children() if name in WRAPPER_ATTRIBUTES), None):
        model = inner
    return model


def unwrapped_name(name: str) -> str:
    """Return a parameter's name without wrappers, at any depth.

    Only for names of miniclip's own models, which have no submodule of these names.

    >>> unwrapped_name("image._orig_mod.blocks.0.module.norm1.bias")
    'image.blocks.0.norm1.bias'
    """
    return ".".join(part for part in name.split(".") if part not in WRAPPER_ATTRIBUTES)


def without_common_prefixes(names: Collection[str]) -> dict[str, str]:
    """Map each name of a file to the name without the prefixes that all of them share.

    >>> without_common_prefixes(["module._orig_mod.a", "module._orig_mod.b.c"])
    {'module._orig_mod.a': 'a', 'module._orig_mod.b.c': 'b.c'}
    """
    plain = {name: name for name in names}
    while prefix := next((p for p in PREFIXES if plain and all(n.startswith(p) for n in plain.values())), ""):
        plain = {name: short.removeprefix(prefix) for name, short in plain.items()}
    return plain


def strip_prefixes(values: Mapping[str, T]) -> dict[str, T]:
    """Return values by name, the names without the prefixes that all of them share."""
    names = without_common_prefixes(values)
    return {names[name]: value for name, value in values.items()}
