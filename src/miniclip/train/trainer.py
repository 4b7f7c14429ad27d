"""The training loop: a model, data and settings in; a run directory with the best and the last model out.

Each rank holds the model (with FSDP, a part) and trains on its rows of a batch. Only rank 0 writes and has callbacks.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, nullcontext
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from miniclip.data.dataset import ImageCaptionDataset
from miniclip.data.loader import Batch
from miniclip.data.sources.workers import worker_deaths_explained
from miniclip.diagnostics.check import check
from miniclip.diagnostics.findings import CheckReport
from miniclip.evaluation.retrieval import Embeddings
from miniclip.inference.model import CLIPModel
from miniclip.runs.directory import start_run
from miniclip.runs.history import History
from miniclip.runs.interrupt import GracefulStop
from miniclip.runs.resume import ResumedRun, ResumeOptions, load_run
from miniclip.runs.structure import TrainingModes, evaluation_mode
from miniclip.runtime import distributed
from miniclip.runtime.compilation import force_eager
from miniclip.runtime.fsdp import unsharded
from miniclip.train.callbacks import Callback, call, callback_states
from miniclip.train.config import TrainConfig
from miniclip.train.gradient_caching import cached_step
from miniclip.train.optimizer import set_learning_rate
from miniclip.train.schedule import learning_rate
from miniclip.train.setup import RunOptions, set_up
from miniclip.train.validation import evaluate_first, monitored, validate
from miniclip.train.variants.resolution import images_of_step
from miniclip.utils.lock import lock_directory
from miniclip.utils.randomness import seed_layers


class Trainer:
    """Trains a CLIP.

    Args:
        model: a model with a tokenizer; it is trained in place.
        train_data: images with captions; `miniclip.data.Replay` joins old ones to them, against forgetting.
        val_data: held-out images with captions; None: no evaluation, and no `best/`.
        config: the settings.
        run_dir: the run directory, which must not hold a run; None: the first free one of `runs/clip`, `runs/clip-2`, …
        callbacks: replaces the default ones (metrics file, plots, progress bar, doctor).
        device: None: the GPU if there is one; each of several ranks takes its own.
        about: facts to keep in the run's `config.json`, JSON values.
        resumed: set by `Trainer.resume`.

    Raises:
        ValueError: the model has no tokenizer, the data are empty, or settings do not fit.
        FileExistsError: the run directory holds a run.
        DataError: an image cannot be read.
    """

    def __init__(
        self,
        model: CLIPModel,
        train_data: ImageCaptionDataset,
        val_data: ImageCaptionDataset | None = None,
        *,
        config: TrainConfig | None = None,
        run_dir: str | Path | None = None,
        callbacks: Sequence[Callback] | None = None,
        device: str | torch.device | None = None,
        about: Mapping[str, Any] | None = None,
        resumed: ResumedRun | None = None,
    ) -> None:
        run = set_up(model, train_data, val_data, RunOptions(config, run_dir, device, about, resumed, callbacks))
        self.model, self.train_data, self.val_data, self.loader = model, run.train_data, run.val_data, run.loader
        self.config, self.run_dir, self.facts, self.changes = run.config, run.run_dir, run.facts, run.changes
        self.prepare, self.towers, self.loss, self.loss_of = run.prepare, run.towers, run.loss, run.loss_of
        self.step_options, self.optimizer, self.ema = run.step_options, run.optimizer, run.ema
        self.checkpointer, self.metrics, self.progress = run.checkpointer, run.metrics, run.progress
        self.history, self.callbacks = run.metrics.history, run.callbacks
        self.about, self.truncated_captions = run.facts["about"], run.truncated_captions
        self.train_captions: int = run.facts["data"]["train"]["captions"]
        self.embedded: Embeddings | None = None
        self.total_steps, self.epochs, self.modes = run.total_steps, run.epochs, TrainingModes(model)

    @classmethod
    def resume(
        cls,
        run_dir: str | Path,
        train_data: ImageCaptionDataset,
        val_data: ImageCaptionDataset | None = None,
        *,
        settings: Mapping[str, Any] | None = None,
        allow_changes: bool = False,
        step: int | None = None,
        about: Mapping[str, Any] | None = None,
        callbacks: Sequence[Callback] | None = None,
        device: str | torch.device | None = None,
    ) -> Trainer:
        """Return a trainer that continues a run from its last state.

        Args:
            run_dir: the run.
            train_data: its training data.
            val_data: its validation data.
            settings: settings to change, by name. Settings of logging and saving may always change.
            allow_changes: allow changed data and other settings; the result then differs from an uninterrupted run.
            step: go back to the state of this step in `states/` (setting `keep_checkpoints`).
            about: entries of the run's `about` to change.
            callbacks: as in the constructor.
            device: as in the constructor.

        Raises:
            FileNotFoundError: the run, or the state of that step, does not exist.
            CheckpointError: a file of the run is damaged.
            ValueError: data or settings differ from the run's.
        """
        changes = ResumeOptions(settings or {}, about or {}, callbacks or (), allow_changes, step)
        run = load_run(Path(run_dir), train_data, val_data, changes)
        options: dict[str, Any] = {"callbacks": callbacks, "device": device, "about": run.about, "resumed": run}
        return cls(run.model, train_data, val_data, config=run.config, run_dir=run_dir, **options)

    @property
    def step(self) -> int:
        """Number of completed steps."""
        return self.progress.step

    @property
    def epoch(self) -> int:
        """Number of completed epochs."""
        return self.progress.epoch

    def fit(self) -> History:
        """Train to the end.

        Raises:
            KeyboardInterrupt: a rank received Ctrl-C or SIGTERM; the step was finished and the state saved.
            FloatingPointError: more than `max_nonfinite_steps` steps in a row, or the weights, are not finite.
            OSError: a file cannot be written; the last complete one is kept.
            BlockingIOError: another process trains in the run directory.
            FileExistsError: the run directory holds a run that another trainer has written since this one was made.
            ChildProcessError: a process that decodes images was killed.
        """
        with ExitStack() as lock, GracefulStop() as stop, self.checkpointer, worker_deaths_explained():
            distributed.on_main(lambda: lock.enter_context(lock_directory(self.run_dir)))
            self._start()
            try:
                while self.step < self.total_steps or self.progress.closed < self.step:
                    for batch in self.batches():
                        self.train_step(batch)
                        logging = self._due(self.config.log_every)
                        if logging:
                            self.log()
                        stopping = stop.agreed()
                        if stopping or self._due(self.config.save_every) or (logging and self.checkpointer.overdue()):
                            self.save()
                        if stopping:
                            self.checkpointer.finish()
                            raise KeyboardInterrupt
                    self.finish_epoch()
                self.checkpointer.finish()
            finally:
                self.loader.close()
                self.model.eval()
                self._call("on_end")
        return self.history

    def check(self, **limits: Any) -> CheckReport:
        """Check data, memory and model before `fit`; `limits` are those of `miniclip.diagnostics.check.check`."""
        return check(self.model, self.train_data, self.val_data, self.config, **limits)

    def batches(self) -> Iterator[Batch]:
        """Yield the remaining batches of the epoch, within `max_steps`."""
        done = self.step - self.progress.epoch_start
        return islice(self.loader.epoch(self.epoch, start=done), self.total_steps - self.step)

    def train_step(self, batch: Batch) -> None:
        """Train on this rank's rows of one batch."""
        warmup = self.config.warmup_steps(self.total_steps)
        rate = learning_rate(self.step, peak=self.config.lr, warmup=warmup, total=self.total_steps)
        set_learning_rate(self.optimizer, rate)
        seed_layers(self.model.device, self.config.seed, "step", self.step, distributed.rank())
        inputs = self.prepare(batch, self.step)
        with images_of_step(self.model.image, self.step, self.total_steps, self.config) as image_size:
            result = cached_step(self.towers, self.optimizer, inputs, self.loss_of(batch), self.step_options)
        self.progress.step += 1
        self.metrics.add({"step": self.step, "epoch": self.epoch + 1, "lr": rate, **image_size}, batch, result)
        if self.ema is not None:
            self.ema.update(self.model, self.step)

    def log(self) -> None:
        """Read the metrics of the steps since the last call, and pass them to the callbacks."""
        self.checkpointer.raise_errors()
        # A stopped run reads metrics at more steps than an uninterrupted one; the records must be the same.
        with_batch = self._due(self.config.log_every) or self._due(self.loader.steps) or self.step == self.total_steps
        for event, record in self.metrics.read(self.progress, with_batch):
            self._call(event, record)

    def finish_epoch(self) -> None:
        """Evaluate if it is due, and save. `max_steps` may end the last epoch early."""
        self.log()
        is_last = self.step >= self.total_steps
        if self.val_data is not None and (is_last or (self.epoch + 1) % self.config.eval_every == 0):
            self.evaluate(self.val_data)
        if self.step - self.progress.epoch_start >= self.loader.steps:
            self.progress.epoch, self.progress.epoch_start = self.epoch + 1, self.step
        self.progress.closed = self.step
        self.save()
        self.metrics.start_clock()

    def evaluate(self, data: ImageCaptionDataset) -> None:
        """Evaluate the model, log the metrics, and write `best/` if the monitored one is the best so far."""
        with self.ema.applied_to(self.model) if self.ema else nullcontext():
            with unsharded(self.model), force_eager(self.config.compile), evaluation_mode(self.model):
                metrics, self.embedded = validate(self.towers, data, self.loss, self.config, self.loader.batch_size)
            metrics = distributed.on_main(lambda: metrics)  # all ranks must agree on what is best
            record = {"step": self.step, "epoch": self.epoch + (self.step > 0), **metrics}
            self.history.add(record)
            self.progress.evaluated = self.step
            if self.progress.improve(monitored(record, self.config.monitor)):
                self.checkpointer.save_best()
            self._call("on_evaluate", record)
            self._call("after_evaluate", record)

    def save(self) -> None:
        """Write `last/` and the training state."""
        self.log()
        self._call("on_save")
        self.progress.callbacks = callback_states(self.callbacks)
        self.checkpointer.save(self.progress)

    def _start(self) -> None:
        """Write `config.json` and the first state, so that a run killed at any later moment can be resumed."""
        self.checkpointer.start(self.optimizer, self.step)
        self.modes.enter()
        self.checkpointer.save_branch(self.progress)
        distributed.on_main(lambda: start_run(self.run_dir, self.facts, self.model.device, self.step, self.changes))
        self.metrics.start_clock()
        self._call("on_start")
        if self.step == 0:
            self.save()
            evaluate_first(self)

    def _call(self, event: str, *arguments: Any) -> None:
        call(self.callbacks, event, self, *arguments)

    def _due(self, every: int | None) -> bool:
        return every is not None and self.step % every == 0
