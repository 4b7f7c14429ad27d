"""Names of weights without the parts that wrappers add: torch.compile, DataParallel, FSDP, checkpoint_wrapper."""

from __future__ import annotations

from collections.abc import Collection

from torch import nn

WRAPPER_ATTRIBUTES = frozenset({"module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"})


def unwrap(model: nn.Module) -> nn.Module:
    """Return the module inside `torch.compile(model)`, `DataParallel(model)` and other wrappers."""
    while inner := next((m for name, m in model.named_children() if name in WRAPPER_ATTRIBUTES), None):
        model = inner
    return model


def unwrapped_name(name: str) -> str:
    """Return a parameter's or module's name without wrappers, at any depth.

    No CLIP of any layout has a submodule of these names.

    >>> unwrapped_name("module.image._orig_mod.blocks.0.module.norm1.bias")
    'image.blocks.0.norm1.bias'
    """
    parts = name.split(".")
    if WRAPPER_ATTRIBUTES.isdisjoint(parts):
        return name
    return ".".join([part for part in parts if part not in WRAPPER_ATTRIBUTES])


def without_wrappers(names: Collection[str]) -> dict[str, str]:
    """Map each name of a file to the name without wrappers. If two names would become equal, all stay as they are."""
    plain = {name: unwrapped_name(name) for name in names}
    return plain if len(set(plain.values())) == len(plain) else {name: name for name in names}
