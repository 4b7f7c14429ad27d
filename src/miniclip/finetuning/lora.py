"""LoRA (Hu et al. 2021): a frozen linear layer plus a trained product of two small matrices.

    y = W x + b + (alpha / r) B A x,    A (r, K) random, B (N, r) zero at first

In a fused layer the queries, keys and values are three groups of rows of one W. Each adapted group has its own A and B,
as if it were a layer of its own. CLIP-LoRA (Zanella and Ben Ayed 2024) adapts q, k and v in every block of both towers.
A LoRA layer keeps the names of its weight and bias, and adds `lora_A` and `lora_B`.

Papers: https://arxiv.org/abs/2106.09685, https://arxiv.org/abs/2405.18541
Letters: K inputs, N outputs, n outputs of a group, G adapted groups, r rank.
"""

from __future__ import annotations

import copy
import dataclasses
import math
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import NamedTuple, TypeVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from miniclip.utils.randomness import generator


class Target(NamedTuple):
    """Groups of rows of a block's linear layer."""

    layer: str
    group: int = 0
    groups: int = 1


TARGETS: Mapping[str, tuple[Target, ...]] = {
    "q": (Target("attention.qkv", 0, 3),),
    "k": (Target("attention.qkv", 1, 3),),
    "v": (Target("attention.qkv", 2, 3),),
    "out": (Target("attention.out"),),
    "mlp": (Target("mlp.up"), Target("mlp.down")),
}
NAMES = ("lora_A", "lora_B")
Model = TypeVar("Model", bound=nn.Module)


@dataclasses.dataclass(frozen=True)
class LoRA:
    """Shape of the adapter of one layer.

    Attributes:
        rank: r.
        alpha: the update is multiplied by alpha / rank.
        adapted: the adapted groups of rows.
        groups: number of groups of rows: 3 in a fused layer of queries, keys and values.
    """

    rank: int
    alpha: float
    adapted: tuple[int, ...] = (0,)
    groups: int = 1


class LoRALinear(nn.Linear):
    """Linear layer with a low-rank update. It is made from an `nn.Linear` in place (`insert`)."""

    lora: LoRA
    lora_A: nn.Parameter  # noqa: N815 - the field's names, (G r, K)
    lora_B: nn.Parameter  # noqa: N815 - (G n, r)

    def forward(self, x: Tensor) -> Tensor:
        """(..., K) to (..., N)."""
        return F.linear(x, self.weight, self.bias) + self.update(x)

    def update(self, x: Tensor, start: int = 0, stop: int | None = None) -> Tensor:
        """Low-rank update of outputs start..stop: (..., K) to (..., stop - start)."""
        hidden = F.linear(x, self.lora_A) * (self.lora.alpha / self.lora.rank)  # (..., G r)
        return F.linear(hidden, expanded(self.lora_B, self.lora)[start:stop])


def expanded(B: Tensor, lora: LoRA) -> Tensor:
    """Matrix from the hidden values of all adapted groups to all outputs: (G n, r) to (N, G r), zero elsewhere."""
    if lora.groups == 1:
        return B
    count, rank = len(lora.adapted), lora.rank
    blocks = B.chunk(count)
    rows = {group: F.pad(blocks[i], (i * rank, (count - 1 - i) * rank)) for i, group in enumerate(lora.adapted)}
    zeros = B.new_zeros(blocks[0].shape[0], count * rank)
    return torch.cat([rows.get(group, zeros) for group in range(lora.groups)])


def merged_weight(weight: Tensor, A: Tensor, B: Tensor, lora: LoRA) -> Tensor:
    """W + (alpha / r) B A (N, K), computed in at least float32."""
    wide = torch.promote_types(weight.dtype, torch.float32)
    update = expanded(B.to(wide), lora) @ A.to(wide)
    return (weight.to(wide) + update * (lora.alpha / lora.rank)).to(weight.dtype)


def lora_layers(model: nn.Module) -> dict[str, LoRALinear]:
    """Return the LoRA layers of a model by name."""
    return {name: module for name, module in model.named_modules() if isinstance(module, LoRALinear)}


def is_lora(name: str) -> bool:
    """Whether a parameter is a matrix of an adapter, by its name."""
    return name.rpartition(".")[2] in NAMES


