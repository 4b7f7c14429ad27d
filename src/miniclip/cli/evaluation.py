"""The work of `miniclip eval`: tasks on data, for one model after another; then tables, files and figures."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterator
from functools import partial
from io import StringIO
from pathlib import Path
from typing import Any

import torch

from miniclip.cli.run_data import data_of_run
from miniclip.data import open_data
from miniclip.data.cache.reading import require_pixels
from miniclip.evaluation import tasks
from miniclip.evaluation.comparison import Result, as_records, table
from miniclip.evaluation.labelled import LabelledImages
from miniclip.evaluation.templates import read_templates
from miniclip.evaluation.zero_shot import Predictions, confusion
from miniclip.utils.atomic import write_atomically

MAX_MISTAKES = 24  # images of the sheet of mistakes


class Evaluation:
    """Tasks on data.

    Args:
        task: "retrieval", "zero-shot", "probe" or "all".
        checkpoint: the first model, whose run has the data if `data` is None.
        data: dataset spec, or None.
        split: split that is measured.
        templates: file of prompt templates, or None.
        corruptions: also measure corrupted images.
    """

    def __init__(
        self, task: str, checkpoint: str, data: str | None, split: Any, templates: str | None, corruptions: bool
    ) -> None:
        spec, options = (data, {}) if data else data_of_run(checkpoint)
        self.spec, self.split, self.corruptions = str(spec), split, corruptions
        self.templates = read_templates(templates) if templates else None
        self.captions = self.labelled = self.training = None
        if task in ("retrieval", "all"):
            self.captions = open_data(self.spec, split, **options)
        if task != "retrieval":
            self.labelled = tasks.open_labelled(self.spec, split)
        if task in ("probe", "all"):
            self.training = tasks.open_labelled(self.spec, "train")
        self.zero_shot = task in ("zero-shot", "all")
        self.results: list[Result] = []
        self.first: dict[str, tasks.Outcome] = {}
        self.predictions: dict[str, Predictions] = {}  # those of the first model

    def add(self, name: str, model: Any) -> None:
        """Measure a model on every task."""
        for task, measure in self._tasks(model):
            outcome = measure(reference=self.first.get(task))
            self.first.setdefault(task, outcome)
            self.results.append(Result(name, task, outcome.metrics))
            if outcome.predictions is not None:
                self.predictions.setdefault(task, outcome.predictions)

    def _tasks(self, model: Any) -> Iterator[tuple[str, Callable[..., tasks.Outcome]]]:
        """Yield each task's name and the function that measures it, which takes the outcome of the first model."""
        if self.captions is not None:
            require_pixels(self.captions, model)
            count = sum(map(len, self.captions.captions))
            about = f"{self.spec} {self.split}, {len(self.captions):,} images, {count:,} captions"
            yield f"retrieval, {about}", partial(tasks.run_retrieval, model, self.captions)
        for classes, data in (self.labelled or {}).items():
            about = f"{classes}, {len(data):,} images, {len(data.class_names)} classes"
            if self.zero_shot:
                yield f"zero-shot, {about}", partial(tasks.run_zero_shot, model, data, self.templates)
            if self.training is not None:
                yield f"probe, {about}", partial(tasks.run_probe, model, self.training[classes], data)
            if self.corruptions:
                yield f"corruptions, {about}", partial(tasks.run_corruptions, model, data, self.templates)

    def text(self) -> str:
        """Return the tables."""
        return table(self.results)

    def write(self, json_file: str | None, csv_file: str | None, folder: str | None) -> list[Path]:
        """Write the requested files; return their paths."""
        records, written = as_records(self.results), []
        if json_file:
            written.append(_write_text(Path(json_file), json.dumps(records, indent=2, ensure_ascii=False) + "\n"))
        if csv_file:
            rows = StringIO(newline="")
            writer = csv.DictWriter(rows, list(records[0]))
            writer.writeheader()
            writer.writerows(records)
            written.append(_write_text(Path(csv_file), rows.getvalue()))
        return written + (list(self._figures(Path(folder))) if folder else [])

    def _figures(self, folder: Path) -> Iterator[Path]:
        from miniclip.plots.evaluation import plot_bars, plot_confusion, plot_reliability

        folder.mkdir(parents=True, exist_ok=True)
        for task in dict.fromkeys(result.task for result in self.results):
            stem = "-".join(task.split(",")[:2]).replace(" ", "").replace("/", "-")
            results = [result for result in self.results if result.task == task]
            if any(metric.low is not None for metric in results[0].metrics):
                plot_bars(results, path := folder / f"{stem}-bars.png")
                yield path
            if task in self.predictions:
                predicted = self.predictions[task]
                plot_confusion(
                    confusion(predicted), predicted.class_names, path := folder / f"{stem}-confusion.png", task
                )
                yield path
                plot_reliability(
                    predicted.confidence, predicted.correct, path := folder / f"{stem}-reliability.png", task
                )
                yield path
                classes = task.split(", ")[1]
                yield from write_mistakes((self.labelled or {})[classes], predicted, folder / f"{stem}-mistakes.png")


class Mistakes:
    """Wrongly classified images as a dataset: each with its class and its prediction in place of a caption."""

    def __init__(self, data: Any, predictions: Predictions, rows: list[int]) -> None:
        self.data, self.rows = data, rows
        names = predictions.class_names
        self.captions = [
            [
                f"{names[predictions.predicted[row]]} {float(predictions.confidence[row]):.0%}, "
                f"is {names[predictions.labels[row]]}"
            ]
            for row in rows
        ]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> tuple[Any, list[str]]:
        """Return an image and its description."""
        from miniclip.data.image_types import as_image

        return as_image(LabelledImages(self.data)[self.rows[index]]), self.captions[index]


def write_mistakes(data: Any, predictions: Predictions, path: Path) -> Iterator[Path]:
    """Write a sheet of the wrong predictions with the highest confidence, if there are any."""
    from miniclip.data.tools.contact_sheet import contact_sheet

    confidence = torch.where(predictions.correct, -1.0, predictions.confidence.double())
    rows = confidence.argsort(descending=True, stable=True)[: min(MAX_MISTAKES, int((~predictions.correct).sum()))]
    if len(rows):
        contact_sheet(Mistakes(data, predictions, rows.tolist()), path, count=len(rows))
        yield path


def _write_text(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))
    return path
