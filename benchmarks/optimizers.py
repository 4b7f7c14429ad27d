"""Muon beside AdamW: the share of a step that the optimizer takes, and recall after the same processor time.

python -m benchmarks.optimizers [--small] [--seconds 60] [--seeds 3] [--lr 1e-3 …]

The images are those of Shapes' training split; 500 of them are held out for the recall, and none of the validation or
test splits is read. Time is the processor's (`time.process_time`), without decoding and evaluation. Each optimizer has
a warmup and a decay of its own over the steps that fit into the time.
"""

from __future__ import annotations

import argparse
import statistics
import time
from typing import get_args

import torch

import miniclip
from miniclip.config import preset
from miniclip.data import Shapes
from miniclip.data.subset import Subset
from miniclip.evaluation import retrieval
from miniclip.inference.model import CLIPModel
from miniclip.runtime.memory import synthetic_step
from miniclip.train import TrainConfig
from miniclip.train.config import Optimizer
from miniclip.train.gradient_caching import cached_step
from miniclip.train.optimizer import build_optimizer, set_learning_rate
from miniclip.train.schedule import learning_rate
from miniclip.train.setup import build_loader
from miniclip.train.step_arguments import InputPreparation, loss_function, step_options

HELD_OUT = 500
OPTIMIZERS = get_args(Optimizer)


def share_of_step(name: str, optimizer: Optimizer, batch: int, rounds: int) -> tuple[float, float]:
    """Return the processor seconds of the optimizer's part of a step, and its share of the step."""
    model = CLIPModel(preset(name)).initialise().train()
    config = TrainConfig(optimizer=optimizer)
    update, trial = build_optimizer(model, config), synthetic_step(model)
    times: list[list[float]] = [[], []]
    for _ in range(rounds + 1):
        start = time.process_time()
        trial(batch)
        times[0].append(time.process_time() - start)
        for parameter in model.parameters():
            parameter.grad = torch.full_like(parameter, 1e-3).normal_()
        start = time.process_time()
        update.step()
        times[1].append(time.process_time() - start)
    backward, step = (statistics.median(part[1:]) for part in times)
    return step, step / (backward + step)


def recall_after(seconds: float, optimizer: Optimizer, lr: float, seed: int, size: int) -> tuple[int, float]:
    """Train `bert_vit_tiny` for some processor seconds; return the steps and the mean R@1 of both directions."""
    data = Shapes("train", size)
    train, held_out = Subset(data, range(size - HELD_OUT)), Subset(data, range(size - HELD_OUT, size))
    torch.manual_seed(seed)
    tokenizer = miniclip.Tokenizer.train([caption for group in train.captions for caption in group], 8192)
    model = miniclip.load("bert_vit_tiny", pretrained=False, tokenizer=tokenizer).train()
    config = TrainConfig(optimizer=optimizer, lr=lr, seed=seed, precision="float32")
    update, loss, options = (
        build_optimizer(model, config),
        loss_function(config, model),
        step_options(config, model.device),
    )
    loader, _ = build_loader(model, train, config)
    prepare, step, epoch, spent, total = InputPreparation(model, config, loader.batch_size), 0, 0, 0.0, None
    state = {key: value.clone() for key, value in model.state_dict().items()}
    while total is None or step < total:
        for batch in loader.epoch(epoch):
            start = time.process_time()
            rate = lr if total is None else learning_rate(step, peak=lr, warmup=config.warmup_steps(total), total=total)
            set_learning_rate(update, rate)
            cached_step(model, update, prepare(batch, step), loss, options)
            step, spent = step + 1, spent + time.process_time() - start
            if total is None and step == 10:  # the first steps are slower; they count for the estimate all the same
                total, step = max(20, int(seconds / (spent / 10))), 0
                model.load_state_dict(state)
                update = build_optimizer(model, config)
            if step == total:
                break
        epoch += 1
    loader.close()
    scores = retrieval(model.eval(), held_out)
    return step, (scores["text_to_image"]["R@1"] + scores["image_to_text"]["R@1"]) / 2


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--small", action="store_true", help="a check that everything works")
    parser.add_argument("--seconds", type=float, default=60.0, help="processor seconds of a run")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--lr", type=float, nargs="+", default=[5e-4, 1e-3, 2e-3])
    options = parser.parse_args()
    if options.small:
        options.seconds, options.seeds, options.lr = 0.5, 1, [1e-3]
    for name in ("bert_vit_tiny",) if options.small else ("bert_vit_tiny", "bert_vit_small"):
        for optimizer in OPTIMIZERS:
            step, share = share_of_step(name, optimizer, 8 if options.small else 128, 1 if options.small else 7)
            print(f"{name}, {optimizer}: {1000 * step:.1f} ms, {100 * share:.1f}% of a step of 128 pairs", flush=True)
    for lr in options.lr:
        for optimizer in OPTIMIZERS:
            size = 700 if options.small else 6000
            runs = [recall_after(options.seconds, optimizer, lr, seed, size) for seed in range(options.seeds)]
            scores = [score for _, score in runs]
            steps, spread = statistics.mean(step for step, _ in runs), max(scores) - min(scores)
            print(
                f"{optimizer}, lr {lr:g}: {steps:.0f} steps, mean R@1 {statistics.mean(scores):.1f} ± {spread / 2:.1f}",
                flush=True,
            )


if __name__ == "__main__":
    main()
