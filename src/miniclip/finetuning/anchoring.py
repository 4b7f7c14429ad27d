"""Terms of a run's loss beside the contrastive one: their embeddings, starting weights and place in the run directory.

The teacher and the starting model embed each training image once, without augmentation; the student gets the augmented
one. The terms use the embeddings of the whole batch, so that gradient caching and several ranks compute the same step.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from miniclip.checkpoints.formats.safetensors import read_tensors, write_tensors
from miniclip.checkpoints.native import read_json, write_json
from miniclip.data.dataset import ImageCaptionDataset
from miniclip.data.loader import Batch, ImageCaptionLoader
from miniclip.errors import CheckpointError, DataError
from miniclip.finetuning.cached_tower import embedding_folder
from miniclip.finetuning.embedding_table import EmbeddingTable, Side
from miniclip.finetuning.lora import is_lora
from miniclip.finetuning.objectives import cosine_distance, distillation, relative_distance
from miniclip.hub import load
from miniclip.inference.fingerprint import model_fingerprint
from miniclip.inference.model import CLIPModel
from miniclip.models.clip import CLIPOutput
from miniclip.runs.progress import Progress
from miniclip.runs.structure import is_frozen
from miniclip.runtime import distributed
from miniclip.runtime.devices import send
from miniclip.train.config import TrainConfig
from miniclip.train.step import LossFunction
from miniclip.train.step_arguments import TrainingLoss
from miniclip.utils.option_names import option

FORMAT = "miniclip start 1"
SIDES: tuple[Side, Side] = ("image", "text")
START, TEACHER = "start.safetensors", "teacher.json"  # in the run directory


class RunPlace(NamedTuple):
    """Directory, position and data of a run.

    Attributes:
        folder: the run directory.
        progress: its position.
        is_resumed: whether it continues a state.
        data: the training data.
    """

    folder: Path
    progress: Progress
    is_resumed: bool
    data: ImageCaptionDataset


def require_objectives(model: CLIPModel, config: TrainConfig) -> None:
    """Check that the objectives of the settings can be computed.

    Raises:
        ValueError: a teacher without a weight or a weight without a teacher; weights that cannot be anchored.
    """
    if (config.teacher is None) != (config.distillation == 0):
        given, missing = ("teacher", "distillation") if config.teacher else ("distillation", "teacher")
        raise ValueError(
            f"{option(given)} is {getattr(config, given)}, and {missing} is not given; expected both or none: add "
            f"{option(missing, 1.0 if missing == 'distillation' else 'vit_b_32')}, or leave {given} out"
        )
    for name in ("anchor_weights", "anchor_embeddings"):
        if getattr(config, name) and config.fsdp:
            raise ValueError(f"{name} does not work with fsdp, which shards the weights: leave one of the two out")
    if config.anchor_embeddings and is_frozen(model.image) and is_frozen(model.text):
        raise ValueError("anchor_embeddings: both towers are frozen, so that no embedding can move: leave it out")
    if config.anchor_embeddings and config.swap_left_right:
        raise ValueError(
            "anchor_embeddings with swap_left_right: a caption with left and right exchanged would stay near the same "
            "caption without; leave one of the two out"
        )
    lora = [name for name, parameter in model.named_parameters() if parameter.requires_grad and is_lora(name)]
    if config.anchor_weights and lora:
        raise ValueError(
            f"anchor_weights: {lora[0]} is an adapter, whose weights start at 0 or at random; the rank bounds its "
            "effect already: leave anchor_weights out, or tune the towers by full or last-N"
        )


class Targets(NamedTuple):
    """Embeddings of another model for the training data; a side without a table has None.

    Attributes:
        images: those of the images.
        texts: those of the captions.
    """

    images: EmbeddingTable | None
    texts: EmbeddingTable | None

    def of(self, batch: Batch, caption_rows: Tensor, device: torch.device) -> tuple[Any, Any]:
        """Return the embeddings of the images and of the captions of all ranks: (B, E) and (B * C, E).

        Raises:
            DataError: the other model could not read an image of the batch.
        """
        sides = list[Any]()
        for table, indices in zip(self, (batch.indices, caption_rows), strict=True):
            rows = None if table is None else table.rows[indices]
            if rows is not None and not rows.isfinite().all():
                raise DataError("an image could not be read when its embedding was computed, and now it can: resume")
            sides.append(None if rows is None else distributed.all_gather(send(rows, device)))
        return sides[0], sides[1]


class BatchLoss:
    """Loss of a run as a function of the batch: the training loss, and the terms of the settings.

    Args:
        model: the model in training, on its device, not sharded.
        config: the settings.
        loader: of the training data.
        loss: the training loss.
        place: of the run. Nothing is written there before the first batch.

    Raises:
        CheckpointError: the starting weights of a resumed run are missing or damaged.
        ValueError: the teacher of a resumed run has other weights.
    """

    def __init__(
        self,
        model: CLIPModel,
        config: TrainConfig,
        loader: ImageCaptionLoader,
        loss: TrainingLoss,
        place: RunPlace,
    ) -> None:
        require_objectives(model, config)
        self.model, self.config, self.loss, self.place = model, config, loss, place
        self._caption_rows = loader.captions.rows
        self._folder, self._options = embedding_folder(config, place.folder), loader.options
        self._teacher: tuple[Targets, Tensor] | None = None  # with the factor on its cosines
        self._teacher_facts: dict[str, str] = {}
        self._anchor: Targets | None = None
        self._start: CLIPModel | None = None
        self._weights: tuple[Sequence[Tensor], Sequence[Tensor]] | None = None  # trained ones, and where they started
        if config.teacher is not None:
            self._add_teacher(config.teacher)
        if config.anchor_weights or config.anchor_embeddings:
            self._add_anchors(starting_model(model, place))

    def _add_teacher(self, name: str) -> None:
        teacher = load_teacher(name, self.model.device)
        self._teacher_facts = {"teacher": name, "fingerprint": model_fingerprint(teacher)}
        if self.place.is_resumed:
            require_same_teacher(self.place, self._teacher_facts)
        self._teacher = self._targets(teacher, (True, True)), teacher.log_scale.detach().exp()

    def _add_anchors(self, start: CLIPModel) -> None:
        self._start = start
        if self.config.anchor_weights:
            starts = dict(start.named_parameters())
            trained = {name: weight for name, weight in self.model.named_parameters() if weight.requires_grad}
            self._weights = list(trained.values()), [starts[name].detach() for name in trained]
        if self.config.anchor_embeddings:
            self._anchor = self._targets(start, (not is_frozen(self.model.image), not is_frozen(self.model.text)))

    def _targets(self, model: CLIPModel, sides: tuple[bool, bool]) -> Targets:
        tables = (EmbeddingTable(self._folder, side, model, self.place.data, self._options) for side in SIDES)
        return Targets(*(table if wanted else None for table, wanted in zip(tables, sides, strict=True)))

    def __call__(self, batch: Batch) -> LossFunction:
        """Return the loss of a batch as a function of the model's output. All ranks must call it together."""
        if self._teacher is None and self._anchor is None and self._weights is None:
            return self.loss.for_batch(batch)
        self._write()
        rows = self._caption_rows.draw(batch.indices, batch.passes)
        device, config = self.model.device, self.config
        loss_of_batch = self.loss.for_batch(batch)
        teacher = None if self._teacher is None else (*self._teacher[0].of(batch, rows, device), self._teacher[1])
        anchor = None if self._anchor is None else self._anchor.of(batch, rows, device)

        def loss(output: CLIPOutput) -> Tensor:
            value = loss_of_batch(output)
            sides = distributed.all_gather(output.image_embeddings), distributed.all_gather(output.text_embeddings)
            if teacher is not None:
                value = value + config.distillation * distillation((*sides, output.logit_scale), teacher)
            if anchor is not None:
                distances = [cosine_distance(*pair) for pair in zip(sides, anchor, strict=True) if pair[1] is not None]
                value = value + config.anchor_embeddings * torch.stack(distances).mean()
            if self._weights is not None:
                value = value + config.anchor_weights * relative_distance(*self._weights)
            return value

        return loss

    def _write(self) -> None:
        """Write what a resumed run needs, once; the directory is locked now, and no step has been taken."""
        start, self._start = self._start, None
        if start is not None and not (self.place.is_resumed and self.place.progress.step):
            tensors = {name: tensor.detach().cpu() for name, tensor in start.state_dict().items()}
            distributed.on_main(lambda: write_tensors(self.place.folder / START, tensors, {"format": FORMAT}))
        facts, self._teacher_facts = self._teacher_facts, {}
        if facts:
            distributed.on_main(lambda: write_json(self.place.folder / TEACHER, facts))


