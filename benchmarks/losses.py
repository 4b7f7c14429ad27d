"""The contrastive loss, forward and backward: time and peak memory above the inputs, each run in a separate process.

python -m benchmarks.losses [--pairs 1024 2048 8192] [--embedding 512] [--runs 3] [--plot FILE.png], or only beside
open_clip: python -m benchmarks losses

Three forms are compared on the same float32 tensors: the plain loss (losses/reference.py), the chunked loss
(losses/chunked.py) and open_clip's ClipLoss. Their values and gradients must agree before any number is printed. Runs
are interleaved. The row of several positives compares the plain and the chunked form of N images with `CAPTIONS`
captions each. Times are medians, with the minimum in brackets; ratios are medians over the runs. Forms that store the
matrix are skipped for batches above `--largest-plain`. The device is the GPU if there is one.
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

from benchmarks.harness import MINICLIP, Row, Scale

FORMS = ("plain", "chunked", "open_clip")
LABELS = {"plain": "plain", "chunked": "chunked (miniclip)", "open_clip": "open_clip ClipLoss"}
SEVERAL = ("plain, several positives", "chunked, several positives")
CAPTIONS = 5  # captions per image in these forms
SCALE = 20.0
TOLERANCE = 1e-4  # relative to the largest gradient; float32 forms differ by about 1e-6
STATUS = Path("/proc/self/status")

Results = dict[str, dict[str, list[float]]]  # form -> "seconds", "cpu_seconds" or "mib" -> runs


def measure(form: str, pairs: int, embedding: int, path: Path, device: str) -> dict[str, float]:
    """Return seconds, and MiB of the peak above the inputs; save loss and gradients. Runs in its own process."""
    import torch

    device = torch.device(device)
    generator, texts = torch.Generator().manual_seed(0), pairs * (CAPTIONS if form in SEVERAL else 1)
    x, y = (torch.randn(n, embedding, generator=generator).to(device) for n in (pairs, texts))
    x, y = (torch.nn.functional.normalize(side, dim=-1).requires_grad_() for side in (x, y))
    scale = torch.tensor(SCALE, requires_grad=True, device=device)
    loss_of = loss_function(form)
    loss_of(x[:64], y[: 64 * len(y) // len(x)], scale).backward()  # loads libraries and starts threads
    x.grad = y.grad = scale.grad = None
    before, start, cpu_start = reset_memory_peak(device), time.perf_counter(), time.process_time()
    loss = loss_of(x, y, scale)
    loss.backward()
    if device.type == "cuda":
        torch.cuda.synchronize()
    seconds, cpu_seconds = time.perf_counter() - start, time.process_time() - cpu_start
    peak = memory_peak(device) - before
    with torch.no_grad():  # miniclip normalises, which removes the radial component; remove open_clip's too
        tangential = [side.grad - (side * side.grad).sum(dim=1, keepdim=True) * side for side in (x, y)]
        torch.save([number.detach().cpu() for number in (loss, *tangential, scale.grad)], path)
    return {"seconds": seconds, "cpu_seconds": cpu_seconds, "mib": peak}


def reset_memory_peak(device) -> float:
    """Reset the peak, and return the MiB in use."""
    import torch

    if device.type == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        return torch.cuda.memory_allocated() / 2**20
    if STATUS.exists():
        Path("/proc/self/clear_refs").write_text("5")
        return from_status("VmRSS")
    return memory_peak(device)


def memory_peak(device) -> float:
    """Return the peak in MiB."""
    import torch

    if device.type == "cuda":
        return torch.cuda.max_memory_allocated() / 2**20
    if STATUS.exists():
        return from_status("VmHWM")
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)


def from_status(key: str) -> float:
    """Return a field of /proc/self/status in MiB."""
    return int(re.search(rf"{key}:\s+(\d+) kB", STATUS.read_text())[1]) / 1024


def loss_function(form: str):
    """Return the loss of a form, as a function of unit vectors and the scale."""
    if form == "open_clip":
        from open_clip.loss import ClipLoss

        return ClipLoss()
    import torch

    from miniclip.losses import chunked, reference
    from miniclip.losses.inputs import LossInputs

    if form == "plain":
        return reference.contrastive_loss
    if form in SEVERAL:
        from miniclip.losses import multi_chunked, multi_positive

        loss_of = (multi_positive if form == SEVERAL[0] else multi_chunked).loss

        def loss(x, y, scale):
            ids = torch.arange(len(x), device=x.device)
            return loss_of(LossInputs(x, y, scale, ids=ids, text_ids=ids.repeat_interleave(CAPTIONS)))

        return loss
    return lambda x, y, scale: chunked.loss(LossInputs(x, y, scale))


def run(*arguments: str | int | Path) -> dict[str, float]:
    """Call `measure` in a fresh process."""
    command = [sys.executable, "-m", "benchmarks.losses", "--measure", *map(str, arguments)]
    return json.loads(subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout)


def compare(pairs: int, embedding: int, runs: int, forms: Iterable[str], device: str) -> Results:
    """Run all forms interleaved at one size; exit if their values or gradients differ."""
    results: Results = {form: {"seconds": [], "cpu_seconds": [], "mib": []} for form in forms}
    with tempfile.TemporaryDirectory() as folder:
        for number in range(runs):
            for form in forms:
                for key, value in run(form, pairs, embedding, Path(folder) / form, device).items():
                    results[form][key].append(value)
            if number == 0:
                check(Path(folder), list(forms), pairs)
    return results


def check(folder: Path, forms: list[str], pairs: int) -> None:
    """Exit if the forms' losses or gradients differ."""
    import torch

    expected = torch.load(folder / forms[0])
    for form in forms[1:]:
        for name, a, b in zip(("loss", "images", "texts", "scale"), torch.load(folder / form), expected, strict=True):
            difference = float((a - b).abs().max() / b.abs().max())
            if not difference < TOLERANCE:
                raise SystemExit(f"{form} and {forms[0]} differ at {pairs} pairs: {name} by {difference:.1e}")


