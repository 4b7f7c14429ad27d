"""Spikes and rise of the validation loss: a model that is large for its dataset, trained for 55 epochs.

python -m benchmarks.spikes [--data ../shared/data/emoji] [--images 512] [--out FOLDER]

After each epoch the script computes, from one pass over the validation data:

- the loss of one random batch with random captions, and the mean and the standard deviation over 50 such batches;
- the same mean at the logit scale that fits the validation data best. The difference is the cost of over-confidence;
- recall, the logit scale, and the mean loss of an average of the weights (EMA).

It repeats the run with label smoothing and with a lower maximum of the logit scale. `results.json`, a table and
`spikes.png` go to the folder.
"""

import argparse
import itertools
import json
import statistics
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

import miniclip
from benchmarks.harness import describe_machine
from benchmarks.report import machine_line
from miniclip.cli.trainers import fresh_model
from miniclip.data.subset import Subset
from miniclip.evaluation.retrieval import Embeddings, LazyImages, embed, recalls
from miniclip.runs.structure import evaluation_mode
from miniclip.train.callbacks import Callback
from miniclip.train.ema import EMA

EPOCHS, BATCH, DRAWS, VALIDATION_IMAGES = 55, 128, 50, 256
EMA_DECAY = 0.99
SCALES = torch.logspace(0, 2, 21)  # candidates for the scale that fits best
VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "label smoothing 0.1": {"label_smoothing": 0.1},
    "maximum scale 5": {"max_logit_scale": 5.0},
}
COLORS = {"plain": "#4c78a8", "label smoothing 0.1": "#54a24b", "maximum scale 5": "#e45756", "EMA": "#b279a2"}


def losses(embeddings: Embeddings, scales: Tensor, size: int, seed: int) -> Tensor:
    """Return the contrastive loss of random batches, each with another caption of its images: (draws, scales)."""
    generator = torch.Generator().manual_seed(seed)
    counts = torch.bincount(embeddings.image_indices)
    first = counts.cumsum(0) - counts
    rows = []
    for _ in range(DRAWS):
        images = torch.randperm(len(counts), generator=generator)[:size]
        captions = first[images] + (torch.rand(size, generator=generator) * counts[images]).long()
        cosines = embeddings.images[images] @ embeddings.texts[captions].T
        rows.append(torch.stack([symmetric_loss(scale * cosines) for scale in scales]))
    return torch.stack(rows)


def symmetric_loss(logits: Tensor) -> Tensor:
    """Return the contrastive loss of logits (B, B)."""
    target = torch.arange(len(logits))
    return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2


class Measure(Callback):
    """Measures the validation data after each epoch, for the weights and for their average."""

    def __init__(self) -> None:
        self.rows: list[dict[str, float]] = []
        self.ema: EMA | None = None

    def on_step(self, trainer: Any, record: Any) -> None:
        self.ema = self.ema or EMA(trainer.model, EMA_DECAY)
        self.ema.update(trainer.model, trainer.step)

    def on_evaluate(self, trainer: Any, record: Any) -> None:
        scale, size = float(trainer.model.log_scale.detach().exp()), min(BATCH, len(trainer.val_data))
        values = losses(trainer.embedded, torch.tensor([scale]), size, seed=record["epoch"])[:, 0]
        fitted = losses(trainer.embedded, SCALES, size, seed=record["epoch"]).mean(dim=0)
        assert self.ema is not None
        with self.ema.applied_to(trainer.model), evaluation_mode(trainer.model):
            average = embed(trainer.model, trainer.val_data.captions, LazyImages(trainer.val_data))
            ema_scale = trainer.model.log_scale.exp().detach().reshape(1)
        ema_values = losses(average, ema_scale, size, seed=record["epoch"])[:, 0]
        self.rows.append(
            {
                "one_batch": float(values[0]),
                "mean": float(values.mean()),
                "batch_sd": float(values.std()),
                "best_scale_mean": float(fitted.min()),
                "best_scale": float(SCALES[fitted.argmin()]),
                "scale": scale,
                "recall": mean_recall(trainer.embedded),
                "train_loss": trainer.history.steps[-1]["loss"],
                "ema_one_batch": float(ema_values[0]),
                "ema_mean": float(ema_values.mean()),
                "ema_recall": mean_recall(average),
            }
        )


def mean_recall(embeddings: Embeddings) -> float:
    """Return the mean R@1 of both directions, in percent."""
    return statistics.mean(values["R@1"] for values in recalls(embeddings, ks=(1,)).values())


def train(train_data: Any, val_data: Any, preset: str, epochs: int, changes: dict[str, Any]) -> list[dict[str, float]]:
    """Train one variant, and return a row for each epoch."""
    config = miniclip.TrainConfig(epochs=epochs, batch_size=BATCH, log_every=1, save_minutes=None, **changes)
    model, measure = fresh_model(preset, train_data.captions, config), Measure()
    with TemporaryDirectory() as folder:
        run_dir = Path(folder) / "run"
        miniclip.Trainer(model, train_data, val_data, config=config, run_dir=run_dir, callbacks=[measure]).fit()
    return measure.rows


def step_sd(values: Sequence[float]) -> float:
    """Return the standard deviation of the changes from epoch to epoch, the height of spikes."""
    return statistics.stdev(b - a for a, b in itertools.pairwise(values))


