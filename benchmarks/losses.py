"""The contrastive loss, forward and backward: time and peak memory over the inputs, each run in a process of its own.

python -m benchmarks.losses [--pairs 1024 2048 8192] [--embedding 512] [--runs 3] [--plot FILE.png], or against
open_clip's alone: python -m benchmarks losses

Compared: the plain form (losses/reference.py), the flat form (losses/chunked.py), and open_clip's ClipLoss, on the same
tensors in float32. Values and gradients must agree before any figure is printed. Runs are interleaved; times are
medians, and in brackets the shortest, which other work on the machine disturbs least; ratios are medians over the runs.
The plain forms are left out where their matrices would not fit (`--largest-plain`). On a GPU, where one is there.
"""

import argparse
import json
import os
import platform
import re
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

from benchmarks.frame import OURS, Row, Scale

FORMS = ("plain", "flat", "open_clip")
LABELS = {"plain": "plain", "flat": "flat (miniclip)", "open_clip": "open_clip ClipLoss"}
SCALE = 20.0
TOLERANCE = 1e-4  # of the greatest gradient; in float32 the forms differ by some 1e-6
STATUS = Path("/proc/self/status")

Results = dict[str, dict[str, list[float]]]  # form -> "seconds" or "mib" -> runs


def measure(form: str, pairs: int, embedding: int, gradients: Path, device: str) -> dict[str, float]:
    """Run in a process of its own: seconds, and MiB of the peak over what stood before; leaves loss and gradients."""
    import torch

    device = torch.device(device)
    x, y = torch.randn(2, pairs, embedding, generator=torch.Generator().manual_seed(0)).to(device).unbind()
    x, y = (torch.nn.functional.normalize(side, dim=-1).requires_grad_() for side in (x, y))
    scale = torch.tensor(SCALE, requires_grad=True, device=device)
    loss_of = forward(form)
    loss_of(x[:64], y[:64], scale).backward()  # libraries loaded, threads started
    x.grad = y.grad = scale.grad = None
    before, start = memory_so_far(device), time.perf_counter()
    loss = loss_of(x, y, scale)
    loss.backward()
    if device.type == "cuda":
        torch.cuda.synchronize()
    seconds = time.perf_counter() - start
    peak = memory_peak(device) - before
    with torch.no_grad():  # ours normalise, so that nothing along a vector is in its gradient: leave it out of theirs
        across = [side.grad - (side * side.grad).sum(dim=1, keepdim=True) * side for side in (x, y)]
        torch.save([number.detach().cpu() for number in (loss, *across, scale.grad)], gradients)
    return {"seconds": seconds, "mib": peak}


def memory_so_far(device) -> float:
    """MiB in use; the peak is counted from here on."""
    import torch

    if device.type == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        return torch.cuda.memory_allocated() / 2**20
    if STATUS.exists():
        Path("/proc/self/clear_refs").write_text("5")  # forgets the peak so far
        return from_status("VmRSS")
    return memory_peak(device)


def memory_peak(device) -> float:
    """MiB at the most."""
    import torch

    if device.type == "cuda":
        return torch.cuda.max_memory_allocated() / 2**20
    if STATUS.exists():
        return from_status("VmHWM")
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)


def from_status(key: str) -> float:
    return int(re.search(rf"{key}:\s+(\d+) kB", STATUS.read_text())[1]) / 1024


def forward(form: str):
    """The loss of one form, as a function of unit vectors and the scale."""
    if form == "open_clip":
        from open_clip.loss import ClipLoss

        return ClipLoss()
    from miniclip.losses import chunked, reference
    from miniclip.losses.inputs import LossInputs

    return (lambda x, y, scale: chunked.loss(LossInputs(x, y, scale))) if form == "flat" else reference.contrastive_loss


def run(*arguments: str | int | Path) -> dict[str, float]:
    """`measure` in a fresh process."""
    command = [sys.executable, "-m", "benchmarks.losses", "--measure", *map(str, arguments)]
    return json.loads(subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout)


def compare(pairs: int, embedding: int, runs: int, forms: Iterable[str], device: str) -> Results:
    """Interleaved runs of all forms at one size; fails where their values or gradients differ."""
    results: Results = {form: {"seconds": [], "mib": []} for form in forms}
    with tempfile.TemporaryDirectory() as folder:
        for number in range(runs):
            for form in forms:
                for key, value in run(form, pairs, embedding, Path(folder) / form, device).items():
                    results[form][key].append(value)
            if number == 0:
                check(Path(folder), list(forms), pairs)
    return results