def load_teacher(name: str, device: torch.device) -> CLIPModel:
    """Load a teacher.

    Raises:
        ValueError: it has no tokenizer.
    """
    teacher = load(name, device=device)
    if teacher.tokenizer is None:
        raise ValueError(f"the teacher {name} has no tokenizer, which its captions need: save it with one first")
    return teacher


def require_same_teacher(place: RunPlace, facts: Mapping[str, str]) -> None:
    """Check that the teacher of a resumed run has the weights that it had.

    Raises:
        ValueError: it has others.
    """
    path = place.folder / TEACHER
    if not path.exists():
        return
    before = read_json(path)
    if before.get("fingerprint") != facts["fingerprint"]:
        raise ValueError(
            f"{path}: the run was started with the teacher {before.get('teacher')}, whose weights or tokenizer are not "
            f"those of {facts['teacher']} now: restore that checkpoint, or start a new run"
        )


def starting_model(model: CLIPModel, place: RunPlace) -> CLIPModel:
    """Return a copy of the model with the weights that the run started from.

    Raises:
        CheckpointError: the file of a resumed run is missing or damaged.
    """
    start, path = copy.deepcopy(model).requires_grad_(False), place.folder / START
    if place.is_resumed and place.progress.step:
        if not path.exists():
            raise CheckpointError(
                f"{path}: not found; the run was started without anchor_weights and anchor_embeddings, or the file was "
                "removed: use a copy of it, or start a new run from last/"
            )
        tensors, metadata = read_tensors(path)
        if metadata.get("format") != FORMAT or tensors.keys() != start.state_dict().keys():
            raise CheckpointError(f"{path}: not the starting weights of this run: use a copy of them")
        start.load_state_dict(tensors)
    return start