def summary(rows: list[dict[str, float]]) -> dict[str, float]:
    """Return the figures of a variant, over the second half of the run."""
    late, last = rows[len(rows) // 2 :], rows[-1]
    return {
        "spikes of one batch": step_sd([row["one_batch"] for row in late]),
        "spikes of the mean": step_sd([row["mean"] for row in late]),
        "spikes of the EMA's mean": step_sd([row["ema_mean"] for row in late]),
        "noise of a batch": statistics.mean(row["batch_sd"] for row in late),
        "least mean loss": min(row["mean"] for row in rows),
        "last mean loss": last["mean"],
        "last EMA loss": last["ema_mean"],
        "last loss at the best scale": last["best_scale_mean"],
        "last scale": last["scale"],
        "best scale": last["best_scale"],
        "R@1 at the least loss": min(rows, key=lambda row: row["mean"])["recall"],
        "last R@1": last["recall"],
        "last R@1 of the EMA": last["ema_recall"],
    }


def to_markdown(results: dict[str, list[dict[str, float]]]) -> str:
    """Return a table with a column for each variant."""
    columns = {name: summary(rows) for name, rows in results.items()}
    lines = ["| | " + " | ".join(columns) + " |", "|" + " --- |" * (len(columns) + 1)]
    for figure in next(iter(columns.values())):
        lines.append(f"| {figure} | " + " | ".join(f"{column[figure]:.3g}" for column in columns.values()) + " |")
    return "\n".join(lines) + "\n"


def plot(results: dict[str, list[dict[str, float]]], machine: dict[str, Any], path: Path) -> None:
    """Draw the noise, the over-confidence, the scale, and the remedies."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13, 7), dpi=100, layout="constrained")
    noise, confidence, scale, remedies = figure.subplots(2, 2).flat
    plain = results["plain"]
    epochs = range(1, len(plain) + 1)

    def series(name: str, rows: list[dict[str, float]] = plain) -> list[float]:
        return [row[name] for row in rows]

    noise.plot(epochs, series("one_batch"), color="gray", lw=0.8, label="one random batch")
    noise.plot(epochs, series("mean"), color=COLORS["plain"], lw=2, label="mean of 50 batches")
    low, high = ([m + sign * s for m, s in zip(series("mean"), series("batch_sd"), strict=True)] for sign in (-1, 1))
    noise.fill_between(epochs, low, high, color=COLORS["plain"], alpha=0.2, label="one standard deviation")
    confidence.plot(epochs, series("mean"), color=COLORS["plain"], lw=2, label="validation loss")
    confidence.plot(epochs, series("best_scale_mean"), color="black", ls="--", label="at the best scale")
    confidence.plot(epochs, series("train_loss"), color="gray", lw=0.8, label="training loss")
    recall = confidence.twinx()
    recall.plot(epochs, series("recall"), color="#f58518", label="R@1, right axis")
    recall.set_ylabel("mean R@1, %")
    recall.legend(loc="lower right", bbox_to_anchor=(1, 0.15), fontsize=8)
    for name, rows in results.items():
        scale.plot(epochs, series("scale", rows), color=COLORS[name], label=name)
        remedies.plot(epochs, series("mean", rows), color=COLORS[name], label=name)
    scale.plot(epochs, series("best_scale"), color="black", ls="--", label="best for the validation data (plain)")
    remedies.plot(epochs, series("ema_mean"), color=COLORS["EMA"], label="plain, average of the weights")
    titles = {noise: "validation loss, plain", confidence: "over-confidence, plain", scale: "logit scale"}
    for axes, title in {**titles, remedies: "mean validation loss"}.items():
        axes.set_title(title)
        axes.set_xlabel("epoch")
        axes.legend(loc="best", fontsize=8)
    figure.suptitle(machine_line(machine), size=7)
    figure.savefig(path)


def every(data: Any, count: int) -> Subset:
    """Return images at equal distances."""
    return Subset(data, [round(index) for index in torch.linspace(0, len(data) - 1, count).tolist()])


def read(path: Path, run: dict[str, Any]) -> dict[str, list[dict[str, float]]]:
    """Return the variants that an earlier command finished with the same data, preset, machine and versions."""
    written = json.loads(path.read_text()) if path.exists() else {"run": None}
    variants: dict[str, list[dict[str, float]]] = written["variants"] if written["run"] == run else {}
    return variants


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data/emoji"), help="else Shapes is used")
    parser.add_argument("--images", type=int, default=512, help="training images")
    parser.add_argument("--preset", default="bert_vit_tiny")
    parser.add_argument("--epochs", type=int, default=EPOCHS, help="at least 6")
    parser.add_argument("--out", type=Path, default=Path("spikes"))
    options = parser.parse_args()
    if options.data.is_dir():
        train_data, val_data = (miniclip.data.Flickr30k(options.data, split) for split in ("train", "val"))
        train_data = every(train_data, options.images)
        val_data = every(val_data, VALIDATION_IMAGES)
    else:
        print(f"{options.data} does not exist: the run takes Shapes")
        train_data, val_data = (
            miniclip.data.Shapes("train", options.images),
            miniclip.data.Shapes("val", VALIDATION_IMAGES),
        )
    options.out.mkdir(parents=True, exist_ok=True)
    machine = describe_machine()
    run = {"machine": {**machine, "load": None}, "images": len(train_data), "preset": options.preset}
    results = read(options.out / "results.json", run)
    for name, changes in VARIANTS.items():
        if len(results.get(name, ())) == options.epochs:
            continue
        results[name] = train(train_data, val_data, options.preset, options.epochs, changes)
        (options.out / "results.json").write_text(json.dumps({"run": run, "variants": results}, indent=1) + "\n")
        (options.out / "results.md").write_text(to_markdown(results))
        plot(results, machine, options.out / "spikes.png")
        print(f"{name} is done", flush=True)
    print(to_markdown(results))


if __name__ == "__main__":
    main()
