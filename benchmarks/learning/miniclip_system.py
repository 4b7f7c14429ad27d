"""miniclip as a user trains it: the library's trainer and a recipe, without its files and its progress bar."""

import copy
import itertools
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import miniclip
from benchmarks.learning.systems import Start
from miniclip.cli.trainers import fresh_model
from miniclip.runs.structure import evaluation_mode

WARM_UP_STEPS = 3
NEVER = 10**6  # epochs: the budget ends a run


class MiniclipSystem:
    """Steps of `miniclip.Trainer`.

    Its schedule is a function of the step and of the number of all steps. Here the latter is estimated before each
    step from the consumed part of the budget, so that the learning rate falls to 0 at the end of the budget.
    """

    def __init__(self, start: Start) -> None:
        settings = dict(start.settings)
        preset, changes = settings.pop("preset"), settings.pop("architecture", {})
        config = miniclip.TrainConfig.from_dict({**settings, "seed": start.seed, "epochs": NEVER})
        model = fresh_model(preset, start.train.captions, config, changes)
        self._folder = tempfile.TemporaryDirectory()
        run_dir = Path(self._folder.name) / "run"
        self.trainer: Any = miniclip.Trainer(
            model, start.train, config=config, run_dir=run_dir, callbacks=[], device=start.device
        )
        self.trainer.modes.enter()
        self.batch_size = self.trainer.loader.batch_size
        parameters = sum(parameter.numel() for parameter in model.parameters())
        self.facts = {"precision": self.trainer.config.precision, "parameters": parameters}

    def batches(self) -> Iterator[Any]:
        progress = self.trainer.progress
        while True:
            yield from self.trainer.loader.epoch(self.trainer.epoch)
            progress.epoch, progress.epoch_start = self.trainer.epoch + 1, self.trainer.step

    def step(self, batch: Any, progress: float) -> None:
        trainer = self.trainer
        self._expect(max(trainer.step + 1, round(trainer.step / progress) if progress else NEVER))
        trainer.train_step(batch)
        if trainer.step % trainer.config.log_every == 0:
            for _ in trainer.metrics.read(trainer.progress, with_batch=False):
                pass  # they are in the history

    def _expect(self, total_steps: int) -> None:
        """Set the number of all steps, for the learning rate and for settings that change within a run."""
        self.trainer.total_steps = self.trainer.prepare.total_steps = total_steps

    def warm_up(self) -> None:
        trainer = self.trainer
        weights, state = copy.deepcopy(trainer.model.state_dict()), copy.deepcopy(trainer.optimizer.state_dict())
        average = copy.deepcopy(trainer.ema.values) if trainer.ema else None
        self._expect(NEVER)
        for batch in itertools.islice(trainer.loader.epoch(0), WARM_UP_STEPS):
            trainer.train_step(batch)
        list(trainer.metrics.read(trainer.progress, with_batch=False))
        trainer.model.load_state_dict(weights)
        trainer.optimizer.load_state_dict(state)
        trainer.progress.step = 0
        if average is not None:
            trainer.ema.values = average

    @contextmanager
    def encoder(self) -> Iterator[Any]:
        model, ema = self.trainer.model, self.trainer.ema
        with ema.applied_to(model) if ema else nullcontext(), evaluation_mode(model):
            yield model
