"""The trainer: a model, data and settings in; a run directory with the curve, the best and the last model out.

A run directory holds `config.json` (every setting), `metrics.jsonl`, `learning_curve.png`, the checkpoints `last/` and
`best/`, and `state.safetensors`, from which `Trainer.resume` goes on to the same bit. With a moving average of the
weights (`ema_decay`), that is what is evaluated and what `last/` and `best/` hold; the state holds both.

Started by torchrun, every rank has the model and trains on its rows of each batch; rank 0 alone decides, writes, and
has callbacks. The gradients are averaged by hand, once a step: DistributedDataParallel would do it in each of a step's
backward passes, unless it is told which is the last. Letters: B batch, of all ranks together.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from miniclip.checkpoints.native import save_checkpoint
from miniclip.data.augmentation import Augment
from miniclip.data.cache.reading import require_pixels
from miniclip.data.dataset import ImageCaptionDataset
from miniclip.data.loader import Batch, ImageCaptionLoader
from miniclip.data.options import LoaderOptions
from miniclip.data.skipping import SkipLog
from miniclip.data.sources.workers import worker_deaths_explained
from miniclip.data.subset import readable_subset
from miniclip.diagnostics.batch_metrics import batch_metrics
from miniclip.diagnostics.check import check
from miniclip.diagnostics.findings import CheckReport
from miniclip.evaluation.retrieval import Embeddings
from miniclip.inference.model import CLIPModel
from miniclip.models.clip import CLIPOutput
from miniclip.models.vision import draw_patches
from miniclip.runs import nonfinite as skipping
from miniclip.runs import state
from miniclip.runs.directory import (
    BEST,
    LAST,
    fingerprint,
    next_run_dir,
    refuse_a_run,
    require_same_everywhere,
    sweep,
    write_run,
)
from miniclip.runs.history import FILE as METRICS
from miniclip.runs.history import History, Record
from miniclip.runs.interrupt import GracefulStop
from miniclip.runs.progress import Progress
from miniclip.runs.resume import compare, restored
from miniclip.runs.saving import Writer
from miniclip.runtime import distributed
from miniclip.runtime.compilation import compile_blocks, in_few_widths, untranslated
from miniclip.runtime.fsdp import require_even, shard, unsharded
from miniclip.runtime.memory import checkpoint_blocks, find_micro_batch_size, synthetic_step
from miniclip.runtime.precision import Precision, resolve
from miniclip.train.callbacks import Callback, call
from miniclip.train.config import TrainConfig
from miniclip.train.ema import EMA
from miniclip.train.metrics import MetricsBuffer, StepMetrics
from miniclip.train.optimizer import build_optimizer
from miniclip.train.schedule import learning_rate
from miniclip.train.setup import default_callbacks, logger_callbacks, mfu_meter
from miniclip.train.step import Inputs, cached_step, loss_function, plain_step
from miniclip.train.validation import figure_of, validate
from miniclip.utils.lock import lock_directory
from miniclip.utils.randomness import generator, random_integer

if TYPE_CHECKING:
    from miniclip.tokenizer import TextTokenizer


class Trainer:
    """Trains a CLIP.

    Args:
        model: with a tokenizer; trained in place.
        train_data: pictures with captions.
        val_data: held-out ones, for the evaluations; None: no evaluation, and no `best/`.
        config: the settings.
        run_dir: where everything is written; it must not hold a run. None: the next free one of `runs/clip`,
            `runs/clip-2`, …
        callbacks: in place of the usual ones (the log, the pictures, the progress bar).
        device: None: the GPU where there is one, and of several ranks each its own.
        about: anything else to keep in the run's `config.json`, such as where the data came from; JSON values.
        saved: a state to go on from; `Trainer.resume` passes it, and `changes`.
        changes: what of data and settings is other than when the run was started, by name: (before, now).

    Attributes:
        model: with the weights of the last step, also where their average (`ema_decay`) is evaluated and saved.
        callbacks: on rank 0; none on the others.
        step: steps done.
        epoch: epochs done, their evaluation included.
        best: the best figure so far by the setting `monitor`, greater is better; None before the first evaluation.
        history: all records so far.
        seen: the last step's batch and output, of this rank's rows; None before the first step.

    Raises:
        ValueError: the model has no tokenizer, or one that does not fit it; the data are empty; settings do not fit.
        FileExistsError: the run directory holds a run.
        DataError: a picture cannot be read.
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
        saved: state.State | None = None,
        changes: Mapping[str, tuple[Any, Any]] | None = None,
    ) -> None:
        distributed.init(device)
        device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        config = config or TrainConfig()

        def decide() -> tuple[Path, Precision]:
            path = next_run_dir("runs/clip") if run_dir is None else Path(run_dir)
            if saved is None:
                refuse_a_run(path)
            return path, resolve(config.precision, device)

        self.data = {"train": fingerprint(train_data), "val": fingerprint(val_data)}
        require_same_everywhere(self.data)
        self.train_captions: int = sum(len(captions) for captions in train_data.captions)
        self.run_dir, precision = distributed.on_main(decide)  # ranks could answer differently
        self.config = dataclasses.replace(config, precision=precision)
        require_pixels(val_data, model)  # now, and not after an epoch
        self.model = model.to(device)
        distributed.broadcast_weights(self.model)
        if val_data is not None and config.on_error == "skip":  # now, and not at the first evaluation
            val_data = readable_subset(val_data, SkipLog("skip", config.max_skip_fraction))
        self.train_data, self.val_data = train_data, val_data
        self.about = dict(about or {})
        cut = getattr(model.tokenizer, "truncated", 0)
        self.loader = loader_of(model, train_data, self.config)
        self.truncated_captions: int = getattr(model.tokenizer, "truncated", 0) - cut  # of the training data
        rows = self.loader.rows
        checkpoint_blocks(self.model, self.config.gradient_checkpointing)
        if self.config.micro_batch_size == "auto":
            trial = synthetic_step(self.model, self.config.precision, self.config.patch_dropout)
            micro_batch_size = find_micro_batch_size(self.model, rows.stop - rows.start, trial)
            self.config = dataclasses.replace(self.config, micro_batch_size=micro_batch_size)
        if self.config.fsdp:
            require_even(self.loader.batch_size, skips_samples=self.config.on_error == "skip")
            shard(self.model)
        self.loss = loss_function(self.config, model)
        self.augment = Augment(
            self.config.min_crop_area, self.config.max_rotation_degrees, self.config.flip, self.config.color_jitter
        )
        self.optimizer = build_optimizer(model, self.config)
        callbacks = default_callbacks() if callbacks is None else list(callbacks)
        self.callbacks = [*callbacks, *logger_callbacks(self.config)] if distributed.is_main() else []
        self.history = History()
        self.progress = Progress()
        self.average = None if self.config.ema_decay is None else EMA(self.model, self.config.ema_decay)
        self.writer = Writer(self.config.save_in_background)
        self.seen: tuple[Batch, CLIPOutput] | None = None  # the last step's
        self.embedded: Embeddings | None = None  # the validation data as the last evaluation saw them
        self._changes = dict(changes or {})
        self.readings = MetricsBuffer(self.loader, mfu_meter(self.model, self.config))
        self._saved_at = time.perf_counter()
        if saved is not None:
            self._restore(saved)
        steps = self.progress.epoch_start + (self.config.epochs - self.epoch) * self.loader.steps
        self.total_steps = min(steps, self.config.max_steps or steps)
        self.epochs = self.epoch + math.ceil((self.total_steps - self.progress.epoch_start) / self.loader.steps)
        if self.config.compile:
            compile_blocks(self.model)

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
        """Take up a run where its last state stands; `fit` then does what is left of it.

        Args:
            run_dir: the run.
            train_data: the data that it was started with.
            val_data: likewise.
            settings: those that shall be other than the run's, by name.
            allow_changes: the word that data and settings may be other ones, and the run another than it would have been;
                what only changes how a run is watched and stored needs no word. With other training data, another
                batch size or seed the epoch in hand begins anew.
            step: go back to the state of this step, one of those in `states/` (setting `keep_checkpoints`).
            about: what of the run's `about` is other now, such as where the data are.
            callbacks: as in the constructor.
            device: as in the constructor.

        Raises:
            FileNotFoundError: there is no run, or no state of that step.
            CheckpointError: a file of it is damaged.
            ValueError: the data or settings are not those that the run was started with; it says what differs.
        """
        run_dir = Path(run_dir)
        found = compare(run_dir, (train_data, val_data), settings or {}, about or {}, allow_changes)
        model, saved = restored(run_dir, step)
        rest: dict[str, Any] = {"callbacks": callbacks, "device": device, "saved": saved, **found._asdict()}
        return cls(model, train_data, val_data, run_dir=run_dir, **rest)

    def fit(self) -> History:
        """Train to the end.

        Returns:
            What was logged.

        Raises:
            KeyboardInterrupt: Ctrl-C, or SIGTERM, of any rank: after the step in hand and with the state saved.
            FloatingPointError: more than `max_nonfinite_steps` steps in a row were not finite, or the weights are not; the
                last state that was saved stays.
            OSError: a file cannot be written; the last that was written whole stays.
            BlockingIOError: another process is training in the run directory.
            ChildProcessError: a process that decodes pictures was killed.
        """
        with contextlib.ExitStack() as held, GracefulStop() as stop, self.writer, worker_deaths_explained():
            distributed.on_main(lambda: held.enter_context(lock_directory(self.run_dir)))
            self._start()
            try:
                while not (self.step >= self.total_steps and self.progress.closed == self.step):
                    for batch in self.batches():
                        self.train_step(batch)
                        if self._due(self.config.log_every):
                            self.read_figures()
                        stopping = stop.agreed()
                        if stopping or self._due(self.config.save_every) or self._overdue():
                            self.save()
                        if stopping:
                            self._finish_writing()
                            raise KeyboardInterrupt
                    self.finish_epoch()
                self._finish_writing()
            finally:
                self.loader.close()
                self.model.eval()
                self._call("on_end")
        return self.history

    @property
    def step(self) -> int:
        """Number of completed steps."""
        return self.progress.step

    @property
    def epoch(self) -> int:
        """Number of completed epochs."""
        return self.progress.epoch

    def check(self, **limits: Any) -> CheckReport:
        """Look at data, memory and model before `fit`, and overfit a few pairs with a copy; the run is left as it is.

        Args:
            limits: `steps` and `seconds`, as in `miniclip.diagnostics.check.check`.

        Returns:
            The findings; `print` them.
        """
        return check(self.model, self.train_data, self.val_data, self.config, **limits)

    def batches(self) -> Iterator[Batch]:
        """What is left of the epoch, and of the steps in all."""
        done = self.step - self.progress.epoch_start
        return islice(self.loader.epoch(self.epoch, start=done), self.total_steps - self.step)

    def train_step(self, batch: Batch) -> None:
        """One step on one batch, or on this rank's rows of it."""
        warmup = round(self.config.warmup_fraction * self.total_steps)
        rate = learning_rate(self.step, peak=self.config.lr, warmup=warmup, total=self.total_steps)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        torch.manual_seed(
            random_integer(self.config.seed, "step", self.step, distributed.rank())
        )  # a user's dropout, say
        step = plain_step if self.config.micro_batch_size is None else cached_step
        size = len(batch.indices)
        result = step(self.model, self.optimizer, self._inputs(batch), size, self.loss, self.config)
        self.progress.step += 1
        log_n = math.log(self.loader.batch_size)
        record = {"step": self.step, "epoch": self.epoch + 1, "lr": rate, "log_n": log_n}
        record["tokens"] = batch.tokens.shape[1]
        self.readings.add(record, result)
        self.seen = batch, result.seen
        if self.average is not None:
            self.average.update(self.model, self.step)

    def _inputs(self, batch: Batch) -> Inputs:
        """What the model takes for any rows of a batch.

        What is random is drawn by seed and step for the rows of all ranks: however many, they see the same batch.
        """
        device, seed, size, mine = self.model.device, self.config.seed, self.loader.batch_size, batch.rows
        augmentation = self.augment.draw(size, generator(seed, "augment", self.step))[mine]
        kept = None
        if self.config.patch_dropout:
            patches, random = self.model.config.image.patches, generator(seed, "patches", self.step)
            kept = draw_patches(size, patches, self.config.patch_dropout, random)[mine]

        def inputs(rows: slice) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
            pixels = self.augment.apply(batch.pixels[rows].to(device, non_blocking=True), augmentation[rows])
            tokens = batch.tokens[rows]
            if self.config.compile and self.model.config.text.padding == "masked":
                tokens = in_few_widths(tokens, self.model.config.text.context_length)
            tokens = tokens.to(device, non_blocking=True)
            return self.model.preprocess.normalise(pixels), tokens, None if kept is None else kept[rows].to(device)

        return inputs

    def read_figures(self) -> None:
        """Fetch the figures of the steps since the last look, and hand them to the callbacks.

        Raises:
            FloatingPointError: they were not finite in more than `max_nonfinite_steps` steps in a row.
            OSError: a write in the background failed.
        """
        self.writer.look()
        readings = self.readings.read()
        looked = self._look() if readings else {}
        for reading in readings:
            if not reading.finite:
                self._skip(reading)
                continue
            self.progress.skipped, record = 0, reading.record
            if record["step"] == self.step:
                record |= looked
            self.history.add(record)
            self._call("on_step", record)

    def _skip(self, reading: StepMetrics) -> None:
        """Say of a step that has changed nothing where it went wrong, and keep its batch."""
        self.progress.skipped, record = self.progress.skipped + 1, reading.record
        batch = next(iter(self.loader.epoch(self.epoch, start=record["step"] - 1 - self.progress.epoch_start)))
        where = skipping.where_it_began(reading.figures, reading.rows, batch.indices)
        captions = [list(self.train_data.captions[int(i)]) for i in batch.indices]
        kept = skipping.keep_batch(self.run_dir, record["step"], batch, captions, {**record, "where": where})
        record |= {"skipped": where, "batch": kept and kept.name}
        self.history.add(record)
        self._call("on_skip", record)
        if self.progress.skipped > self.config.max_nonfinite_steps:
            raise FloatingPointError(skipping.too_many(where, record, self.progress.skipped, self.run_dir))

    def _look(self) -> Record:
        """The figures of the last step's embeddings, where it is one of those that are looked at in every run.

        Not after a stop, say: then a run that was stopped would have logged what one that was not has not.
        """
        due = self._due(self.config.log_every) or self._due(self.loader.steps) or self.step == self.total_steps
        if self.seen is None or not due:
            return {}
        batch, out = self.seen
        return batch_metrics(batch, out, self.loader.rows.start, self.model.tokenizer, self.config.loss)

    def finish_epoch(self) -> None:
        """Evaluate where it is time to, and save. The last epoch may have ended before its end, at `max_steps`."""
        self.read_figures()
        due = self.step >= self.total_steps or (self.epoch + 1) % self.config.eval_every == 0
        if self.val_data is not None and due:
            self.evaluate(self.val_data)
        if self.step - self.progress.epoch_start >= self.loader.steps:
            self.progress.epoch, self.progress.epoch_start = self.epoch + 1, self.step
        self.progress.closed = self.step
        self.save()
        self.readings.start_the_clock()

    def evaluate(self, data: ImageCaptionDataset) -> None:
        """Measure the model, log it, and keep it as `best/` where its figure is the best so far."""
        with self.average.in_place(self.model) if self.average else contextlib.nullcontext():
            with unsharded(self.model), untranslated(self.config.compile):
                self.model.eval()  # ours has nothing that differs, a user's may have dropout
                figures, self.embedded = validate(self.model, data, self.loss, self.config.batch_size, self.config.seed)
            self.model.train()
            figures = distributed.on_main(lambda: figures)  # what is best depends on them, and must on all ranks alike
            record = {"step": self.step, "epoch": self.epoch + 1, **figures}
            self.progress.evaluated = self.step
            self.history.add(record)
            figure = figure_of(record, self.config.monitor)
            if self.progress.best is None or figure > self.progress.best:
                self.progress.best = figure
                weights = state.weights_of(self.model)
                if distributed.is_main():
                    self._write_checkpoint(BEST, self.writer.copy(weights))
            self._call("on_evaluate", record)
            self._call("after_evaluate", record)

    def save(self) -> None:
        """Write the state to resume from, and `last/`; each file atomically, and in the background if it is to be.

        Raises:
            FloatingPointError: the weights are not finite; the last state stays.
            OSError: an earlier write failed, or this one, where it is not in the background.
        """
        self.read_figures()
        self._call("on_save")
        now = state.state_of(self.model, self.optimizer, self.progress, self.average)
        self._saved_at = time.perf_counter()
        if distributed.is_main():
            state.require_finite(now, self.run_dir)
            now = now.mapped(self.writer.copy)
            self._write_checkpoint(LAST, {**now.weights, **now.average})  # first: a resume has its tokenizer from it
            self.writer.start(lambda: state.save_state(self.run_dir / state.FILE, now, self.config.keep_checkpoints))

    def _write_checkpoint(self, name: str, weights: Mapping[str, torch.Tensor]) -> None:
        self.writer.start(lambda: save_checkpoint(self.model, self.run_dir / name, weights))

    def _finish_writing(self) -> None:
        """Wait until all is written; all ranks do, or the first to end would have rank 0 ended while it writes."""
        self.writer.wait()
        distributed.barrier()

    def _start(self) -> None:
        """Write what a new run starts from, so that a kill at any moment later leaves something to resume."""
        distributed.barrier()  # every rank has its data and its model, and has read what it goes on from
        new = self.step == 0 and not (self.run_dir / state.FILE).exists()
        if distributed.is_main() and not new:
            sweep(self.run_dir)  # now that it is ours alone: another process's temporary files are none of a kill's
        if distributed.is_main() and (new or self._changes):
            what = {"train": self.config.to_dict(), "model": self.model.config.to_dict(), "data": self.data}
            write_run(self.run_dir, {**what, "about": self.about}, self.model.device, new, (self.step, self._changes))
        self._saved_at = time.perf_counter()
        self.readings.start_the_clock()
        self.model.train()
        self._call("on_start")
        if self.step == 0:
            self.save()

    def _restore(self, saved: state.State) -> None:
        state.restore_optimizer(self.optimizer, self.model, saved.optimizer)
        if self.average is not None:
            state.restore_average(self.average, self.model, saved.average)
        self.progress = dataclasses.replace(saved.progress)
        if self._changes.keys() & {"train data", "batch_size", "seed"}:
            self.progress.epoch_start = self.step
        if "monitor" in self._changes:  # the best so far is a figure of another kind
            self.progress.best = None
        if (self.run_dir / METRICS).exists():
            self.history = History.read(self.run_dir, self.step, self.progress.evaluated)

    def _overdue(self) -> bool:
        """Whether `save_minutes` are over for any rank; asked at the looks alone, since the ranks have to agree."""
        minutes = self.config.save_minutes
        if minutes is None or not self._due(self.config.log_every):
            return False
        return distributed.any_rank(time.perf_counter() - self._saved_at > 60 * minutes)

    def _due(self, every: int | None) -> bool:
        return every is not None and self.step % every == 0

    def _call(self, event: str, *arguments: Any) -> None:
        call(self.callbacks, event, self, *arguments)


def loader_of(model: CLIPModel, data: ImageCaptionDataset, config: TrainConfig) -> ImageCaptionLoader:
    """Batches of the training data for a model, as the settings have them."""
    options = LoaderOptions(
        batch_size=config.batch_size,
        context_length=model.config.text.context_length,
        seed=config.seed,
        num_workers=config.num_workers,
        pad=model.config.text.padding == "attended",
        reduced_decoding=config.reduced_decoding,
        on_error=config.on_error,
        max_skip_fraction=config.max_skip_fraction,
    )
    return ImageCaptionLoader(data, tokenizer_of(model), model.preprocess, options)


def tokenizer_of(model: CLIPModel) -> TextTokenizer:
    """The model's tokenizer.

    Raises:
        ValueError: it has none.
    """
    if model.tokenizer is None:
        raise ValueError(
            "the model has no tokenizer: make one with Tokenizer.train(captions, vocab_size) and pass it, as in "
            "miniclip.load(name, pretrained=False, tokenizer=tokenizer)"
        )
    return model.tokenizer
