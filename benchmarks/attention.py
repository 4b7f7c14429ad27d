"""Attention in bfloat16 on a CPU: the implementations of `miniclip.fast.attention` and their alternatives.

With gradient: bfloat16 against a computation in float32, forward and backward. Without gradient: the fused operator
against two matrix products and a softmax.

python -m benchmarks.attention [--runs 10]
"""

import argparse
import os
import platform
import statistics
import time
from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F

from miniclip.fast.attention import materialized_attention

SHAPES = ((128, 3, 65, 64), (128, 2, 18, 64), (8, 12, 197, 64))  # B, H, T, D / H: the small preset, ViT-B/16


def seconds(shape: tuple[int, ...], compute: torch.dtype) -> float:
    """Return the seconds of forward and backward from bfloat16 inputs, computed in another precision."""
    q, k, v = (torch.randn(shape, dtype=torch.bfloat16, requires_grad=True) for _ in range(3))
    start = time.perf_counter()
    y = F.scaled_dot_product_attention(*(x.to(compute) for x in (q, k, v))).bfloat16()
    y.backward(torch.ones_like(y))
    return time.perf_counter() - start


@torch.no_grad()
def inference(shape: tuple[int, ...], attend: Callable[..., torch.Tensor]) -> float:
    """Return the seconds of forward, all of it in bfloat16."""
    q, k, v = (torch.randn(shape, dtype=torch.bfloat16) for _ in range(3))
    start = time.perf_counter()
    attend(q, k, v)
    return time.perf_counter() - start


def print_table(columns: dict[str, Callable[[tuple[int, ...]], float]], runs: int) -> None:
    """Time two functions of the shape in interleaved runs, after a warm-up, and print their medians."""
    print(f"| B, H, T, D / H | {' | '.join(columns)} | ratio |\n| --- | --- | --- | --- |")
    first, second = columns.values()
    for shape in SHAPES:
        first(shape), second(shape)
        pairs = [(first(shape), second(shape)) for _ in range(runs)]
        a, b = (1000 * statistics.median(column) for column in zip(*pairs, strict=True))
        ratio = statistics.median(a / b for a, b in pairs)
        print(f"| {', '.join(map(str, shape))} | {a:.1f} | {b:.1f} | {ratio:.1f} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=10, help="pairs of runs (default 10)")
    runs = parser.parse_args().runs
    print(f"{platform.machine()}, {os.cpu_count()} cores, torch {torch.__version__}; milliseconds, medians")
    print("\nforward and backward\n")
    training = {"bfloat16": torch.bfloat16, "through float32": torch.float32}
    print_table({name: partial(seconds, compute=dtype) for name, dtype in training.items()}, runs)
    print("\nforward\n")
    functions = {"fused": F.scaled_dot_product_attention, "two products": materialized_attention}
    print_table({name: partial(inference, attend=function) for name, function in functions.items()}, runs)


if __name__ == "__main__":
    main()