def shapes(layers: Iterable[str], targets: Iterable[str], rank: int, alpha: float) -> dict[str, LoRA]:
    """Return the adapter of each layer of some blocks.

    Args:
        layers: names of the blocks' linear layers, such as `image.blocks.0.attention.qkv`.
        targets: names in `TARGETS`.
        rank: r.
        alpha: the update is multiplied by alpha / r.
    """
    chosen = [target for name in TARGETS if name in set(targets) for target in TARGETS[name]]
    adapters = {}
    for layer in layers:
        rows = [target for target in chosen if layer.endswith(f".{target.layer}")]
        if rows:
            adapters[layer] = LoRA(rank, float(alpha), tuple(target.group for target in rows), rows[0].groups)
    return adapters


def insert(model: nn.Module, adapters: Mapping[str, LoRA], seed: int = 0) -> None:
    """Give linear layers of a model an adapter, in place. The model computes what it did, since each B is zero.

    A is uniform in (-1, 1) / sqrt(K), as in the authors' code and in peft, and depends on the seed and the layer's name
    only.

    Args:
        model: the model.
        adapters: adapters by name of the layer.
        seed: of A.

    Raises:
        ValueError: a layer is not an `nn.Linear`, or its weight belongs to a second layer too.
    """
    layers = {name: cast(LoRALinear, model.get_submodule(name)) for name in adapters}
    owners = Counter(id(parameter) for _, parameter in model.named_parameters(remove_duplicate=False))
    for name, layer in layers.items():
        if type(layer) is not nn.Linear:
            raise ValueError(f"{name} is a {type(layer).__name__}; LoRA needs a torch.nn.Linear there")
        if owners[id(layer.weight)] > 1:
            raise ValueError(f"{name}: its weight is tied to that of another layer; LoRA would change both when merged")
    for name, lora in adapters.items():
        layer, rows = layers[name], lora.rank * len(lora.adapted)
        outputs = layer.weight.shape[0] // lora.groups * len(lora.adapted)
        layer.__class__ = LoRALinear  # keeps parameters, modes and names
        layer.lora = lora
        layer.lora_A = nn.Parameter(layer.weight.new_empty(rows, layer.weight.shape[1]))
        layer.lora_B = nn.Parameter(layer.weight.new_zeros(outputs, lora.rank))
        if not layer.lora_A.is_meta:
            random = generator(seed, "lora", name)
            draw = torch.rand(layer.lora_A.shape, generator=random, dtype=torch.float32, device="cpu") * 2 - 1
            layer.lora_A.data.copy_(draw / math.sqrt(layer.weight.shape[1]))


@torch.no_grad()
def merge(model: Model) -> Model:
    """Add each adapter to its weight, in place, and remove it. A model without adapters is left as it is.

    Returns:
        The model, with plain linear layers. Frozen parameters stay frozen.
    """
    for layer in lora_layers(model).values():
        layer.weight.copy_(merged_weight(layer.weight, layer.lora_A, layer.lora_B, layer.lora))
        del layer.lora, layer.lora_A, layer.lora_B
        layer.__class__ = nn.Linear  # type: ignore[assignment]
    return model


def without_adapters(model: Model) -> Model:
    """Return a model whose adapters are merged: a copy, or the model itself if it has none."""
    return merge(copy.deepcopy(model)) if lora_layers(model) else model


@torch.no_grad()
def merged_state(adapters: Mapping[str, LoRA], state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return a state dict without adapters, which are added to the weights.

    Args:
        adapters: adapters by name of the layer.
        state: tensors by name, such as a model's state dict, or averages of them; it is not changed.
    """
    merged = dict(state)
    for name, lora in adapters.items():
        A, B = (merged.pop(f"{name}.{part}") for part in NAMES)
        merged[f"{name}.weight"] = merged_weight(merged[f"{name}.weight"], A, B, lora)
    return merged


def plain_state(model: nn.Module) -> dict[str, Tensor]:
    """Return a model's state dict with its adapters merged into the weights."""
    return merged_state({name: layer.lora for name, layer in lora_layers(model).items()}, model.state_dict())
