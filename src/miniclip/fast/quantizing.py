"""int8 form of a model: the layers of its blocks with scales of tokens, or with constant scales after calibration.

Calibration finds the smallest and the largest value of each channel of the activations between layers, in float32.
Values outside are clamped at a call. Between a norm or attention and a linear layer, channels have steps of their own,
in proportion to sqrt(half range / largest weight): the step of an activation and the scale of the weight share the
differences between channels (SmoothQuant with alpha 0.5). The hidden layer of an MLP has one step.
Letters: M tokens, D width, K inputs.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook

from miniclip.fast import calibrated
from miniclip.fast.calibrated import (
    CalibratedLinear,
    CalibratedMLP,
    Int8Norm,
    activation_name,
    channel_steps,
    one_step,
    through_attention,
)
from miniclip.fast.int8 import Int8Linear, Int8Weights, is_supported
from miniclip.fast.layers import FastBlock
from miniclip.fast.private import has_hooks
from miniclip.finetuning.lora import merge
from miniclip.models.clip import CLIP
from miniclip.models.layers import MLP, Attention, Block
from miniclip.utils.items import describe

MIN_COSINE = 0.97  # smallest cosine with float32 on the calibration data
Model = TypeVar("Model", bound=CLIP)
Ranges = dict[nn.Module, tuple[Tensor, Tensor]]  # module to the smallest and largest values of channels (K,)


def quantize(model: Model, images: Any = None, texts: Any = None) -> Model:
    """Return a copy of a model that computes the linear layers of its blocks in int8, for inference on a CPU.

    Weights are quantized by output channel, activations by token, at each call. With images or texts, the activations
    of that tower have constant scales instead, found on these data, which is faster. Attention, patches, projections
    and layers with hooks stay in float32. The copy embeds, classifies and evaluates, but has no gradients, and is not
    saved: save the model itself, and quantize what `load` returns.

    Args:
        model: a model in float32 on a CPU.
        images: calibration data of the image tower, a hundred or more of the images it will see, as in `encode_image`.
        texts: calibration data of the text tower, as in `encode_text`.

    Returns:
        The copy, in evaluation mode. docs/export.md has measured cosines with embeddings of the model.

    Raises:
        TypeError: the model is not a CLIP.
        ValueError: it is not in float32 on a CPU, is quantized already, has weights that are not finite, or torch has
            no int8 product for this processor. The calibration data are empty, or their embeddings have a cosine below
            0.97 with those in float32.
    """
    if not isinstance(model, CLIP):
        raise TypeError(f"model: found {describe(model)}; expected a CLIPModel, as miniclip.load returns")
    for name, weight in model.named_parameters():
        if weight.device.type != "cpu" or weight.dtype != torch.float32:
            raise ValueError(
                f"{name} is {weight.dtype} on {weight.device}; expected float32 on a CPU: model.float().cpu()"
            )
    if not is_supported():
        raise ValueError(
            "torch has no exact int8 product for this processor; export for onnxruntime instead: "
            "miniclip.export(model, path, layout='onnx', int8=True)"
        )
    if any(isinstance(layer, Int8Weights) for layer in model.modules()):
        raise ValueError("the model is quantized already")
    if (images is not None or texts is not None) and not calibrated.is_supported():
        raise ValueError(
            "torch has no int8 product with activation functions for this processor: call miniclip.quantize without "
            "images and texts"
        )
    copied: Any = merge(copy.deepcopy(model)).eval().requires_grad_(False)
    checks = []
    for name, tower, data in (("image", copied.image, images), ("text", copied.text, texts)):
        if data is not None:
            encode = getattr(copied, f"encode_{name}", None)
            if encode is None:
                raise TypeError(f"model: found {describe(model)}; expected a CLIPModel to encode the {name}s")
            items = list(data) if isinstance(data, Iterator) and not hasattr(data, "read") else data
            expected = _calibrate(tower, partial(encode, items), f"{name}s")
            checks.append((name, encode, items, expected))
    _quantize_rest(copied)
    for name, encode, items, expected in checks:
        _check(name, encode(items), expected)
    return copied  # type: ignore[no-any-return]


def _quantize_rest(model: nn.Module) -> None:
    """Replace the linear layers of attention and MLPs that have no constant scales, in place."""
    for parent in list(model.modules()):
        if isinstance(parent, (Attention, MLP)):
            for name, layer in list(parent.named_children()):
                if type(layer) is nn.Linear and not has_hooks(layer):  # hooks may change its results
                    setattr(parent, name, Int8Linear(layer))


def _calibrate(tower: Any, encode: Callable[[], Tensor], name: str) -> Tensor:
    """Replace the layers of a tower's blocks by ones with constant scales, in place.

    Returns:
        Embeddings of the calibration data in float32.
    """
    blocks = [block for block in tower.blocks if _is_known(block)]
    outputs = [module for block in blocks for module in (block.norm1, block.norm2, block.mlp.activation)]
    with _ranges(outputs, [block.attention.out for block in blocks]) as ranges:
        expected = encode()
    if not len(expected):
        raise ValueError(f"{name}: found none; expected a hundred or more to calibrate on")
    if not all(bool(bound.isfinite().all()) for pair in ranges.values() for bound in pair):
        raise ValueError(f"{name}: the model's activations are NaN or infinite on them; expected finite ones")
    for block in blocks:
        _calibrate_block(block, ranges)
    return expected


def _is_known(block: nn.Module) -> bool:
    """Whether a block is computed as `Block.forward` describes, with the library's own layers and without hooks."""
    if type(block) not in (Block, FastBlock) or any(map(has_hooks, block.modules())):
        return False
    linear = (block.attention.qkv, block.attention.out, block.mlp.up, block.mlp.down)  # type: ignore[union-attr]
    kinds = {type(layer) for layer in linear} | {type(block.norm1), type(block.norm2)}
    return kinds == {nn.Linear, nn.LayerNorm} and activation_name(block.mlp.activation) is not None  # type: ignore


