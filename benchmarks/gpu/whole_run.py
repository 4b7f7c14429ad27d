"""`miniclip train` end to end: the reference system from a decoded cache and from JPEGs, with the wait for data.

The trainer runs as it does for a user, with compilation, metrics, evaluation and saving. The projection for Flickr30k
is 55 epochs of 31,014 images at the measured speed, 11 evaluations of 1,000 images, and 55 saves.
"""

import json
import random
import statistics
import tempfile
import time
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

from benchmarks.gpu.encoding import WORDS, write_images
from benchmarks.gpu.models import config
from benchmarks.gpu.table import GpuRow, Session
from miniclip import TrainConfig, Trainer
from miniclip.data import CachedDataset, Captions, build_cache
from miniclip.data.preprocess import Preprocess
from miniclip.hub import fresh
from miniclip.tokenizer import Tokenizer

FLICKR30K = {"epochs": 55, "images": 31_014, "evaluations": 11, "validation images": 1000}


def rows(session: Session) -> None:
    """Write the rows."""
    train, held_out, batch, epochs = (24, 8, 8, 2) if session.small else (6144, 1000, 512, 4)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        data = write_datasets(folder, [train, held_out])
        cached = []
        for number, part in enumerate(data):
            build_cache(part, folder / f"cache{number}", Preprocess(config(session, "bert_vit_b_16")))
            cached.append(CachedDataset(folder / f"cache{number}"))
        case = f"{train:,} images, batch {batch}, bf16, compiled"
        for source, pair, workers in (("a decoded cache", cached, None), ("JPEGs", data, 1 if session.small else 14)):
            settings: dict[str, Any] = {
                "batch_size": batch, "epochs": epochs, "eval_every": epochs, "num_workers": workers,
                "compile": session.device == "cuda", "precision": "bfloat16", "log_every": 4,
            }  # fmt: skip
            fill = partial(run, session, pair, settings, folder / f"run-{source.split()[-1]}")
            session.measure("miniclip train", f"from {source}, {case}", fill, 25)


def write_datasets(folder: Path, counts: list[int]) -> list[Any]:
    """Return datasets of images with five captions each, from files of JSON lines."""
    paths, rng, datasets = iter(write_images(folder, sum(counts))), random.Random(0), []
    for number, count in enumerate(counts):
        with (folder / f"{number}.jsonl").open("w", encoding="utf-8") as file:
            for path in islice(paths, count):
                captions = [" ".join(rng.choices(WORDS, k=max(4, round(rng.gauss(12, 4))))) for _ in range(5)]
                file.write(json.dumps({"image": path.name, "captions": captions}) + "\n")
        datasets.append(Captions.from_jsonl(folder / f"{number}.jsonl"))
    return datasets


def run(session: Session, data: Any, settings: dict[str, Any], folder: Path, row: GpuRow) -> None:
    """Train, and set the speed of each epoch but the first, which compiles."""
    tokenizer = Tokenizer.train([caption for group in data[0].captions for caption in group], 600)
    architecture = config(session, "bert_vit_b_16").replace_text(end_id=tokenizer.end_id)
    model = fresh(architecture, tokenizer)
    trainer = Trainer(model, *data, config=TrainConfig(**settings), run_dir=folder, device=session.device)
    seconds: dict[str, list[float]] = {"evaluate": [], "save": []}
    for name, times in seconds.items():
        setattr(trainer, name, timed(getattr(trainer, name), times))
    began = time.perf_counter()
    steps = trainer.fit().steps
    total = time.perf_counter() - began
    steady = [record for record in steps if record["epoch"] > 1]
    row.unit = "pairs/s"
    row.values["miniclip"] = [record["samples_per_second"] for record in steady]
    waits = {
        name: statistics.mean(record["data_wait"] for record in records)
        for name, records in (("first epoch", steps[: len(steps) // settings["epochs"]]), ("later", steady))
    }
    rate, evaluations = statistics.median(row.values["miniclip"]), seconds["evaluate"]
    save = statistics.median(seconds["save"])
    scale = FLICKR30K["validation images"] / len(data[1])
    projected = FLICKR30K["epochs"] * (FLICKR30K["images"] / rate + save)
    projected += FLICKR30K["evaluations"] * statistics.median(evaluations) * scale
    row.notes = [
        f"waiting for data {waits['first epoch']:.1%} of the first epoch, {waits['later']:.1%} of the later ones",
        f"an evaluation of {len(data[1])} images {statistics.median(evaluations):.1f} s, a save {save:.2f} s, this run "
        f"{total:.0f} s with compilation; 55 epochs of Flickr30k projected: {projected / 60:.1f} minutes",
    ]


def timed(function: Any, times: list[float]) -> Any:
    """Return a function that also keeps its seconds."""

    def call(*arguments: Any) -> Any:
        start = time.perf_counter()
        try:
            return function(*arguments)
        finally:
            times.append(time.perf_counter() - start)

    return call
