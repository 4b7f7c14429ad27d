"""Why training in bfloat16 on a CPU takes its attention through float32: forward and backward of both, interleaved.

python -m benchmarks.attention [--runs 10]
"""

import argparse
import os
import platform
import statistics
import time

import torch
import torch.nn.functional as F

SHAPES = ((128, 3, 65, 64), (128, 2, 18, 64), (8, 12, 197, 64))  # B, H, T, D / H: the small preset, ViT-B/16


def seconds(shape: tuple[int, ...], compute: torch.dtype) -> float:
    """Forward and backward from bfloat16 inputs, computed in the precision named."""
    q, k, v = (torch.randn(shape, dtype=torch.bfloat16, requires_grad=True) for _ in range(3))
    start = time.perf_counter()
    y = F.scaled_dot_product_attention(*(x.to(compute) for x in (q, k, v))).bfloat16()
    y.backward(torch.ones_like(y))
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=10, help="pairs of runs (default 10)")
    runs = parser.parse_args().runs
    print(f"{platform.machine()}, {os.cpu_count()} cores, torch {torch.__version__}; milliseconds, medians")
    print("| B, H, T, D / H | bfloat16 | through float32 | ratio |\n| --- | --- | --- | --- |")
    for shape in SHAPES:
        for dtype in (torch.bfloat16, torch.float32):
            seconds(shape, dtype)
        pairs = [(seconds(shape, torch.bfloat16), seconds(shape, torch.float32)) for _ in range(runs)]
        half, single = (1000 * statistics.median(column) for column in zip(*pairs, strict=True))
        ratio = statistics.median(a / b for a, b in pairs)
        print(f"| {', '.join(map(str, shape))} | {half:.1f} | {single:.1f} | {ratio:.1f} |")


if __name__ == "__main__":
    main()