def check(folder: Path, forms: list[str], pairs: int) -> None:
    """Fail where the forms' losses or gradients differ."""
    import torch

    expected = torch.load(folder / forms[0])
    for form in forms[1:]:
        for name, a, b in zip(("loss", "images", "texts", "scale"), torch.load(folder / form), expected, strict=True):
            difference = float((a - b).abs().max() / b.abs().max())
            if not difference < TOLERANCE:
                raise SystemExit(f"{form} and {forms[0]} differ at {pairs} pairs: {name} by {difference:.1e}")


def rows(scale: Scale) -> Iterator[Row]:
    for pairs in (2048,) if scale.small else (8192, 16384):
        results = compare(pairs, 512, scale.rounds, ("flat", "open_clip"), scale.device)
        for key, l2_normalize, lead in (("seconds", "s", 2.5), ("mib", "MiB", 10.0)):
            values = {OURS: results["flat"][key], "open_clip": results["open_clip"][key]}
            case = f"{pairs:,} pairs, E = 512, forward and backward, {'peak memory' if key == 'mib' else 'time'}"
            yield Row("contrastive loss", case, l2_normalize, values, {"open_clip": lead}, less=True)


def ratio(results: Results, other: str, key: str) -> float | None:
    """How many times as much the other form takes as the flat one: the median over the runs."""
    if other not in results:
        return None
    return statistics.median(a / b for a, b in zip(results[other][key], results["flat"][key], strict=True))


def row(pairs: int, results: Results) -> str:
    """A line of the table."""
    cells = [f"{pairs:,}"]
    for form in FORMS:
        if form in results:
            seconds, mib = (results[form][key] for key in ("seconds", "mib"))
            median = statistics.median(seconds)
            cells.append(f"{median:.3g} s ({min(seconds):.3g}), {statistics.median(mib):,.0f} MiB")
        else:
            cells.append("")
    for other in ("plain", "open_clip"):
        faster, larger = (ratio(results, other, key) for key in ("seconds", "mib"))
        cells.append("" if faster is None else f"{faster:.2f}, {larger:.1f}")
    return f"| {' | '.join(cells)} |"


def plot(sizes: list[int], table: list[Results], embedding: int, path: Path) -> None:
    """Memory over the number of pairs, with the inputs' own for comparison."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4), dpi=120, layout="constrained")
    axes = figure.subplots()
    for form in FORMS:
        points = [(n, statistics.median(r[form]["mib"])) for n, r in zip(sizes, table, strict=True) if form in r]
        axes.loglog(*zip(*points, strict=True), "o-", label=LABELS[form])
    axes.loglog(sizes, [2 * n * embedding * 4 / 2**20 for n in sizes], "k:", label="the embeddings themselves")
    axes.set_xticks(sizes, [f"{n:,}" for n in sizes], minor=False)
    axes.set_xticks([], minor=True)
    axes.set_xlabel(f"pairs in the batch, N (float32, E = {embedding})")
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
    parser.add_argument("--measure", nargs=5, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        form, pairs, embedding, gradients, device = options.measure
        print(json.dumps(measure(form, int(pairs), int(embedding), Path(gradients), device)))
        return
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    where = (
        torch.cuda.get_device_name() if torch.cuda.is_available() else f"{platform.machine()}, {os.cpu_count()} cores"
    )
    load = f", load {os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else ""
    print(f"{where}{load}, torch {torch.__version__}; E = {options.embedding}, float32; {options.runs} runs")
    print("plain and open_clip by flat: times as long, times as much memory\n")
    print("| N | plain | flat | open_clip | plain by flat | open_clip by flat |\n|" + " --- |" * 6)
    table = []
    for pairs in options.pairs:
        forms = [form for form in FORMS if form == "flat" or pairs <= options.largest_plain]
        table.append(compare(pairs, options.embedding, options.runs, forms, device))
        print(row(pairs, table[-1]), flush=True)
    if options.plot:
        plot(options.pairs, table, options.embedding, options.plot)


if __name__ == "__main__":
    main()
