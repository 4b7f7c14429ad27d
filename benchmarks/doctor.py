"""Cost of the doctor: batch metrics, gradient norms by tower and rules, against the same training without them.

python -m benchmarks.doctor [--preset bert_vit_tiny] [--batch-size 128] [--log-every 10] [--rounds 15] [--device cpu]

There are two measurements. The first times each part by itself, as a fraction of `log_every` plain steps. The second
times intervals of `log_every` steps with all parts, without them, and without them again, in turns on the same model,
and reports the median ratio of neighbours. The ratio of the two intervals without them is the noise of the machine.
The step is the trainer's, on synthetic images that were decoded beforehand.
"""

import argparse
import os
import platform
import statistics
import tempfile
import time
from pathlib import Path
from unittest import mock

import torch

import miniclip
from miniclip.cli.trainers import fresh_model
from miniclip.diagnostics.batch_metrics import batch_metrics
from miniclip.diagnostics.doctor import Doctor, run_facts
from miniclip.diagnostics.rules import ALL_RULES
from miniclip.diagnostics.rules.window import RunWindow
from miniclip.runtime.fsdp import gradient_norm
from miniclip.train import step as step_module
from miniclip.train.step import by_tower

VARIANTS = ("with", "without", "without again")


def make_trainer(options, folder: Path):
    """A trainer of a fresh model on synthetic images."""
    data = miniclip.data.Shapes("train", max(2000, 4 * options.batch_size))
    config = miniclip.TrainConfig(
        epochs=1000, batch_size=options.batch_size, log_every=options.log_every, min_crop_area=1.0
    )
    torch.manual_seed(0)
    model = fresh_model(options.preset, data.captions, config)
    return miniclip.Trainer(model, data, config=config, run_dir=folder / "run", callbacks=[], device=options.device)


def synchronize(device) -> None:
    """Wait for the device."""
    if device.type == "cuda":
        torch.cuda.synchronize()


def endless_batches(trainer):
    """Batches, epoch after epoch."""
    epoch = 0
    while True:
        yield from trainer.loader.epoch(epoch)
        epoch += 1


def single_group(model):
    """All parameters as one group, for a single gradient norm."""
    return {"image": list(model.parameters()), "text": [], "rest": []}


def time_interval(trainer, batches, doctor) -> float:
    """Seconds of `log_every` steps and the reading of their metrics, with or without (None) a doctor."""
    patches = [
        mock.patch.object(trainer.metrics, "batch_metrics", return_value={}),
        mock.patch.object(step_module, "by_tower", single_group),
    ]
    synchronize(trainer.model.device)
    start = time.perf_counter()
    for patch in [] if doctor else patches:
        patch.start()
    for _ in range(trainer.config.log_every):
        trainer.train_step(next(batches))
    count = len(trainer.history.steps)
    trainer.log()
    if doctor:
        for record in trainer.history.steps[count:]:
            doctor.on_step(trainer, record)
    synchronize(trainer.model.device)
    seconds = time.perf_counter() - start
    mock.patch.stopall()
    return seconds


def median_seconds(function, rounds: int, device) -> float:
    """Median seconds of a call."""
    times = []
    for _ in range(rounds):
        synchronize(device)
        start = time.perf_counter()
        function()
        synchronize(device)
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def time_parts(trainer, rounds: int) -> dict[str, float]:
    """Median seconds of each part by itself."""
    batch, output = trainer.metrics.last_batch, trainer.metrics.last_output
    model, config = trainer.model, trainer.config
    window = RunWindow(run_facts(trainer))
    for record in trainer.history.steps[-100:]:
        window.add(record)
    for parameter in model.parameters():
        parameter.grad = parameter.detach().clone()

    def norms(groups) -> None:
        for group in groups.values():
            gradient_norm(group, output.logit_scale)

    norms_by_tower = median_seconds(lambda: norms(by_tower(model)), rounds, model.device)
    single_norm = median_seconds(lambda: norms({"all": list(model.parameters())}), rounds, model.device)
    model.zero_grad()
    return {
        "batch metrics": median_seconds(
            lambda: batch_metrics(batch, output, 0, model.tokenizer, config), rounds, model.device
        ),
        "rules": median_seconds(lambda: [rule.detect(window) for rule in ALL_RULES], rounds, model.device),
        "norms by tower": config.log_every * (norms_by_tower - single_norm),
    }


def time_intervals(trainer, rounds: int) -> dict[str, list[float]]:
    """Seconds of the intervals of each variant, in turns."""
    doctor, batches = Doctor(), endless_batches(trainer)
    doctor.on_start(trainer)
    for warmup in (doctor, None):
        time_interval(trainer, batches, warmup)
    times: dict[str, list[float]] = {variant: [] for variant in VARIANTS}
    for number in range(rounds):
        for variant in VARIANTS[number % 3 :] + VARIANTS[: number % 3]:
            times[variant].append(time_interval(trainer, batches, doctor if variant == "with" else None))
    trainer.train_step(next(batches))
    return times


def report(options, precision: str, times: dict[str, list[float]], parts: dict[str, float]) -> None:
    """Print the tables."""
    plain = statistics.median(times["without"])
    is_gpu = options.device.startswith("cuda")
    machine = torch.cuda.get_device_name() if is_gpu else f"{platform.machine()}, {os.cpu_count()} cores"
    load = f", load {os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else ""
    print(
        f"{machine}{load}, torch {torch.__version__}; {options.preset}, batch {options.batch_size}, {precision}, "
        f"metrics every {options.log_every} steps; medians of {options.rounds} rounds\n"
    )
    print(f"an interval of {options.log_every} steps takes {1e3 * plain:.1f} ms without the doctor\n")
    print("| part | ms per interval | fraction |\n| --- | --- | --- |")
    for name, seconds in {**parts, "total": sum(parts.values())}.items():
        print(f"| {name} | {1e3 * seconds:.2f} | {seconds / plain:.2%} |")
    print()
    for variant in ("with", "without again"):
        ratios = sorted(a / b - 1 for a, b in zip(times[variant], times["without"], strict=True))
        low, high = ratios[len(ratios) // 4], ratios[-1 - len(ratios) // 4]
        print(f"intervals, {variant} by without: {statistics.median(ratios):+.2%} (quartiles {low:+.2%}, {high:+.2%})")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="bert_vit_tiny")
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--log-every", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        trainer = make_trainer(options, Path(folder))
        trainer.model.train()
        times = time_intervals(trainer, options.rounds)
        parts = time_parts(trainer, options.rounds)
        report(options, trainer.config.precision, times, parts)


if __name__ == "__main__":
    main()
