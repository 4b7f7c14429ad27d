"""Costs at the shapes of the reference system, in processor seconds of one thread.

- An epoch of full fine-tuning, and one with a frozen image tower that is encoded once.
- Training steps and memory of full fine-tuning, of LoRA, and of LoRA by peft on transformers' CLIPModel with the same
  weights, adapters and batches.
"""

import shutil
import tempfile
import time
import warnings
from collections.abc import Callable
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import miniclip
from benchmarks import baselines
from benchmarks.finetuning.methods import peak, reset_peak
from benchmarks.steps import trim
from miniclip.cli.trainers import fresh_model
from miniclip.config import CLIPConfig, preset
from miniclip.data import Shapes
from miniclip.finetuning import add_lora, save_adapter
from miniclip.hub import fresh
from miniclip.runtime.memory import checkpoint_blocks
from miniclip.train import TrainConfig
from miniclip.train.optimizer import build_optimizer
from miniclip.train.step import Inputs, plain_step
from miniclip.train.step_arguments import loss_function, step_options

RANK = 4
LR = 1e-3
STEPS = 3  # timed, after the first one


def measurements(folder: Path, small: bool) -> dict[str, Callable[[], dict[str, Any]]]:
    """Return the measurements by name; each must run in a process of its own."""
    system, images, batch = ("bert_vit_tiny", 16, 8) if small else ("bert_vit_b_16", 32, 8)
    config = preset("vit_b_16")
    if small:
        config = config.replace_image(image_size=32, patch_size=16, width=128, layers=2, heads=2)
        config = config.replace_text(width=128, layers=2, heads=2)
    reference = folder / "reference"
    return {
        f"epoch of {system}": partial(frozen_tower, system, images, batch),
        "reference": partial(
            write_reference, config, reference
        ),  # in a process of its own, whose memory does not count
        "full, miniclip": partial(steps, "full", config, reference, batch),
        "LoRA, miniclip": partial(steps, "lora", config, reference, batch),
        "LoRA, peft": partial(steps, "peft", config, reference, batch),
        "full, gradient checkpointing": partial(steps, "full", config, reference, batch, checkpointed=True),
        "LoRA, gradient checkpointing": partial(steps, "lora", config, reference, batch, checkpointed=True),
    }


def frozen_tower(system: str, images: int, batch: int) -> dict[str, Any]:
    """Seconds of an epoch of full fine-tuning, of one with a frozen image tower, and of encoding this tower once."""
    data = Shapes("train", images, image_size=preset(system).image.image_size)
    full = epoch_seconds(system, data, TrainConfig(batch_size=batch, precision="float32"))
    settings = {"tune_image": "frozen", "cache_frozen": True, "min_crop_area": 1.0}
    frozen = epoch_seconds(system, data, TrainConfig(batch_size=batch, precision="float32", **settings))
    return {"full": full["epoch"], "frozen": frozen["epoch"], "encode once": frozen["first"], "pairs": images} | {
        "times as fast": full["epoch"] / frozen["epoch"]
    }


def epoch_seconds(system: str, data: Shapes, config: TrainConfig) -> dict[str, float]:
    """Seconds of an epoch, and of the first step before it; with a frozen tower, the tower is encoded there."""
    model, seconds = fresh_model(system, data.captions, config), {}
    with tempfile.TemporaryDirectory() as folder:
        trainer = miniclip.Trainer(model, data, config=config, run_dir=Path(folder) / "run", callbacks=[], device="cpu")
        trainer.modes.enter()
        for name, count in (("first", 1), ("epoch", None)):
            began = time.process_time()
            for batch in islice(trainer.loader.epoch(0), count):
                trainer.train_step(batch)
            seconds[name] = time.process_time() - began
        trainer.loader.close()
    return seconds


def steps(kind: str, config: CLIPConfig, folder: Path, batch: int, checkpointed: bool = False) -> dict[str, Any]:
    """Losses, pairs per processor second, and memory of training steps with the model, in MiB."""
    generator = torch.Generator().manual_seed(0)
    side = config.image.image_size
    pixels, tokens = torch.randn(batch, 3, side, side, generator=generator), baselines.random_captions(batch)
    if kind == "peft":
        import open_clip  # noqa: F401  # the libraries' code does not count as memory
        import peft  # noqa: F401
        import transformers  # noqa: F401
    before = reset_peak()
    step, trained = peft_step(folder) if kind == "peft" else miniclip_step(folder, kind == "lora", checkpointed)
    losses, seconds = [float(step(pixels, tokens))], 0.0
    for _ in range(STEPS):
        began = time.process_time()
        losses.append(float(step(pixels, tokens)))
        seconds += time.process_time() - began
    rate = STEPS * batch / seconds
    return {"losses": losses, "rate": rate, "peak_mib": (peak() - before) / 2**20, "trained": trained}


def write_reference(config: CLIPConfig, folder: Path) -> dict[str, Any]:
    """Write a model with random weights, for miniclip and for transformers, and an adapter of it."""
    shutil.rmtree(folder, ignore_errors=True)
    torch.manual_seed(0)
    model = fresh(config).eval()
    miniclip.save(model, folder / "miniclip")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # transformers crops images differently; these inputs are cropped
        miniclip.export(model, folder / "transformers", layout="transformers")
    save_adapter(add_lora(model, RANK, RANK), folder / "adapter")
    return {}


def miniclip_step(folder: Path, lora: bool, checkpointed: bool) -> tuple[Callable[[Tensor, Tensor], Tensor], int]:
    """Return the trainer's step, and the number of trained weights."""
    model = miniclip.load(folder / "miniclip")
    if lora:
        miniclip.finetuning.load_adapter(model, folder / "adapter")
        add_lora(model, RANK, RANK)
    checkpoint_blocks(model, checkpointed)
    config = TrainConfig(lr=LR if lora else 1e-5, weight_decay=0.0, precision="float32")
    optimizer, loss = build_optimizer(model.train(), config), loss_function(config, model)
    options = step_options(config, model.device)

    def step(pixels: Tensor, tokens: Tensor) -> Tensor:
        return plain_step(model, optimizer, Inputs(pixels, trim(tokens)), loss, options).metrics["loss"]

    return step, trained_weights(model)


def peft_step(folder: Path) -> tuple[Callable[[Tensor, Tensor], Tensor], int]:
    """Return a step of transformers' model with peft's adapters and open_clip's loss."""
    from open_clip.loss import ClipLoss
    from peft import PeftModel

    contender, loss_of = baselines.transformers(folder / "transformers"), ClipLoss()
    contender.model.logit_scale.requires_grad_(False)
    PeftModel.from_pretrained(contender.model, folder / "adapter", is_trainable=True)  # in place
    trained = [weight for weight in contender.model.train().parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=LR, betas=(0.9, 0.98), eps=1e-6, weight_decay=0.0)

    def step(pixels: Tensor, tokens: Tensor) -> Tensor:
        loss = loss_of(*contender.pair(pixels, tokens))
        loss.backward()
        nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        return loss.detach()

    return step, trained_weights(contender.model)


def trained_weights(model: nn.Module) -> int:
    return sum(weight.numel() for weight in model.parameters() if weight.requires_grad)
