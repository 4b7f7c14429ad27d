"""Parts of an int8 image tower's time: its int8 products only, its attention only, and the whole beside float32.

python -m benchmarks int8_parts

ViT-B/16 with random weights in torch. `products only` runs the int8 products of the blocks on integers of the right
shapes, one image at a time. `attention only` runs `scaled_dot_product_attention`. A tower without any other work would
have the speed of `products and attention`. `calibrated` has constant scales, and most of the passes over activations
inside the products. The last block, which computes one token, is left out. On one thread the clock is CPU time.
"""

from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor

import miniclip
from benchmarks.baselines import with_layers
from benchmarks.deployment import clock, threads
from benchmarks.harness import MINICLIP, Row, Scale, interleaved
from miniclip.config import preset
from miniclip.fast.int8 import ZERO_POINT, Int8Linear, is_supported
from miniclip.fast.private import onednn_int8_linear
from miniclip.hub import fresh

INT8, CALIBRATED = f"{MINICLIP} int8", f"{MINICLIP} int8, calibrated"


@torch.no_grad()
def rows(scale: Scale) -> Iterator[Row]:
    if scale.device != "cpu" or not is_supported():
        return
    config = with_layers(preset("vit_b_16"), 2) if scale.small else preset("vit_b_16")
    torch.manual_seed(0)
    model = fresh(config).eval()
    quantized = miniclip.quantize(model)
    images = torch.randn(2 if scale.small else 8, 3, config.image.image_size, config.image.image_size)
    calibrated = miniclip.quantize(model, images=torch.randn(32, *images.shape[1:]))
    parts = {"products only": products(quantized.image), "attention only": attentions(quantized.image)}
    parts["products and attention"] = [*parts["products only"], *parts["attention only"]]
    for size in (1, len(images)):
        some = images[:size]
        calls = {MINICLIP: partial(model.encode_image, some), INT8: partial(quantized.encode_image, some)}
        calls[CALIBRATED] = partial(calibrated.encode_image, some)
        calls |= {name: partial(repeat, size, part) for name, part in parts.items()}
        values = interleaved(calls, scale.rounds, work=size, clock=clock())
        yield Row("int8 image tower", f"ViT-B/16, {size} images, {threads()}", "images/s", values, {})


def products(tower: torch.nn.Module) -> list[Callable[[], Tensor]]:
    """The int8 products of all blocks but the last, for one image."""
    tokens = tower.positions.shape[0]
    calls = []
    for layer in torch.nn.ModuleList(list(tower.blocks)[:-1]).modules():
        if isinstance(layer, Int8Linear):
            weight, scale, zeros, _ = layer.packed(0, layer.out_features, 1.0, 1.0)
            values = torch.randint(1, 256, (tokens, layer.in_features), dtype=torch.uint8)
            calls.append(partial(onednn_int8_linear, values, ZERO_POINT, weight, scale, zeros))
    return calls


def attentions(tower: torch.nn.Module) -> list[Callable[[], Tensor]]:
    """The attention of all blocks but the last, for one image."""
    heads, width = tower.config.heads, tower.config.width
    qkv = torch.randn(1, tower.positions.shape[0], 3, heads, width // heads).permute(2, 0, 3, 1, 4)
    return [partial(torch.nn.functional.scaled_dot_product_attention, *qkv)] * (len(tower.blocks) - 1)


def repeat(times: int, calls: list[Callable[[], Tensor]]) -> None:
    for _ in range(times):
        for call in calls:
            call()
