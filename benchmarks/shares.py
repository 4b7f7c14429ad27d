"""How much of the time products of matrices take, and how fast they are: what is left to gain without fewer of them.

Of `encode_image` (ViT-B/16, 8 pictures), `encode_text` (256 captions) and the contrastive loss, by torch's profiler.

python -m benchmarks.shares [--runs 5] [--pairs 8192]
"""

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks.frame import machine
from benchmarks.peers import captions
from benchmarks.report import in_words
from miniclip import contrastive_loss
from miniclip.config import preset
from miniclip.hub import fresh

PRODUCTS = ("mkldnn::_linear_pointwise", "aten::addmm", "aten::mm", "aten::bmm", "aten::mkldnn_convolution")


def measured(call: Callable[[], Any], runs: int) -> tuple[float, float, float]:
    """Seconds of a call; the share of products in it; and GFLOP/s of those that are no attention's."""
    for _ in range(2):
        call()
    seconds = []
    for _ in range(runs):
        start = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - start)
    with profile(activities=[ProfilerActivity.CPU], record_shapes=True) as profiled:
        call()
    events = profiled.key_averages(group_by_input_shape=True)
    whole = sum(event.self_cpu_time_total for event in events)
    products = [event for event in events if event.key in PRODUCTS]
    linear = [event for event in products if event.key == PRODUCTS[0]]
    spent = sum(event.self_cpu_time_total for event in linear)  # in microseconds
    operations = sum(event.count * flops(*event.input_shapes[:2]) for event in linear)
    share = sum(event.self_cpu_time_total for event in products) / whole
    return statistics.median(seconds), share, operations / spent / 1e3


def flops(x: list[int], weight: list[int]) -> int:
    """Of a linear layer: (…, K) by a weight (N, K)."""
    return 2 * torch.Size(x).numel() * weight[0]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--pairs", type=int, default=8192, help="of the loss (default 8192)")
    options = parser.parse_args()
    torch.manual_seed(0)
    print(in_words(machine()), "\n")
    print("| what | seconds | products' share | linear layers, GFLOP/s |\n| --- | --- | --- | --- |")
    cases: dict[str, Callable[[], Any]] = {}
    pixels, tokens = torch.randn(8, 3, 224, 224), captions(256)
    for dtype in (torch.float32, torch.bfloat16):
        model, ready = fresh(preset("vit_b_16")).eval().to(dtype), pixels.to(dtype)
        name = str(dtype).removeprefix("torch.")
        cases[f"encode_image, 8 pictures, {name}"] = lambda model=model, ready=ready: model.encode_image(ready)  # type: ignore[misc]
        cases[f"encode_text, 256 captions, {name}"] = lambda model=model: model.encode_text(tokens)  # type: ignore[misc]
    sides = [torch.randn(options.pairs, 512, requires_grad=True) for _ in range(2)]
    scale = torch.tensor(14.0, requires_grad=True)
    cases[f"contrastive_loss, {options.pairs:,} pairs"] = lambda: contrastive_loss(*sides, scale).backward()
    for name, call in cases.items():
        seconds, share, speed = measured(call, options.runs)
        print(f"| {name} | {seconds:.3f} | {share:.0%} | {speed:.0f} |", flush=True)


if __name__ == "__main__":
    main()
