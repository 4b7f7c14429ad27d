"""Speed of building an index of JPEG files, against `encode_image` on the same files and against rclip.

python -m benchmarks.indexing [--images 512] [--rounds 5] [--size 500x375] [--rclip PYTHON] [--small] [--json FILE]

The model is rclip's: a ViT-B/32 of 256 px, here with random weights. `encode_image` reads and encodes the same files,
and keeps nothing on disk. rclip runs its own code in an environment of its own, since it needs other versions of
numpy and Pillow: `python -m venv rclip && rclip/bin/pip install rclip`. Its network is that of miniclip's
model, exported to ONNX for it, with rclip's default batch of 8 and with the batch of the others.

Each run starts without an index. The files are in the page cache. Loading of the model is not counted, and rounds are
interleaved. Before the timing, the embeddings must agree; rclip rounds the sides of resized images differently.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.baselines import with_layers
from benchmarks.data import make_images
from benchmarks.harness import describe_machine
from miniclip import Index
from miniclip.config import preset
from miniclip.hub import fresh

SIDE = 256  # pixels, rclip's
BATCH = 64
MIN_COSINE = 0.99
RCLIP = """
import json, sqlite3, sys, time
from pathlib import Path
from rclip import db, main, model, model_download
network, folder, database, batch = sys.argv[1:]
model_download.download_visual_query_model = lambda *_, **__: network
store = db.DB(database)
app = main.RClip(model_instance=model.Model(), database=store, indexing_batch_size=int(batch), exclude_dirs=None)
app._model._session_visual
start = time.perf_counter()
app.ensure_index(folder)
seconds = time.perf_counter() - start
rows = sqlite3.connect(database).execute("SELECT filepath, vector FROM images").fetchall()
vectors = {Path(path).name: vector.hex() for path, vector in rows}
json.dump({"seconds": seconds, "vectors": vectors}, open(database + ".json", "w"))
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--size", default="500x375", help="width and height of the images, in pixels")
    parser.add_argument("--rclip", type=Path, metavar="PYTHON", help="interpreter of an environment with rclip")
    parser.add_argument("--small", action="store_true", help="a check that everything works; its numbers mean nothing")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    if options.small:
        options.images, options.rounds = 24, 1
    width, height = map(int, options.size.split("x"))
    config = preset("vit_b_32").replace_image(image_size=SIDE)
    torch.manual_seed(0)
    model = fresh(with_layers(config, 1) if options.small else config).eval()
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        (root / "photos").mkdir()
        make_images(root / "photos", options.images, (width, height))
        runs = {"miniclip, Index.build": building(model, root), "miniclip, encode_image": encoding(model, root)}
        if options.rclip:
            network = write_network(model, root)
            for batch in (8, BATCH):
                runs[f"rclip, batch {batch}"] = rclip(options.rclip, network, root, batch)
        values = measure(runs, options.rounds, options.images)
    report(values, options, f"{options.images} JPEGs of {options.size}")


Run = Callable[[], tuple[float, dict[str, Any]]]


def building(model: Any, root: Path) -> Run:
    """Return a run that builds an index: its seconds, and the vectors by file name."""

    def run() -> tuple[float, dict[str, Any]]:
        path = root / "photos.index"
        shutil.rmtree(path, ignore_errors=True)
        start = time.perf_counter()
        index = Index.build(model, root / "photos", path, batch_size=BATCH)
        seconds = time.perf_counter() - start
        names = [Path(path).name for path in index.paths]
        return seconds, dict(zip(names, np.array(index.embeddings, np.float32), strict=True))

    return run


def encoding(model: Any, root: Path) -> Run:
    """Return a run that encodes the files."""

    def run() -> tuple[float, dict[str, Any]]:
        start = time.perf_counter()
        paths = sorted((root / "photos").iterdir())
        vectors = model.encode_image(paths, batch_size=BATCH).cpu().numpy()
        return time.perf_counter() - start, dict(zip([path.name for path in paths], vectors, strict=True))

    return run


def write_network(model: Any, root: Path) -> Path:
    """Write the image tower for onnxruntime."""
    from miniclip.deployment.onnx_files import save, trace
    from miniclip.deployment.towers import image_embedder, sample_pixels

    example = {"input": sample_pixels(model.config, 2)}
    network = trace(image_embedder(model, normalize=False), example, ["output"], {"input": {0: "batch"}})
    save(network, root / "network.onnx")
    return root / "network.onnx"


def rclip(python: Path, network: Path, root: Path, batch: int) -> Run:
    """Return a run of rclip's own code."""

    def run() -> tuple[float, dict[str, Any]]:
        database = root / "rclip.sqlite3"
        for file in root.glob("rclip.sqlite3*"):
            file.unlink()
        command = [str(python), "-c", RCLIP, str(network), str(root / "photos"), str(database), str(batch)]
        plain = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        subprocess.run(command, check=True, capture_output=True, env=plain)
        result = json.loads(Path(f"{database}.json").read_text())
        vectors = {name: np.frombuffer(bytes.fromhex(vector), np.float32) for name, vector in result["vectors"].items()}
        return result["seconds"], vectors

    return run


def measure(runs: dict[str, Run], rounds: int, count: int) -> dict[str, list[float]]:
    """Compare the vectors of a first run of each, then return the images a second of interleaved rounds."""
    expected = runs["miniclip, encode_image"]()[1]
    for name, run in runs.items():
        vectors = run()[1]
        worst = min(float(vectors[file] @ expected[file]) for file in expected)
        print(f"{name}: {len(vectors)} vectors, the smallest cosine with those of encode_image is {worst:.5f}")
        if len(vectors) != count or worst < MIN_COSINE:
            raise SystemExit(f"{name}: found {len(vectors)} vectors, expected {count} that agree")
    values: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds):
        for name, run in runs.items():
            values[name].append(count / run()[0])
    return values


def report(values: dict[str, list[float]], options: Any, case: str) -> None:
    """Print the medians, and the speed of the index in relation to each."""
    own = values["miniclip, Index.build"]
    print(f"\n{case}, ViT-B/32 of {SIDE} px, images/s, medians of {options.rounds} rounds")
    for name, rates in values.items():
        ratio = statistics.median(mine / other for mine, other in zip(own, rates, strict=True))
        print(f"{name:28}{statistics.median(rates):9.1f}   Index.build has {ratio:.2f} times its speed")
    if options.json:
        options.json.write_text(json.dumps({"case": case, "values": values, "machine": describe_machine()}, indent=2))


if __name__ == "__main__":
    main()
