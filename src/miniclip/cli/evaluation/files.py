"""Files of `miniclip eval`: JSON, CSV and figures."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Iterator
from io import StringIO
from pathlib import Path
from typing import NamedTuple

from miniclip.cli.evaluation.measuring import Evaluation
from miniclip.cli.evaluation.mistakes import write_mistakes
from miniclip.evaluation.comparison import as_records
from miniclip.evaluation.zero_shot import confusion
from miniclip.utils.atomic import write_atomically
from miniclip.utils.outputs import require_output_file, require_output_folder

MAX_STEM = 100  # characters of a figure's name before its kind


class Targets(NamedTuple):
    """Paths to write, each None if it is not requested."""

    json: str | None
    csv: str | None
    figures: str | None
    cache: str | None

    def require(self) -> None:
        """Check all paths before the work.

        Raises:
            OSError: a path cannot be written.
            ValueError: two files are the same.
        """
        if self.json:
            require_output_file(self.json, "--json")
        if self.csv:
            require_output_file(self.csv, "--csv")
        if self.json and self.csv and Path(self.json).resolve() == Path(self.csv).resolve():
            raise ValueError(f"--json and --csv are the same file, {self.json}; choose two names")
        if self.figures:
            require_output_folder(self.figures, "--out")
        if self.cache:
            require_output_folder(self.cache, "--cache")

    def write(self, evaluation: Evaluation) -> Iterator[Path]:
        """Write the requested files; yield their paths."""
        records = as_records(evaluation.results)
        if self.json:
            yield _write_text(Path(self.json), json.dumps(records, indent=2, ensure_ascii=False) + "\n")
        if self.csv:
            rows = StringIO(newline="")
            writer = csv.DictWriter(rows, list(records[0]))
            writer.writeheader()
            writer.writerows(record | {"seeds": " ".join(map(str, record["seeds"] or ()))} for record in records)
            yield _write_text(Path(self.csv), rows.getvalue())
        if self.figures:
            yield from write_figures(evaluation, Path(self.figures))


def write_figures(evaluation: Evaluation, folder: Path) -> Iterator[Path]:
    """Draw the figures of every task into a folder; yield their paths."""
    from miniclip.plots.evaluation import plot_bars, plot_confusion, plot_reliability
    from miniclip.plots.probes import plot_few_shot
    from miniclip.plots.robustness import plot_robustness

    folder.mkdir(parents=True, exist_ok=True)
    for task in dict.fromkeys(result.task for result in evaluation.results):
        path = folder / re.sub(r"[^\w.-]+", "-", ",".join(task.split(",")[:2])).strip("-")[:MAX_STEM]
        results = [result for result in evaluation.results if result.task == task]
        if results[0].robustness is not None:
            plot_robustness(results, file := _kind(path, "severities"))
        elif task.startswith("few-shot"):
            others = [each for each in evaluation.results if each.task == task.replace("few-shot", "zero-shot", 1)]
            plot_few_shot(results, file := _kind(path, "curve"), zero_shot=others)
        else:
            plot_bars(results, file := _kind(path, "bars"))
        yield file
        predicted = evaluation.outcomes[task].predictions if task in evaluation.outcomes else None
        if predicted is not None:
            plot_confusion(confusion(predicted), predicted.class_names, file := _kind(path, "confusion"), task)
            yield file
            plot_reliability(predicted.confidence, predicted.correct, file := _kind(path, "reliability"), task)
            yield file
            yield from write_mistakes(evaluation.labelled[task], predicted, _kind(path, "mistakes"))


def _kind(path: Path, kind: str) -> Path:
    return path.with_name(f"{path.name}-{kind}.png")


def _write_text(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))
    return path
