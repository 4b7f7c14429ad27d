"""Steps whose loss or gradient was not finite: where that began, and the batch, kept to look at.

Such a step has changed nothing (`optimizer.step_where`). That it happened is seen at the next look at the figures, some
steps later; what was finite then is in the step's result, and the batch is made again from seed and step.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from miniclip.checkpoints.formats.safetensors import write_tensors
from miniclip.checkpoints.native import write_json
from miniclip.runtime import distributed

if TYPE_CHECKING:
    from miniclip.data.loader import Batch
    from miniclip.models.clip import CLIPOutput

FOLDER = "skipped"
SHOWN = 5  # rows named in a message
KEPT = 20  # batches at most: a run that skips for days must not fill the disk


def finite_rows(out: CLIPOutput) -> Tensor:
    """(2, n) bool on the device: whose embeddings of pictures and of captions, each (n, E), are finite."""
    return torch.stack([side.isfinite().all(dim=1) for side in out[:2]])


def where_it_began(figures: Mapping[str, float], finite: Tensor, indices: Tensor) -> str:
    """Name the first thing that is not finite on a step's way: embeddings, then the loss, then a tower's gradient.

    Args:
        figures: the step's.
        finite: (2, n), from `finite_rows`.
        indices: (n,) the pictures of this rank's rows.
    """
    for side, name in zip(finite.cpu(), ("picture", "the caption of picture"), strict=True):
        rows = (~side).nonzero()[:, 0].tolist()
        if rows:
            shown = ", ".join(str(int(indices[row])) for row in rows[:SHOWN]) + (", …" if len(rows) > SHOWN else "")
            return f"the embedding of {name} {shown} ({len(rows)} of {len(side)} rows)"
    if not math.isfinite(figures["loss"]):
        return f"the loss, of finite embeddings, at a scale of {figures['logit_scale']:.4g}"
    towers = [name for name in ("image", "text") if not math.isfinite(figures[f"grad_norm_{name}"])]
    return f"the gradient of the {' and the '.join(f'{name} tower' for name in towers) or 'scale'}, of a finite loss"


def too_many(where: str, record: Mapping[str, Any], count: int, run_dir: Path) -> str:
    """What to say when a run stops because so many steps in a row were skipped."""
    return (
        f"not finite: {where}, at step {record['step']}, the last of {count} in a row that were skipped (setting "
        f"max_nonfinite_steps); the learning rate ({record['lr']:.1e}) may be too high, or bfloat16 too coarse; {run_dir} "
        f"keeps the state of before, and the batches in {FOLDER}/: go on with a smaller one (--resume {run_dir} "
        "--lr X --allow-changes), or start anew with a longer warmup or precision float32"
    )


def keep_batch(run_dir: Path, step: int, batch: Batch, captions: list[list[str]], about: dict[str, Any]) -> Path | None:
    """Write a batch's pixels and tokens, and a JSON with what is known of it, to the run's `skipped/`.

    Args:
        run_dir: the run.
        step: the step that was skipped.
        batch: this rank's rows of it.
        captions: all of each of its pictures.
        about: what else to write into the JSON.

    Returns:
        The JSON's path; None where enough have been kept already.
    """
    folder = run_dir / FOLDER
    if folder.is_dir() and len(list(folder.glob("*.json"))) >= KEPT:
        return None
    folder.mkdir(parents=True, exist_ok=True)
    name = f"step-{step:08d}" + (f"-rank-{distributed.rank()}" if distributed.world_size() > 1 else "")
    write_tensors(folder / f"{name}.safetensors", batch._asdict())
    path = folder / f"{name}.json"
    write_json(path, {**about, "step": step, "pictures": batch.indices.tolist(), "captions": captions})
    return path