def rows(scale: Scale) -> Iterator[Row]:
    for pairs in (2048,) if scale.small else (8192, 16384):
        results = compare(pairs, 512, scale.rounds, ("chunked", "open_clip"), scale.device)
        for key, unit, target in (("seconds", "s", 2.5), ("mib", "MiB", 10.0)):
            values = {MINICLIP: results["chunked"][key], "open_clip": results["open_clip"][key]}
            case = f"{pairs:,} pairs, E = 512, forward and backward, {'peak memory' if key == 'mib' else 'time'}"
            yield Row("contrastive loss", case, unit, values, {"open_clip": target}, lower_is_better=True)
    images = 512 if scale.small else 4096
    results = compare(images, 512, scale.rounds, SEVERAL, scale.device)
    for key, unit in (("seconds", "s"), ("mib", "MiB")):
        values = {MINICLIP: results[SEVERAL[1]][key], "plain form": results[SEVERAL[0]][key]}
        case = f"{images:,} images, {CAPTIONS} captions each, {'peak memory' if key == 'mib' else 'time'}"
        yield Row("several positives", case, unit, values, {}, lower_is_better=True)


def ratio(results: Results, other: str, key: str) -> float | None:
    """Return how many times as much another form takes as the chunked one: the median over the runs."""
    if other not in results:
        return None
    return statistics.median(a / b for a, b in zip(results[other][key], results["chunked"][key], strict=True))


def table_line(pairs: int, results: Results) -> str:
    """Return a line of the table."""
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
    """Draw memory over the number of pairs, with that of the inputs for comparison."""
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
    axes.set_ylabel("peak memory above the inputs (MiB)")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, nargs="+", default=[1024, 2048, 4096, 8192], help="batch sizes")
    parser.add_argument("--embedding", type=int, default=512)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--largest-plain", type=int, default=16384, help="largest batch of forms that store the matrix")
    parser.add_argument("--several", action="store_true", help=f"N images of {CAPTIONS} captions; CPU seconds, MiB")
    parser.add_argument("--plot", type=Path, help="draw memory over N")
    parser.add_argument("--measure", nargs=5, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        form, pairs, embedding, path, device = options.measure
        print(json.dumps(measure(form, int(pairs), int(embedding), Path(path), device)))
        return
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    hardware = torch.cuda.get_device_name() if device == "cuda" else f"{platform.machine()}, {os.cpu_count()} cores"
    load = f", load {os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else ""
    print(f"{hardware}{load}, torch {torch.__version__}; E = {options.embedding}, float32; {options.runs} runs")
    if options.several:
        print(f"| N | {' | '.join(SEVERAL)} |\n|" + " --- |" * 3)
        for images in options.pairs:
            results = compare(images, options.embedding, options.runs, SEVERAL, device)
            cells = [f"{min(r['cpu_seconds']):.2g} s, {statistics.median(r['mib']):,.0f} MiB" for r in results.values()]
            print(f"| {images:,} | {' | '.join(cells)} |", flush=True)
        return
    print("ratios to chunked: time, memory\n")
    print("| N | plain | chunked | open_clip | plain / chunked | open_clip / chunked |\n|" + " --- |" * 6)
    table = []
    for pairs in options.pairs:
        forms = [form for form in FORMS if form == "chunked" or pairs <= options.largest_plain]
        table.append(compare(pairs, options.embedding, options.runs, forms, device))
        print(table_line(pairs, table[-1]), flush=True)
    if options.plot:
        plot(options.pairs, table, options.embedding, options.plot)


if __name__ == "__main__":
    main()
