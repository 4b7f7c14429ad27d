"""Opening a checkpoint: time and peak memory, against open_clip and transformers, each run in a process of its own.

python -m benchmarks.loading [--preset vit_l_14] [--layers N] [--runs 5], or python -m benchmarks loading

A model with random weights is written in three layouts, so each library opens its own and miniclip opens all three. The
time is until the model is built, and until every page of its weights was read once. The peak is the additional memory,
in sizes of the weights. Libraries are imported beforehand. All must compute the same embedding of one image, or no
result is printed. Ratios are medians over interleaved runs. The peak needs Linux.
"""

import argparse
import dataclasses
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from benchmarks.harness import MINICLIP, Row, Scale

READERS = {  # name: (who opens, which layout)
    "miniclip": ("miniclip", "miniclip"),
    "miniclip, open_clip's layout": ("miniclip", "open_clip"),
    "open_clip": ("open_clip", "open_clip"),
    "miniclip, transformers' layout": ("miniclip", "transformers"),
    "transformers": ("transformers", "transformers"),
}
MIB = 1 << 20


def measure(reader: str, folder: str) -> dict[str, float | list[float]]:
    """Run in a process of its own: seconds, peak memory over the weights, and one embedding to compare by."""
    import torch

    open_model = opener(reader)
    torch.ones(1 << 20).double().sum()  # threads are started
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts from here
    before, start = memory("VmRSS"), time.perf_counter()
    model = open_model(folder)
    opened = time.perf_counter() - start
    torch.set_num_threads(1)  # threads that wait for each other would be the greater part of the time
    for tensor in model.state_dict().values():
        tensor.detach().reshape(-1)[::512].double().sum()
    touched = time.perf_counter() - start
    peak = memory("VmHWM") - before
    weights = sum(tensor.nbytes for tensor in model.state_dict().values())
    return {"opened": opened, "touched": touched, "peak": peak / weights, "embedding": embed(model, torch)}


def memory(name: str) -> int:
    """A line of /proc/self/status, in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name)) * 1024


def opener(reader: str):
    """A library's way to open a directory, the library imported."""
    if reader == "miniclip":
        import miniclip

        return miniclip.load
    if reader == "open_clip":
        import open_clip

        return lambda folder: open_clip.create_model(f"local-dir:{folder}").eval()
    from transformers import CLIPModel

    return CLIPModel.from_pretrained


def embed(model, torch) -> list[float]:
    """Return the first numbers of the unit embedding of one image."""
    if hasattr(model, "get_image_features"):  # transformers
        size = model.config.vision_config.image_size
        encode = lambda pixels: model.get_image_features(pixel_values=pixels).pooler_output  # noqa: E731
    else:
        size = model.visual.image_size[0] if hasattr(model, "visual") else model.config.image.image_size
        encode = model.encode_image
    pixels = torch.randn(1, 3, size, size, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        return torch.nn.functional.normalize(encode(pixels), dim=-1)[0, :8].tolist()


def run(reader: str, folder: Path) -> dict:
    """Run `measure` in a new process, with the files in the page cache: the speed of the disk does not count."""
    for file in folder.iterdir():
        with file.open("rb") as opened:
            while opened.read(64 * MIB):
                pass
    command = [sys.executable, "-m", "benchmarks.loading", "--measure", reader, str(folder)]
    return json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()[-1])


def prepare(preset: str, layers: int | None, folder: Path) -> int:
    """Write a random model in three layouts; returns its parameters."""
    import torch

    from miniclip import export, save
    from miniclip.config import preset as find
    from miniclip.hub import fresh

    config = find(preset)
    if layers is not None:
        config = dataclasses.replace(config.replace_text(layers=layers).replace_image(layers=layers))
    torch.manual_seed(0)
    model = fresh(config).eval()
    save(model, folder / "miniclip")
    for layout in ("open_clip", "transformers"):
        export(model, folder / layout, layout=layout)
    return sum(parameter.numel() for parameter in model.parameters())


def compare(preset: str, layers: int | None, runs: int) -> tuple[int, dict[str, list[dict]]]:
    """The parameters, and by reader what it measured, a run after the other; fails where embeddings differ."""
    results: dict[str, list[dict]] = {name: [] for name in READERS}
    with tempfile.TemporaryDirectory() as folder:
        parameters = prepare(preset, layers, Path(folder))
        os.sync()  # else the first runs share the disk with what was just written
        names = list(READERS)
        for number in range(runs):
            first = number % len(names)
            for name in names[first:] + names[:first]:
                reader, layout = READERS[name]
                results[name].append(run(reader, Path(folder) / layout))
    embeddings = {name: found[0]["embedding"] for name, found in results.items()}
    first = next(iter(embeddings.values()))
    if any(max(abs(a - b) for a, b in zip(first, e, strict=True)) > 2e-5 for e in embeddings.values()):
        raise SystemExit(f"the embeddings differ: {embeddings}")
    return parameters, results


def rows(scale: Scale) -> Iterator[Row]:
    preset, layers = ("vit_b_32", 1) if scale.small else ("vit_l_14", None)
    parameters, results = compare(preset, layers, scale.rounds)
    model = f"{preset}, {parameters / 1e6:.0f}M parameters"
    for name, (reader, layout) in READERS.items():
        if reader != MINICLIP:
            continue
        peer = layout if layout in results and layout != MINICLIP else None
        for key, what in (("opened", "opened"), ("touched", "every page read")) if peer else ():
            values = {MINICLIP: [r[key] for r in results[name]], peer: [r[key] for r in results[peer]]}
            yield Row("load", f"{model}, layout of {layout}, {what}", "s", values, {peer: 1.0}, lower_is_better=True)
        values = {MINICLIP: [r["peak"] for r in results[name]], "the weights": [1.0] * scale.rounds}
        if peer:
            values[peer] = [r["peak"] for r in results[peer]]
        case = f"{model}, layout of {layout}, peak memory"
        yield Row("load", case, "times the weights", values, {"the weights": 1 / 1.15}, lower_is_better=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="vit_l_14")
    parser.add_argument("--layers", type=int, help="of both towers, to make it smaller")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--measure", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        print(json.dumps(measure(*options.measure)))
        return
    import torch

    parameters, results = compare(options.preset, options.layers, options.runs)
    print(f"{platform.machine()}, {os.cpu_count()} cores, torch {torch.__version__}; {parameters:,} parameters")
    print("| opened by | opened (s) | every page read (s) | peak over the weights |\n|" + " --- |" * 4)
    for name, found in results.items():
        opened, touched, peak = (statistics.median(r[key] for r in found) for key in ("opened", "touched", "peak"))
        print(f"| {name} | {opened:.2f} | {touched:.2f} | {peak:.2f} |")
    for layout in ("open_clip", "transformers"):
        ours = next(name for name, reader in READERS.items() if reader == ("miniclip", layout))
        pairs = zip(results[layout], results[ours], strict=True)
        ratios = [[theirs[key] / mine[key] for key in ("opened", "touched")] for theirs, mine in pairs]
        opened, touched = (statistics.median(column) for column in zip(*ratios, strict=True))
        print(f"{layout} takes {opened:.2f} times as long to open its layout, {touched:.2f} with every page read")


if __name__ == "__main__":
    main()
