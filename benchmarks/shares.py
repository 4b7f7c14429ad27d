"""The fraction of time in matrix products, and their speed: an upper bound for what other code could save.

Measured with torch's profiler for `encode_image` (ViT-B/16, 8 images), `encode_text` (256 captions) and the loss.

python -m benchmarks.shares [--runs 5] [--pairs 8192] [--layers 12]
"""

import argparse
import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks.baselines import random_captions, with_layers
from benchmarks.harness import describe_machine
from benchmarks.report import machine_line
from miniclip import contrastive_loss
from miniclip.config import preset
from miniclip.hub import fresh

LINEAR = "mkldnn::_linear_pointwise"
PRODUCTS = (LINEAR, "aten::addmm", "aten::mm", "aten::bmm", "aten::mkldnn_convolution")


def measure(call: Callable[[], Any], runs: int) -> tuple[float, float, float]:
    """Return seconds of a call, the fraction of matrix products in it, and GFLOP/s of its linear layers."""
    for _ in range(2):
        call()
    seconds = []
    for _ in range(runs):
        start = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - start)
    with profile(activities=[ProfilerActivity.CPU], record_shapes=True) as profiler:
        call()
    events = profiler.key_averages(group_by_input_shape=True)
    total = sum(event.self_cpu_time_total for event in events)
    products = sum(event.self_cpu_time_total for event in events if event.key in PRODUCTS)
    linear = [event for event in events if event.key == LINEAR]
    microseconds = sum(event.self_cpu_time_total for event in linear)
    operations = sum(event.count * linear_flops(*event.input_shapes[:2]) for event in linear)
    return statistics.median(seconds), products / total, operations / microseconds / 1e3


def linear_flops(x: list[int], weight: list[int]) -> int:
    """Return the FLOPs of a linear layer: (…, K) by a weight (N, K)."""
    return 2 * torch.Size(x).numel() * weight[0]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--pairs", type=int, default=8192, help="batch size of the loss (default 8192)")
    parser.add_argument("--layers", type=int, default=12, help="layers of both towers (default 12)")
    options = parser.parse_args()
    torch.manual_seed(0)
    print(machine_line(describe_machine()), "\n")
    print("| what | seconds | fraction of products | linear layers, GFLOP/s |\n| --- | --- | --- | --- |")
    calls: dict[str, Callable[[], Any]] = {}
    pixels, tokens = torch.randn(8, 3, 224, 224), random_captions(256)
    for dtype in (torch.float32, torch.bfloat16):
        model = fresh(with_layers(preset("vit_b_16"), options.layers)).eval().to(dtype)
        name = str(dtype).removeprefix("torch.")
        calls[f"encode_image, 8 images, {name}"] = partial(model.encode_image, pixels.to(dtype))
        calls[f"encode_text, 256 captions, {name}"] = partial(model.encode_text, tokens)
    embeddings = [torch.randn(options.pairs, 512, requires_grad=True) for _ in range(2)]
    scale = torch.tensor(14.0, requires_grad=True)
    calls[f"contrastive_loss, {options.pairs:,} pairs"] = lambda: contrastive_loss(*embeddings, scale).backward()
    for name, call in calls.items():
        seconds, fraction, speed = measure(call, options.runs)
        print(f"| {name} | {seconds:.3f} | {fraction:.0%} | {speed:.0f} |", flush=True)


if __name__ == "__main__":
    main()
