"""The contrastive loss, forward and backward: time and peak memory over the inputs, each run in a process of its own.

python -m benchmarks.losses [--pairs 1024 2048 8192] [--embedding 512] [--runs 3] [--plot FILE.png]

Compared: the plain form (losses/reference.py), the flat form (losses/chunked.py), and open_clip's ClipLoss, on the same
tensors. The values must agree before any figure is printed. Ratios are medians over interleaved runs. The plain forms
are left out where their matrices would not fit (`--largest-plain`).
"""

import argparse
import json
import math
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path

FORMS = ("plain", "flat", "open_clip")
SCALE = 20.0


def measure(form: str, pairs: int, embedding: int) -> dict[str, float]:
    """Run in a process of its own: loss, seconds, and MiB of the peak over what stood before."""
    import torch

    x, y = torch.randn(2, pairs, embedding, generator=torch.Generator().manual_seed(0)).unbind()
    x, y = (torch.nn.functional.normalize(side, dim=-1).requires_grad_() for side in (x, y))
    scale = torch.tensor(SCALE, requires_grad=True)
    loss_of = forward(form)
    loss_of(x[:64], y[:64], scale).backward()  # libraries loaded, threads started
    before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.perf_counter()
    loss = loss_of(x, y, scale)
    loss.backward()
    seconds = time.perf_counter() - start
    peak = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    return {"loss": loss.item(), "seconds": seconds, "mib": peak}


def forward(form: str):
    """The loss of one form, as a function of unit vectors and the scale."""
    if form == "open_clip":
        from open_clip.loss import ClipLoss

        return ClipLoss()
    from miniclip.losses import chunked, reference

    return chunked.contrastive_loss if form == "flat" else reference.contrastive_loss


def run(form: str, pairs: int, embedding: int) -> dict[str, float]:
    """`measure` in a fresh process."""
    command = [sys.executable, "-m", "benchmarks.losses", "--measure", form, str(pairs), str(embedding)]
    return json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def compare(pairs: int, embedding: int, runs: int, forms: list[str]) -> dict[str, dict[str, list[float]]]:
    """Interleaved runs of all forms at one size; fails where their values differ."""
    results: dict[str, dict[str, list[float]]] = {form: {"loss": [], "seconds": [], "mib": []} for form in forms}
    for _ in range(runs):
        for form in forms:
            for key, value in run(form, pairs, embedding).items():
                results[form][key].append(value)
    losses = [results[form]["loss"][0] for form in forms]
    if not all(math.isclose(loss, losses[0], rel_tol=1e-5) for loss in losses):
        raise SystemExit(f"the losses differ at {pairs} pairs: {dict(zip(forms, losses, strict=True))}")
    return results


def row(pairs: int, results: dict[str, dict[str, list[float]]]) -> str:
    """A line of the table."""
    cells = [f"{pairs:,}"]
    for form in FORMS:
        if form in results:
            seconds, mib = (statistics.median(results[form][key]) for key in ("seconds", "mib"))
            cells.append(f"{seconds:.3g} s, {mib:,.0f} MiB")
        else:
            cells.append("")
    for other in ("plain", "open_clip"):
        ratio = ""
        if other in results:
            faster = [a / b for a, b in zip(results[other]["seconds"], results["flat"]["seconds"], strict=True)]
            ratio = f"{statistics.median(faster):.2f}"
        cells.append(ratio)
    return f"| {' | '.join(cells)} |"


def plot(sizes: list[int], table: list[dict[str, dict[str, list[float]]]], path: Path) -> None:
    """Memory over the number of pairs."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4), dpi=120, layout="constrained")
    axes = figure.subplots()
    for form, label in zip(FORMS, ("plain", "flat (miniclip)", "open_clip ClipLoss"), strict=True):
        points = [(n, statistics.median(r[form]["mib"])) for n, r in zip(sizes, table, strict=True) if form in r]
        axes.loglog(*zip(*points, strict=True), "o-", label=label)
    axes.set_xlabel("pairs in the batch, N")
    axes.set_ylabel("peak memory over the inputs (MiB)")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, nargs="+", default=[1024, 2048, 4096, 8192], help="sizes of the batch")
    parser.add_argument("--embedding", type=int, default=512)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--largest-plain", type=int, default=16384, help="pairs up to which the plain forms run")
    parser.add_argument("--plot", type=Path, help="draw memory over N")
    parser.add_argument("--measure", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        form, pairs, embedding = options.measure
        print(json.dumps(measure(form, int(pairs), int(embedding))))
        return
    import torch

    print(f"{platform.machine()}, {os.cpu_count()} cores, torch {torch.__version__}; E = {options.embedding}, float32")
    print("| N | plain | flat | open_clip | flat faster than plain | than open_clip |\n|" + " --- |" * 6)
    table = []
    for pairs in options.pairs:
        forms = [form for form in FORMS if form == "flat" or pairs <= options.largest_plain]
        table.append(compare(pairs, options.embedding, options.runs, forms))
        print(row(pairs, table[-1]), flush=True)
    if options.plot:
        plot(options.pairs, table, options.plot)


if __name__ == "__main__":
    main()
