"""One fine-tuning run: a start, a method and a seed; scores on new and old images, time, memory and size."""

import os
import shutil
import time
from pathlib import Path
from typing import Any

import torch

import miniclip
from benchmarks.finetuning.starts import STARTS, load_start, parts_of
from miniclip.evaluation import retrieval
from miniclip.finetuning.interpolation import interpolate
from miniclip.train import TrainConfig

ALPHAS = tuple(step / 10 for step in range(1, 10))
EPOCHS = 4
BATCH = 128
# settings besides the common ones; "teacher" is the start
METHODS: dict[str, dict[str, Any]] = {
    "full": {"lr": 1e-3},
    "last-2": {"lr": 1e-3, "tune_image": "last-2", "tune_text": "last-2"},
    "lit": {"lr": 1e-3, "tune_image": "frozen", "cache_frozen": True, "min_crop_area": 1.0},
    "lora": {"lr": 1e-3, "tune_image": "lora", "tune_text": "lora", "lora_targets": "q,k,v,out,mlp"},
    "anchor weights": {"lr": 1e-3, "anchor_weights": 30.0},
    "anchor embeddings": {"lr": 1e-3, "anchor_embeddings": 3.0},
    "distillation": {"lr": 1e-3, "teacher": "start", "distillation": 1.0},
}


def tune(start: str, method: str, seed: int, data: Path | None, folder: Path) -> dict[str, Any]:
    """Tune a start by a method, and measure it; the result is a row of `results.jsonl`."""
    path, (old_name, new_name) = folder / "starts" / start.replace(" ", "-").replace(",", ""), STARTS[start]
    old, new = parts_of(old_name, data, folder), parts_of(new_name, data, folder)
    model, row = load_start(path), {"start": start, "method": method, "seed": seed}
    if method == "start":
        return row | scores(model, new, old)
    small = {"epochs": 1, "batch_size": 16} if data is None else {"epochs": EPOCHS, "batch_size": BATCH}
    settings = {**small, **METHODS[method], "seed": seed, "precision": "float32"}
    if "teacher" in settings:
        settings["teacher"] = str(teacher_of(path, folder))
    run_dir = folder / "runs" / f"{start}-{method}-{seed}".replace(" ", "-").replace(",", "")
    shutil.rmtree(run_dir, ignore_errors=True)  # that of a stopped command
    before = reset_peak()
    trainer = miniclip.Trainer(
        model, new.train, config=TrainConfig(**settings), run_dir=run_dir, callbacks=[], device="cpu"
    )
    began = time.process_time()
    trainer.fit()
    row |= {"seconds": time.process_time() - began, "peak_mib": (peak() - before) / 2**20}
    adapter = run_dir / "last" / "adapter" / "adapter_model.safetensors"
    saved = adapter if adapter.exists() else run_dir / "last" / "model.safetensors"
    row |= {"saved_mb": saved.stat().st_size / 1e6, **scores(model.eval(), new, old)}
    if method == "full":
        base = load_start(path)
        row["alphas"] = {alpha: scores(interpolate(base, model, alpha), new, old) for alpha in ALPHAS}
    shutil.rmtree(run_dir)
    return row


def teacher_of(path: Path, folder: Path) -> Path:
    """Return a checkpoint directory of the start that needs no other tokenizer."""
    teacher = folder / "teachers" / path.name
    if not (teacher / "config.json").exists():
        miniclip.save(load_start(path), teacher, overwrite=True)
    return teacher


def scores(model: Any, new: Any, old: Any) -> dict[str, float]:
    """Mean R@1 of both directions, in percent: on validation images, and on those that alpha is chosen on."""
    return {
        "new": mean_recall(model, new.val),
        "old": mean_recall(model, old.val),
        "new_select": mean_recall(model, new.select),
        "old_select": mean_recall(model, old.select),
    }


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
