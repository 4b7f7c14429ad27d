"""Checkpoints of a run: `last/`, `best/` with merged weights and any adapter, and the training states."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType

import torch
from torch import Tensor

from miniclip.checkpoints.native import save_checkpoint
from miniclip.finetuning.adapters import FOLDER, other_trained, write_adapter
from miniclip.finetuning.lora import lora_layers
from miniclip.inference.model import CLIPModel
from miniclip.runs import state
from miniclip.runs.directory import BEST, LAST, require_no_run
from miniclip.runs.progress import Progress
from miniclip.runs.saveable import require_own_optimizer, require_parts
from miniclip.runs.saving import BackgroundWriter
from miniclip.runtime import distributed
from miniclip.train.config import TrainConfig
from miniclip.train.ema import EMA


class Checkpointer:
    """Writer of checkpoints. All ranks call its methods; rank 0 writes. As a context, it waits for the last write.

    Args:
        run_dir: the run directory.
        model: the model in training.
        optimizer: its optimizer.
        ema: the moving average of its weights, or None.
        config: the settings: `save_in_background`, `keep_checkpoints`, `save_minutes`.

    Attributes:
        parts: foreign parts of the model of a resumed run.
        is_new: whether the run is not resumed and has not started.
        is_branch: whether the run is resumed from an earlier state or with changes, and has not started.
    """

    def __init__(
        self, run_dir: Path, model: CLIPModel, optimizer: torch.optim.Optimizer, ema: EMA | None, config: TrainConfig
    ) -> None:
        self.parts: Sequence[str] = ()
        self.is_new, self.is_branch = True, False
        self.run_dir, self.model, self.optimizer, self.ema, self.config = run_dir, model, optimizer, ema, config
        self.writer = BackgroundWriter(config.save_in_background)
        self._saved_at = time.perf_counter()

    def __enter__(self) -> Checkpointer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.writer.__exit__(kind, error, trace)

    def start(self, optimizer: torch.optim.Optimizer, step: int) -> None:
        """Check the directory, the model and its optimizer, and start counting the minutes to the next checkpoint.

        Raises:
            FileExistsError: another run started here after the setup of this one, which is new.
            ValueError: the model lacks foreign parts of the resumed run, or the optimizer is not that of the settings.
        """
        distributed.barrier()  # every rank has read the state that it continues from
        if self.is_new:
            distributed.on_main(lambda: require_no_run(self.run_dir))
        require_parts(self.model, self.parts, self.run_dir)
        require_own_optimizer(optimizer, self.model, self.config, is_new=step == 0)
        self.is_new = False
        self.optimizer = optimizer
        self._saved_at = time.perf_counter()

    def save_branch(self, progress: Progress) -> None:
        """Write the state of a branch before `config.json` and the log change, so that a kill cannot mix two branches.

        A run that is killed before the next save is then resumed from here. All ranks wait until all is written.
        """
        if distributed.any_rank(self.is_branch):  # callbacks, whose absence is a change, may differ between ranks
            self.save(progress)
            self.finish()
            self.is_branch = False

    def raise_errors(self) -> None:
        """Raise the error of a finished write, without waiting for unfinished ones."""
        self.writer.raise_errors()

    def overdue(self) -> bool:
        """Return whether `save_minutes` have passed on any rank. All ranks must call it."""
        minutes = self.config.save_minutes
        return minutes is not None and distributed.any_rank(time.perf_counter() - self._saved_at > 60 * minutes)

    def save(self, progress: Progress) -> None:
        """Write `last/` and the training state.

        Raises:
            FloatingPointError: the weights are not finite; the previous state is kept.
            OSError: this write failed, or an earlier one in the background.
            ValueError: the optimizer is not the one that the settings give.
        """
        require_own_optimizer(self.optimizer, self.model, self.config, is_new=progress.step == 0)
        now = state.gather_state(self.model, self.optimizer, progress, self.ema)
        self._saved_at = time.perf_counter()
        if distributed.is_main():
            state.require_finite(now, self.run_dir)
            now = now.map(self.writer.copy)
            self._write_model(LAST, {**now.weights, **now.ema})  # first, since a resume reads its tokenizer
            path, keep = self.run_dir / state.FILE, self.config.keep_checkpoints
            self.writer.start(lambda: state.save_state(path, now, keep))

    def save_best(self) -> None:
        """Write the model's current weights to `best/`."""
        weights = state.gather_weights(self.model)
        if distributed.is_main():
            self._write_model(BEST, self.writer.copy(weights))

    def finish(self) -> None:
        """Wait until rank 0 has written everything: if a rank ended earlier, torchrun could end rank 0."""
        self.writer.wait()
        distributed.barrier()

    def _write_model(self, name: str, weights: Mapping[str, Tensor]) -> None:
        path, model = self.run_dir / name, self.model
        has_adapter = bool(lora_layers(model)) and not other_trained(model)  # else an adapter would not be all

        def write() -> None:
            save_checkpoint(model, path, weights)
            if has_adapter:
                write_adapter(model, path / FOLDER, weights)

        self.writer.start(write)
