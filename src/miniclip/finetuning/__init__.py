"""Fine-tuning of a model: what is trained, adapters of a few MB, and what the model stays near to.

The names are imported on first use, because the fast forms of the layers import `finetuning.lora`.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from miniclip.finetuning.adapters import load_adapter, save_adapter
    from miniclip.finetuning.lora import merge
    from miniclip.finetuning.towers import add_lora

_MODULES = {"add_lora": "towers", "load_adapter": "adapters", "merge": "lora", "save_adapter": "adapters"}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
    return value


__all__ = ["add_lora", "load_adapter", "merge", "save_adapter"]
