"""Files of training scripts: the weights among their dicts, and harmless values beside the weights.

Lightning and other trainers save settings and metrics with the weights, such as an `argparse.Namespace` or a NumPy
scalar, which torch's weights-only unpickler refuses. Here their classes become empty stand-ins. No code of the file or
of another library runs, and the values are lost, which no model needs.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from torch import Tensor

STATE_DICT_KEYS = ("state_dict", "model_state_dict", "model")  # keys in training scripts' checkpoints
MAX_DEPTH = 4  # limit for nested dicts


class Value:
    """Stand-in for an object of any class."""

    def __init__(self, *arguments: object) -> None:
        """Ignore the arguments."""

    def __setstate__(self, state: object) -> None:
        """Ignore the attributes."""


class Items(Value):
    """Stand-in for a kind of dict: the unpickler fills an `OrderedDict`."""

    def __new__(cls, *arguments: object) -> OrderedDict[object, object]:  # type: ignore[misc]
        """Return an empty dict."""
        return OrderedDict()


NUMPY = ("numpy.core.multiarray", "numpy._core.multiarray")
HARMLESS: dict[str, type[Value]] = {
    "argparse.Namespace": Value,
    "types.SimpleNamespace": Value,
    "numpy.dtype": Value,
    "numpy.ndarray": Value,
    **{f"{module}.{name}": Value for module in NUMPY for name in ("scalar", "_reconstruct")},
    **{f"numpy.dtypes.{kind}DType": Value for kind in ("Bool", "Int32", "Int64", "Float16", "Float32", "Float64")},
    **{f"datetime.{name}": Value for name in ("date", "datetime", "time", "timedelta", "timezone")},
    **{f"pathlib.{name}": Value for name in ("PosixPath", "WindowsPath", "PurePosixPath", "PureWindowsPath", "Path")},
    **{f"pathlib._local.{name}": Value for name in ("PosixPath", "WindowsPath")},
    "uuid.UUID": Value,
    "builtins.range": Value,
    "builtins.slice": Value,
    "builtins.frozenset": Value,
    **{f"builtins.{name}": Value for name in ("dict", "list", "int", "float", "str", "bool")},  # default factories
    "collections.defaultdict": Items,
    "typing.Any": Value,
    "easydict.EasyDict": Items,
    "yacs.config.CfgNode": Items,
    "ml_collections.config_dict.config_dict.ConfigDict": Value,
    "omegaconf.dictconfig.DictConfig": Value,
    "omegaconf.listconfig.ListConfig": Value,
    "omegaconf.base.ContainerMetadata": Value,
    "omegaconf.base.Metadata": Value,
    "omegaconf.nodes.AnyNode": Value,
    "pytorch_lightning.utilities.parsing.AttributeDict": Items,
    "lightning.pytorch.utilities.parsing.AttributeDict": Items,
    "lightning_fabric.utilities.data.AttributeDict": Items,
    "lightning.fabric.utilities.data.AttributeDict": Items,
}


def stand_ins() -> list[Callable[..., Any] | tuple[Callable[..., Any], str]]:
    """Return the allow-list of harmless classes for `torch.serialization.safe_globals`."""
    return [(stand_in, name) for name, stand_in in HARMLESS.items()]


def find_state_dict(value: object) -> object:
    """Return the dict of weights in the object that a script saved, or the object if there is none.

    A dict under a usual key comes first. Weights in several other dicts get the keys of these before their names.

    >>> find_state_dict({"epoch": 3, "net": {"scale": torch.tensor(1.0)}})
    {'scale': tensor(1.)}
    """
    if not isinstance(value, dict):
        return value
    for key in STATE_DICT_KEYS:
        inner = value.get(key)
        if isinstance(inner, dict) and any(isinstance(item, Tensor) for item in inner.values()):
            return inner
    if any(isinstance(item, Tensor) for item in value.values()):
        return value
    found = dict(_nested(value, MAX_DEPTH))
    if len(found) == 1:
        return next(iter(found.values()))
    tensors = ((path, name, item) for path, inner in found.items() for name, item in inner.items())
    return {f"{path}{name}": item for path, name, item in tensors if isinstance(item, Tensor)} or value


def _nested(value: Mapping[object, object], depth: int, path: str = "") -> Iterator[tuple[str, dict[str, object]]]:
    """Yield the dicts of tensors below a dict, with their keys, as in `ema.model.`."""
    for key, inner in value.items():
        if not isinstance(key, str) or not isinstance(inner, dict) or not all(isinstance(name, str) for name in inner):
            continue
        if any(isinstance(item, Tensor) for item in inner.values()):
            yield f"{path}{key}.", inner
        elif depth > 1:
            yield from _nested(inner, depth - 1, f"{path}{key}.")