def _calibrate_block(block: Any, ranges: Ranges) -> None:
    attention, mlp = block.attention, block.mlp
    inputs = channel_steps(ranges[block.norm1], attention.qkv.weight)
    values = channel_steps(ranges[attention.out], attention.out.weight)
    attention.qkv = CalibratedLinear(attention.qkv, inputs, *through_attention(values))
    attention.out = CalibratedLinear(attention.out, values)
    block.norm1 = Int8Norm(block.norm1, inputs)
    inputs = channel_steps(ranges[block.norm2], mlp.up.weight)
    hidden = one_step(ranges[mlp.activation])
    block.norm2 = Int8Norm(block.norm2, inputs)
    block.mlp = CalibratedMLP(mlp.up, mlp.down, str(activation_name(mlp.activation)), inputs, hidden)


@contextmanager
def _ranges(outputs: list[nn.Module], inputs: list[nn.Module]) -> Iterator[Ranges]:
    """Context that records the ranges of channels in what modules return, or get.

    Hooks for all modules leave the fast forms in their places, so that padding is not recorded.
    """
    ranges: Ranges = {}
    returned, got = set(outputs), set(inputs)

    def record(module: nn.Module, x: Tensor) -> None:
        low, high = x.flatten(0, -2).aminmax(dim=0)
        if module in ranges:
            low, high = torch.minimum(low, ranges[module][0]), torch.maximum(high, ranges[module][1])
        ranges[module] = (low, high)

    def after(module: nn.Module, _: Any, y: Any) -> None:
        if module in returned:
            record(module, y)

    def before(module: nn.Module, args: Any) -> None:
        if module in got:
            record(module, args[0])

    hooks = register_module_forward_hook(after), register_module_forward_pre_hook(before)
    try:
        yield ranges
    finally:
        for hook in hooks:
            hook.remove()


def _check(name: str, embeddings: Tensor, expected: Tensor) -> None:
    cosine = float((embeddings * expected).sum(dim=1).min())
    if not cosine >= MIN_COSINE:
        raise ValueError(
            f"the int8 {name} tower has a cosine of {cosine:.4f} with float32 on the calibration data; the limit is "
            f"{MIN_COSINE}. Call miniclip.quantize without {name}s, which finds scales at each call"
        )
