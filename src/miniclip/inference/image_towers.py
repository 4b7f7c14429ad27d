"""Image towers that are not vision transformers of miniclip's: OpenAI's ResNet, and those of timm.

The head around timm's architecture is open_clip's (https://github.com/mlfoundations/open_clip, timm_model.py).
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_parameter_registration_hook
from torch.overrides import TorchFunctionMode

from miniclip.models.other import OtherImageTower
from miniclip.models.resnet import ResNet
from miniclip.tower_config import ResNetConfig, TimmConfig

ATTENTION_POOLS = ("abs_attn", "rot_attn")
SETTERS = frozenset({
    *("add_", "clamp_", "constant_", "div_", "erfinv_", "fill_", "kaiming_uniform_", "mul_", "normal_", "ones_"),
    *("trunc_normal_", "uniform_", "xavier_uniform_", "zero_", "zeros_"),
})  # fmt: skip
POSITIONS = "attnpool.positional_embedding"  # in a ResNet


class TimmTower(OtherImageTower):
    """Architecture of timm, with its pooling and a projection to the shared space.

    Raises:
        ImportError: timm is not installed.
        ValueError: timm has no such architecture.
    """

    def __init__(self, config: TimmConfig, embed_dim: int) -> None:
        super().__init__(config)
        with _WithoutMetaValues():
            self.trunk = _trunk(config, embed_dim)
            self.head = _head(config, self.trunk, embed_dim)
        self.freeze_statistics()

    def encode(self, pixels: Tensor) -> Tensor:
        """(B, 3, S, S) to (B, E)."""
        return self.head(self.trunk(pixels))  # type: ignore[no-any-return]


class _WithoutMetaValues(TorchFunctionMode):
    """Context in which values are not set on the meta device, where torch would spend most of a tower's time on it."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Return the tensor of a function that only changes its values."""
        values = kwargs or {}
        tensor = args[0] if args else values.get("tensor")
        if isinstance(tensor, Tensor) and tensor.is_meta and getattr(func, "__name__", "") in SETTERS:
            return tensor
        return func(*args, **values)


def other_tower(config: Any, embed_dim: int) -> Any:
    """Return the image tower of a configuration; None for a vision transformer, which `CLIP` builds."""
    if isinstance(config, ResNetConfig):
        return ResNet(config, embed_dim)
    return TimmTower(config, embed_dim) if isinstance(config, TimmConfig) else None


def fill_buffers(tower: nn.Module, embed_dim: int) -> None:
    """Compute the buffers of timm's towers that no checkpoint holds, such as rotary positions, on the CPU.

    They get the dtype of the weights, as `model.to(dtype)` gives them.
    """
    missing = [name for name, buffer in tower.named_buffers() if buffer.is_meta]
    if not isinstance(tower, TimmTower) or not missing:
        return
    with torch.device("cpu"), torch.random.fork_rng(devices=[]), _parameters_without_memory():
        computed = dict(TimmTower(tower.config, embed_dim).named_buffers())
    dtype = next(tower.parameters()).dtype
    for name in missing:
        module, _, buffer = name.rpartition(".")
        value = computed[name]
        setattr(tower.get_submodule(module), buffer, value.to(dtype) if value.is_floating_point() else value)


@contextmanager
def _parameters_without_memory() -> Iterator[None]:
    """Context in which modules that this thread builds have their parameters on the meta device."""
    thread = threading.get_ident()

    def to_meta(_: nn.Module, __: str, parameter: nn.Parameter | None) -> nn.Parameter | None:
        if parameter is None or threading.get_ident() != thread:
            return None
        return nn.Parameter(parameter.detach().to("meta"), parameter.requires_grad)

    hook = register_module_parameter_registration_hook(to_meta)  # type: ignore[arg-type]  # may return a parameter
    try:
        yield
    finally:
        hook.remove()


def tower_weights(config: Any, embed_dim: int) -> Iterator[str]:
    """Yield the names of the weights of a tower that is not a vision transformer, without their common prefix."""
    with torch.device("meta"):
        yield from other_tower(config, embed_dim).state_dict()


def _trunk(config: TimmConfig, embed_dim: int) -> nn.Module:
    try:
        import timm
    except ImportError as error:
        raise ImportError(f"{config.label} needs the extra timm ({error}): pip install 'miniclip[timm]'") from error
    if not timm.is_model(config.model):
        raise ValueError(
            f"timm {timm.__version__} has no architecture {config.model!r}: a newer version may have it, "
            "pip install -U timm"
        )
    attention = config.pool in ATTENTION_POOLS
    if config.head in (None, "none") and not attention:
        outputs = embed_dim if config.head is None else 0
        return timm.create_model(config.model, num_classes=outputs, global_pool=config.pool)
    trunk: Any = timm.create_model(config.model)
    pool = {"global_pool": "" if attention else config.pool} if config.pool else {}  # "": the architecture's own
    trunk.reset_classifier(0, **pool)
    return trunk  # type: ignore[no-any-return]


def _head(config: TimmConfig, trunk: Any, embed_dim: int) -> nn.Module:
    from timm.layers import AttentionPool2d, Mlp, RotAttentionPool2d  # type: ignore[attr-defined]

    layers, width = OrderedDict[str, nn.Module](), trunk.num_features
    if config.pool == "abs_attn":
        layers["pool"] = AttentionPool2d(width, feat_size=trunk.default_cfg["pool_size"], out_features=embed_dim)
    elif config.pool == "rot_attn":
        layers["pool"] = RotAttentionPool2d(width, out_features=embed_dim)
    width = embed_dim if layers else width
    if config.head == "linear":
        layers["proj"] = nn.Linear(width, embed_dim, bias=config.head_bias)
    elif config.head == "mlp":
        layers["mlp"] = Mlp(width, 2 * embed_dim, embed_dim, bias=(True, config.head_bias))
    return nn.Sequential(layers)
