"""Steps whose loss or gradient is not finite: the cause, and the batch, which is kept for inspection.

Such a step changes no weight (`train/optimizer.py`). It is noticed when the metrics are read, some steps later. By then
only the step's metrics are left; the batch is made again from seed and step.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from miniclip.checkpoints.formats.safetensors import write_tensors
from miniclip.checkpoints.native import write_json
from miniclip.data.dataset import ImageCaptionDataset
from miniclip.data.loader import Batch, ImageCaptionLoader
from miniclip.models.clip import CLIPOutput
from miniclip.runs.history import Record
from miniclip.runs.progress import Progress
from miniclip.runtime import distributed
from miniclip.utils.formatting import format_command

FOLDER = "skipped"
MAX_NAMED_ROWS = 5  # in a message
MAX_BATCHES = 20  # on disk


def finite_rows(output: CLIPOutput) -> Tensor:
    """Return which images (row 0) have finite embeddings, and which have only finite captions (row 1): (2, B) bool."""
    images = len(output.image_embeddings)
    return torch.stack([side.isfinite().view(images, -1).all(dim=1) for side in output[:2]])


def cause(metrics: Mapping[str, float], finite: Tensor, indices: Tensor) -> str:
    """Describe the first value of a step that is not finite: an embedding, the loss, or a tower's gradient.

    Args:
        metrics: the step's metrics.
        finite: (2, B), from `finite_rows`.
        indices: (B,) indices of the images in the dataset.
    """
    for side, name in zip(finite.cpu(), ("image", "the caption of image"), strict=True):
        rows = (~side).nonzero()[:, 0].tolist()
        if rows:
            named = ", ".join(str(int(indices[row])) for row in rows[:MAX_NAMED_ROWS])
            more = ", …" if len(rows) > MAX_NAMED_ROWS else ""
            return f"the embedding of {name} {named}{more} ({len(rows)} of {len(side)} rows)"
    if not math.isfinite(metrics["loss"]):
        return f"the loss of finite embeddings, at a scale of {metrics['logit_scale']:.4g}"
    towers = [name for name in ("image", "text") if not math.isfinite(metrics[f"grad_norm_{name}"])]
    return f"the gradient of the {' and the '.join(f'{name} tower' for name in towers) or 'scale'}, at a finite loss"


class NonFiniteSteps:
    """Log of the non-finite steps of a run: their causes, their batches on disk, and the limit of steps in a row.

    Args:
        run_dir: the run directory.
        loader: makes the batch of a step again.
        data: the training data.
        max_steps: number of non-finite steps in a row that do not stop the run.
    """

    def __init__(self, run_dir: Path, loader: ImageCaptionLoader, data: ImageCaptionDataset, max_steps: int) -> None:
        self.run_dir, self.loader, self.data, self.max_steps = run_dir, loader, data, max_steps

    def add(self, record: Record, metrics: Mapping[str, float], finite: Tensor, progress: Progress) -> Record:
        """Count a step, keep its batch, and return its record with the cause and the file of the batch.

        Args:
            record: the step's position.
            metrics: the step's metrics.
            finite: (2, B), from `finite_rows`.
            progress: position of the run; the step is in the current epoch.
        """
        progress.skipped += 1
        number = record["step"] - 1 - progress.epoch_start
        batch = next(iter(self.loader.epoch(progress.epoch, start=number)))
        skipped = cause(metrics, finite, batch.indices)
        captions = [list(self.data.captions[int(index)]) for index in batch.indices]
        path = keep_batch(self.run_dir, batch, {**record, "cause": skipped, "captions": captions})
        return {**record, "skipped": skipped, "batch": path and path.name}

    def check(self, record: Record, skipped: int) -> None:
        """Check the number of steps in a row that were skipped, after the last one was logged.

        Raises:
            FloatingPointError: there were more than `max_steps`.
        """
        if skipped > self.max_steps:
            command = format_command("miniclip", "train", "--resume", self.run_dir)
            raise FloatingPointError(
                f"not finite: {record['skipped']}, at step {record['step']}, the last of {skipped} in a row that were "
                f"skipped (setting max_nonfinite_steps); the learning rate ({record['lr']:.1e}) may be too high, or "
                f"bfloat16 too coarse. {self.run_dir} keeps the previous state, and the batches in {FOLDER}/: resume "
                f"with a smaller rate ({command} --lr {record['lr'] / 10:.1g} --allow-changes), or start again with a "
                "longer warmup or precision float32"
            )


def keep_batch(run_dir: Path, batch: Batch, facts: Record) -> Path | None:
    """Write a batch to `skipped/`, with a JSON of its facts; return the JSON's path, or None if there are enough."""
    folder = run_dir / FOLDER
    if folder.is_dir() and len(list(folder.glob("*.json"))) >= MAX_BATCHES:
        return None
    folder.mkdir(parents=True, exist_ok=True)
    name = f"step-{facts['step']:08d}" + (f"-rank-{distributed.rank()}" if distributed.world_size() > 1 else "")
    write_tensors(folder / f"{name}.safetensors", batch._asdict())
    path = folder / f"{name}.json"
    write_json(path, {**facts, "images": batch.indices.tolist()})
    return path
