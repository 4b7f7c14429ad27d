"""The time of a call by kind of kernel, such as matrix products, attention and norms."""

import re
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

# the first that a kernel's name contains; on a CPU the names are those of operators
KINDS = (
    ("attention", r"flash|fmha|attention|sdpa|mha_"),
    ("convolution", r"conv(?!ert)|implicit_gemm|cudnn.*(wgrad|dgrad|fprop)|im2col|nchw|nhwc"),
    ("optimizer and clipping", r"adam|multi_tensor|foreach|lpnorm|lp_norm"),
    ("norms", r"layer_?norm"),
    ("matrix products", r"triton_tem|gemm|nvjet|cutlass|cublas|s16816|splitk|addmm|aten::mm$|aten::bmm|linear"),
    ("elementwise and reductions", r"^triton_"),  # their names list all operators, such as _to_copy
    ("copies", r"memcpy|memset|copy|cat(_|Array)|fill|aten::_?to|index|gather|scatter|embedding"),
    ("elementwise and reductions", r"elementwise|reduce|aten::"),
)


def kind_of(name: str) -> str:
    """Return the kind of a kernel or operator by its name."""
    return next((kind for kind, pattern in KINDS if re.search(pattern, name, re.IGNORECASE)), "other")


def time_by_kind(call: Callable[[], Any], repeats: int) -> dict[str, float]:
    """Return the milliseconds of a call by kind of kernel, and those in which the device had no work.

    Args:
        call: is repeated.
        repeats: number of calls; the result is their mean.
    """
    on_gpu = torch.cuda.is_available() and torch.cuda.is_initialized()
    with profile(activities=[ProfilerActivity.CPU, *[ProfilerActivity.CUDA] * on_gpu]) as profiler:
        for _ in range(repeats):
            call()
        if on_gpu:
            torch.cuda.synchronize()
    totals: defaultdict[str, float] = defaultdict(float)
    spans = []
    for event in profiler.events():
        if on_gpu and event.device_type == DeviceType.CUDA and not event.is_user_annotation:  # or kernels count twice
            totals[kind_of(event.name)] += event.time_range.elapsed_us()
            spans.append((event.time_range.start, event.time_range.end))
        elif not on_gpu and event.name.startswith("aten::"):
            totals[kind_of(event.name)] += event.self_cpu_time_total
    if spans:
        busy = sum(totals.values())
        totals["no kernel"] = max(0.0, max(end for _, end in spans) - min(start for start, _ in spans) - busy)
    return {kind: microseconds / 1e3 / repeats for kind, microseconds in totals.items()}
