"""Tasks of `miniclip eval` on data, for one model after another."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

from miniclip.cli.run_data import data_of_run
from miniclip.data import open_data
from miniclip.data.cache.reading import require_pixels
from miniclip.evaluation import CachedEncoder, LabelledImages, open_labelled, tasks
from miniclip.evaluation.comparison import Result
from miniclip.evaluation.probes.few_shot import SEEDS
from miniclip.evaluation.retrieval import LazyImages
from miniclip.evaluation.robustness import Figure, robustness
from miniclip.evaluation.templates import read_templates
from miniclip.utils.checks import whole_number
from miniclip.utils.option_names import option

logger = logging.getLogger(__name__)

PARTS = {"all": ("retrieval", "zero-shot", "probe", "few-shot")}
WITH_CORRUPTIONS = ("retrieval", "zero-shot", "probe")


class Group(NamedTuple):
    """Tasks on the same images.

    Attributes:
        about: name and size of the data.
        images: the images.
        measures: by task, a function of the outcome of the first model.
    """

    about: str
    images: Sequence[Any]
    measures: Mapping[str, Callable[..., tasks.Outcome]]


class Evaluation:
    """Tasks on data, and their results.

    Args:
        task: "retrieval", "zero-shot", "probe", "few-shot" or "all".
        checkpoint: the first model, whose run has the data if `data` is None.
        data: dataset spec, or None.
        split: split that is measured.
        templates: file of prompt templates, or None.
        corruptions: also measure corrupted images.
        shots: numbers of training images per class; None: the usual ones.
        seeds: draws of a few-shot probe; None: three.
        progress: show progress bars.
        label: name of the data in the names of the tasks, before that of the dataset.
        reading: treatment of unreadable images of `data`.

    Attributes:
        results: one per model, task and dataset.
        outcomes: by task, that of the first model.
        labelled: by task of zero-shot classification, its images.
    """

    def __init__(
        self,
        task: str,
        checkpoint: str,
        data: str | None,
        split: Any,
        templates: str | None,
        corruptions: bool,
        shots: list[int] | None,
        seeds: int | None,
        progress: bool = False,
        label: str = "",
        reading: Mapping[str, Any] | None = None,
    ) -> None:
        self.label = f"{label} " if label else ""
        self.parts = PARTS.get(task, (task,))
        if corruptions and not set(self.parts) & set(WITH_CORRUPTIONS):
            raise ValueError(f"--corruptions measures {', '.join(WITH_CORRUPTIONS)}, and not {task}; remove it")
        given = {
            "--templates": ("zero-shot", templates),
            "--shots": ("few-shot", shots),
            "--seeds": ("few-shot", seeds),
        }
        for flag, (part, value) in given.items():
            if value is not None and part not in self.parts:
                raise ValueError(f"{flag} is for {part}, and not for {task}; remove it")
        self.split, self.corruptions, self.progress = split, corruptions, progress
        self.shots = None if shots is None else [whole_number("--shots", count, 1) for count in shots]
        self.seeds = SEEDS if seeds is None else whole_number("--seeds", seeds, 1)
        self.templates = read_templates(templates) if templates else None
        spec, options = (data, dict(reading or {})) if data else data_of_run(checkpoint)
        self.spec = str(spec)
        needs_classes, needs_training = self.parts != ("retrieval",), bool({"probe", "few-shot"} & set(self.parts))
        self.captions = open_data(self.spec, split, **options) if "retrieval" in self.parts else None
        self.classes: dict[str, Any] = open_labelled(self.spec, split) if needs_classes else {}
        self.training: dict[str, Any] = open_labelled(self.spec, "train") if needs_training else {}
        self._check()
        self.results: list[Result] = []
        self.outcomes: dict[str, tasks.Outcome] = {}
        self.labelled: dict[str, Any] = {}

    def _check(self) -> None:
        """Check the classes before a model is loaded.

        Raises:
            ValueError: probes would be tested on their training images, or class names are not unique.
        """
        if self.training and (self.split == "all" or self.split.startswith("train")):
            raise ValueError(f"probes train on train and need another split; add {option('split', 'test')}")
        for name, data in self.classes.items():
            class_names = LabelledImages(data).class_names
            if "zero-shot" in self.parts and all(each.isdecimal() for each in class_names):
                logger.warning(
                    f"the classes of {name} are numbers ({', '.join(class_names[:3])}, …), and the prompts will hold "
                    "them; rename the classes if they stand for something else"
                )

    def add(self, name: str, model: Any, cache: str | None = None) -> None:
        """Measure a model on every task; `cache` is a folder for image features."""
        encoder = CachedEncoder(model, cache)
        for group in self._groups(model, encoder):
            figures: dict[str, Figure] = {}
            for part, measure in group.measures.items():
                task = f"{part}, {group.about}"
                outcome = measure(reference=self.outcomes.get(task), progress=self.progress)
                self.outcomes.setdefault(task, outcome)
                self.results.append(Result(name, task, outcome.metrics))
                figures |= outcome.figures
                if outcome.predictions is not None:
                    self.labelled[task] = group.images
            if self.corruptions and figures:
                for each in robustness(encoder, group.images, figures, progress=self.progress):
                    self.results.append(Result(name, f"{each.figure} under corruptions, {group.about}", [], each))

    def _groups(self, model: Any, encoder: Any) -> Iterator[Group]:
        """Yield the tasks on each dataset. The encoder encodes the images of a dataset once for all of them."""
        if self.captions is not None:
            require_pixels(self.captions, model)
            count = sum(map(len, self.captions.captions))
            about = f"{self.label}{self.spec} {self.split}, {len(self.captions):,} images, {count:,} captions"
            embedder = model if encoder.folder is None else encoder  # one task, and bit for bit the numbers of training
            measures = {"retrieval": partial(tasks.run_retrieval, embedder, self.captions)}
            yield Group(about, LazyImages(self.captions), measures)
        for name, data in self.classes.items():
            about = f"{self.label}{name}, {len(data):,} images, {len(data.class_names)} classes"
            measures = {
                "zero-shot": partial(tasks.run_zero_shot, encoder, data, self.templates),
                "probe": partial(tasks.run_probe, encoder, self.training.get(name), data),
                "few-shot": partial(tasks.run_few_shot, encoder, self.training.get(name), data, self.shots, self.seeds),
            }
            chosen = {part: measure for part, measure in measures.items() if part in self.parts}
            yield Group(about, LabelledImages(data), chosen)


def merged(evaluations: Sequence[Evaluation]) -> Evaluation:
    """Return the first evaluation with the results of all."""
    first, *others = evaluations
    for other in others:
        first.results += other.results
        first.outcomes |= other.outcomes
        first.labelled |= other.labelled
    return first
