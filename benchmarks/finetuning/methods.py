"""One fine-tuning run: a start, a method and a seed; scores on new and old images, time, memory and size."""

import os
import shutil
import time
from pathlib import Path
from typing import Any

import torch

import miniclip
from benchmarks.finetuning.starts import STARTS, load_start, parts_of, path_of
from miniclip.data.given import Concatenation
from miniclip.data.subset import Subset
from miniclip.evaluation import retrieval
from miniclip.finetuning.interpolation import interpolate
from miniclip.train import TrainConfig
from miniclip.utils.randomness import generator

ALPHAS = tuple(step / 10 for step in range(1, 10))
ALLOWED_LOSS = 1.0  # points on the old images; the default of `miniclip interpolate`
BATCH = 128
REPLAY = "old images replayed"  # as many old training images as new ones, in random order with them
REPLAY_EPOCHS = 2  # an old image is trained on that often, and a new one as often as in the other methods
SWEPT = ("full", "lit", "anchor weights", REPLAY)  # methods whose models are interpolated with the start
# settings besides the common ones; "teacher" is the start
METHODS: dict[str, dict[str, Any]] = {
    "full": {"lr": 1e-3},
    "last-2": {"lr": 1e-3, "tune_image": "last-2", "tune_text": "last-2"},
    "lit": {"lr": 1e-3, "tune_image": "frozen", "cache_frozen": True, "min_crop_area": 1.0},
    "lora": {"lr": 1e-3, "tune_image": "lora", "tune_text": "lora", "lora_targets": "q,k,v,out,mlp"},
    "anchor weights": {"lr": 1e-3, "anchor_weights": 30.0},
    "anchor embeddings": {"lr": 1e-3, "anchor_embeddings": 3.0},
    "distillation": {"lr": 1e-3, "teacher": "start", "distillation": 1.0},
    REPLAY: {"lr": 1e-3, "epochs": REPLAY_EPOCHS},
}


def tune(start: str, method: str, seed: int, data: Path | None, folder: Path) -> dict[str, Any]:
    """Tune a start by a method, and measure it; the result is a row of `results.jsonl`."""
    path, about = path_of(start, folder), STARTS[start]
    old, new = parts_of(about.old, data, folder), parts_of(about.new, data, folder)
    model, row = load_start(path), {"start": start, "method": method, "seed": seed}
    if method == "start":
        return row | scores(model, new, old)
    small = {"epochs": 1, "batch_size": 16} if data is None else {"epochs": about.epochs, "batch_size": BATCH}
    settings = {**small, **METHODS[method], "seed": seed, "precision": "float32"}
    copies = about.epochs // REPLAY_EPOCHS
    if "teacher" in settings:
        settings["teacher"] = str(teacher_of(path, folder))
    run_dir = folder / "runs" / f"{start}-{method}-{seed}".replace(" ", "-").replace(",", "")
    shutil.rmtree(run_dir, ignore_errors=True)  # that of a stopped command
    images = with_replay([new.train] * copies, old.train, seed) if method == REPLAY else new.train
    before = reset_peak()
    trainer = miniclip.Trainer(
        model, images, config=TrainConfig(**settings), run_dir=run_dir, callbacks=[], device="cpu"
    )
    began = time.process_time()
    trainer.fit()
    row |= {"seconds": time.process_time() - began, "peak_mib": (peak() - before) / 2**20}
    adapter = run_dir / "last" / "adapter" / "adapter_model.safetensors"
    saved = adapter if adapter.exists() else run_dir / "last" / "model.safetensors"
    row |= {"saved_mb": saved.stat().st_size / 1e6, **scores(model.eval(), new, old)}
    if method in SWEPT:
        row["alphas"] = between(load_start(path), model, new, old)
    shutil.rmtree(run_dir)
    return row


def between(base: Any, model: Any, new: Any, old: Any) -> dict[float, dict[str, float]]:
    """Return the scores of the models between the start and a tuned one, by alpha.

    All are measured on the selection images, and the chosen one on the scored images too.
    """
    points = {alpha: select_scores(interpolate(base, model, alpha), new, old) for alpha in ALPHAS}
    ends = {0.0: select_scores(base, new, old), 1.0: select_scores(model, new, old)}
    chosen = chosen_alpha(points | ends)
    if chosen in points:
        points[chosen] |= val_scores(interpolate(base, model, chosen), new, old)
    return points


def chosen_alpha(points: dict[float, dict[str, float]]) -> float:
    """Return alpha by the rule of `miniclip interpolate`, on the selection images."""
    start = points[0.0]["old_select"]
    allowed = [alpha for alpha, point in points.items() if start - point["old_select"] <= ALLOWED_LOSS + 1e-9]
    return max(allowed, key=lambda alpha: (points[alpha]["new_select"], -alpha))


def with_replay(new: list[Any], old: Any, seed: int) -> Any:
    """Return the new images and as many of the old ones, or all of them if there are fewer."""
    order = torch.randperm(len(old), generator=generator("replay", seed)).tolist()
    return Concatenation([*new, Subset(old, order[: sum(map(len, new))])])


def teacher_of(path: Path, folder: Path) -> Path:
    """Return a checkpoint directory of the start that needs no other tokenizer."""
    teacher = folder / "teachers" / path.name
    if not (teacher / "config.json").exists():
        miniclip.save(load_start(path), teacher, overwrite=True)
    return teacher


def scores(model: Any, new: Any, old: Any) -> dict[str, float]:
    """Mean R@1 of both directions, in percent: on the scored images, and on those that alpha is chosen on."""
    return val_scores(model, new, old) | select_scores(model, new, old)


def val_scores(model: Any, new: Any, old: Any) -> dict[str, float]:
    return {"new": mean_recall(model, new.val), "old": mean_recall(model, old.val)}


def select_scores(model: Any, new: Any, old: Any) -> dict[str, float]:
    return {"new_select": mean_recall(model, new.select), "old_select": mean_recall(model, old.select)}


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
