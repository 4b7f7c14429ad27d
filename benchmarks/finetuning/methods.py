"""One fine-tuning run: a start, a method and a seed; scores on new and old images, time, memory and size.

The choosing half of the held-out images chooses the rates in `METHODS` (`--rates`) and alpha, by the rule of `miniclip
interpolate --alpha auto`. All figures of the table are those of the scored half, which chooses nothing.
"""

import os
import shutil
import time
from pathlib import Path
from typing import Any

import torch

import miniclip
from benchmarks.finetuning.starts import STARTS, load_start, parts_of, path_of
from miniclip.data import Replay
from miniclip.evaluation import retrieval
from miniclip.finetuning.interpolation import interpolate
from miniclip.finetuning.sweep import as_record, choose, retrieval_measure, sweep
from miniclip.train import TrainConfig

ALLOWED_LOSS = 1.0  # points on the old images; the default of `miniclip interpolate`
BATCH = 128
# settings besides the common ones; "teacher" is the start, "share" that of replayed old images in each batch, and
# "passes" a factor on the start's passes over the new images
METHODS: dict[str, dict[str, Any]] = {
    "full": {"lr": 1e-3},
    "full, 3 times the passes": {"lr": 1e-3, "passes": 3},  # the steps of a replay share of 0.67
    "last two blocks": {"lr": 1e-3, "tune_image": "last-2", "tune_text": "last-2"},
    "LiT": {"lr": 1e-3, "tune_image": "frozen", "cache_frozen": True, "min_crop_area": 1.0},
    "LoRA": {"lr": 3e-4, "tune_image": "lora", "tune_text": "lora", "lora_targets": "q,k,v,out,mlp"},
    "anchor_weights 30": {"lr": 1e-3, "anchor_weights": 30.0},
    "anchor_embeddings 3": {"lr": 1e-3, "anchor_embeddings": 3.0},
    "distillation 1": {"lr": 1e-3, "teacher": "start", "distillation": 1.0},
    "replay, share 0.5": {"lr": 1e-3, "share": 0.5},
    "replay, share 0.67": {"lr": 1e-3, "share": 2 / 3},
    "replay, share 0.67, 3 times the passes": {"lr": 1e-3, "share": 2 / 3, "passes": 3},
    "replay, share 0.8": {"lr": 1e-3, "share": 0.8},
}


def tune(
    start: str, method: str, seed: int, data: Path | None, folder: Path, rate: float | None = None
) -> dict[str, Any]:
    """Tune a start by a method, and measure it; the result is a row of `results.jsonl`.

    With a rate other than that of the method, only the scores of the choosing half are measured.
    """
    path, about = path_of(start, folder), STARTS[start]
    old, new = parts_of(about.old, data, folder), parts_of(about.new, data, folder)
    model = load_start(path)
    if method == "start":
        return choosing_scores(model, new, old) | scores(model, new, old)
    small = {"epochs": 1, "batch_size": 16} if data is None else {"epochs": about.epochs, "batch_size": BATCH}
    settings = {**small, **METHODS[method], "seed": seed, "precision": "float32"} | ({"lr": rate} if rate else {})
    settings["epochs"] *= settings.pop("passes", 1)
    share, images = settings.pop("share", None), new.train
    if "teacher" in settings:
        settings["teacher"] = str(teacher_of(path, folder))
    run_dir = folder / "runs" / f"{start}-{method}-{seed}-{rate}".replace(" ", "-").replace(",", "")
    shutil.rmtree(run_dir, ignore_errors=True)  # that of a stopped command
    before = reset_peak()
    images = images if share is None else Replay(images, old.train, share)
    trainer = miniclip.Trainer(
        model, images, config=TrainConfig(**settings), run_dir=run_dir, callbacks=[], device="cpu"
    )
    began = time.process_time()
    trainer.fit()
    row = {"seconds": time.process_time() - began, "peak_mib": (peak() - before) / 2**20}
    adapter = run_dir / "last" / "adapter" / "adapter_model.safetensors"
    saved = adapter if adapter.exists() else run_dir / "last" / "model.safetensors"
    row["saved_mb"] = saved.stat().st_size / 1e6
    shutil.rmtree(run_dir)
    if rate is not None:
        return row | choosing_scores(model.eval(), new, old)
    return row | scores(model.eval(), new, old) | between(load_start(path), model, new, old)


def between(base: Any, model: Any, new: Any, old: Any) -> dict[str, Any]:
    """Return the models between the start and a tuned one, and the scores of the one that the choosing half chooses."""
    points = sweep(base, model, retrieval_measure(new.choosing), retrieval_measure(old.choosing))
    alpha = choose(points, ALLOWED_LOSS).alpha
    return {
        "sweep": [as_record(point) for point in points],
        "interpolated": {"alpha": alpha, **scores(interpolate(base, model, alpha), new, old)},
    }


def teacher_of(path: Path, folder: Path) -> Path:
    """Return a checkpoint directory of the start that needs no other tokenizer."""
    teacher = folder / "teachers" / path.name
    if not (teacher / "config.json").exists():
        miniclip.save(load_start(path), teacher, overwrite=True)
    return teacher


def scores(model: Any, new: Any, old: Any) -> dict[str, float]:
    """Mean R@1 of both directions on the scored images, in percent."""
    return {"new": mean_recall(model, new.scored), "old": mean_recall(model, old.scored)}


def choosing_scores(model: Any, new: Any, old: Any) -> dict[str, float]:
    """Mean R@1 of both directions on the choosing images, in percent."""
    return {"new_choosing": mean_recall(model, new.choosing), "old_choosing": mean_recall(model, old.choosing)}


def mean_recall(model: Any, data: Any) -> float:
    return sum(direction["R@1"] for direction in retrieval(model, data).values()) / 2


def reset_peak() -> float:
    """Start to measure the greatest resident memory of this process, and return the present one, in bytes.

    The memory of torch's own code does not count: a small step loads it before.
    """
    layer = torch.nn.Linear(64, 64)
    layer(torch.randn(64, 64)).sum().backward()
    torch.optim.AdamW(layer.parameters(), fused=True).step()
    if Path("/proc/self/clear_refs").exists():
        Path("/proc/self/clear_refs").write_text("5")
    return status("VmRSS")


def peak() -> float:
    return status("VmHWM")


def status(name: str) -> float:
    """Return an entry of Linux's process status, in bytes; NaN on other systems."""
    path = Path("/proc/self/status")
    lines = path.read_text().splitlines() if os.name == "posix" and path.exists() else []
    return next((1024.0 * int(line.split()[1]) for line in lines if line.startswith(name + ":")), float("nan"))
