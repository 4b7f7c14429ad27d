"""What the doctor costs: a step's looks, norms and rules, against the same training without them.

python -m benchmarks.doctor [--preset bert_vit_tiny] [--batch-size 128] [--log-every 10] [--rounds 15] [--device cpu]

Two things are measured. Directly: the seconds that a look's figures, the norms of the gradient by tower and the rules
take, as a share of `log_every` plain steps. And as a whole: stretches of `log_every` steps with all of it, without, and
once more without, in turns on the same model; the median ratio of neighbours. The second without against the first says
how much of that is the machine's noise.
The step is the trainer's own, on the drawn set, decoded beforehand.
"""

import argparse
import os
import platform
import statistics
import tempfile
import time
from pathlib import Path
from unittest import mock


def trainer_of(preset: str, batch_size: int, log_every: int, device: str, folder: Path):
    """A trainer of a fresh model on the drawn set."""
    import torch

    import miniclip
    from miniclip.cli.trainers import fresh_model

    data = miniclip.data.Shapes("train", max(2000, 4 * batch_size))
    config = miniclip.TrainConfig(epochs=1000, batch_size=batch_size, log_every=log_every, min_crop_area=1.0)
    torch.manual_seed(0)
    model = fresh_model(preset, data.captions, config)
    return miniclip.Trainer(model, data, config=config, run_dir=folder / "run", callbacks=[], device=device)


def wait(device) -> None:
    """Until the device is done."""
    import torch

    if device.type == "cuda":
        torch.cuda.synchronize()


def stretch(trainer, batches, doctor) -> float:
    """Seconds of `log_every` steps and the look after them, with a doctor or without."""
    from miniclip.train import step as steps

    without = [
        mock.patch.object(trainer.metrics, "batch_metrics", return_value={}),
        mock.patch.object(
            steps, "by_tower", lambda model: {"image": list(model.parameters()), "text": [], "rest": []}
        ),  # one norm, of all
    ]
    wait(trainer.model.device)
    start = time.perf_counter()
    for patch in [] if doctor else without:
        patch.start()
    for _ in range(trainer.config.log_every):
        trainer.train_step(next(batches))
    before = len(trainer.history.steps)
    trainer.log()
    if doctor:
        for record in trainer.history.steps[before:]:
            doctor.on_step(trainer, record)
    wait(trainer.model.device)
    seconds = time.perf_counter() - start
    mock.patch.stopall()
    return seconds


def endless(trainer):
    """Batches, epoch after epoch."""
    epoch = 0
    while True:
        yield from trainer.loader.epoch(epoch)
        epoch += 1


def parts(trainer, rounds: int) -> dict[str, float]:
    """Median seconds of each part, alone."""
    from miniclip.diagnostics.health import look

    from miniclip.diagnostics.doctor import facts_of
    from miniclip.diagnostics.rules import ALL, Seen
    from miniclip.runtime.fsdp import gradient_norm
    from miniclip.train.step import by_tower

    batch, out = trainer.metrics.last_batch, trainer.metrics.last_output
    model, config = trainer.model, trainer.config
    seen = Seen(facts_of(trainer))
    for record in trainer.history.steps[-100:]:
        seen.add(record)
    for parameter in model.parameters():
        parameter.grad = parameter.detach().clone()
    everything = list(model.parameters())

    def norms(groups) -> None:
        [gradient_norm(group, out.logit_scale) for group in groups]

    def seconds(function) -> float:
        times = []
        for _ in range(rounds):
            wait(model.device)
            start = time.perf_counter()
            function()
            wait(model.device)
            times.append(time.perf_counter() - start)
        return statistics.median(times)

    by_towers = seconds(lambda: norms(by_tower(model).values()))
    found = {
        "a look's figures": seconds(lambda: look(batch, out, 0, model.tokenizer, config.loss)),
        "the rules": seconds(lambda: [rule(seen) for rule in ALL]),
        "norms by tower": config.log_every * (by_towers - seconds(lambda: norms([everything]))),
    }
    model.zero_grad()
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="bert_vit_tiny")
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--log-every", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--device", default="")
    options = parser.parse_args()
    import torch

    from miniclip.diagnostics.doctor import Doctor

    device = options.device or ("cuda" if torch.cuda.is_available() else "cpu")
    with tempfile.TemporaryDirectory() as folder:
        trainer = trainer_of(options.preset, options.batch_size, options.log_every, device, Path(folder))
        trainer.model.train()
        doctor, batches = Doctor(), endless(trainer)
        doctor.on_start(trainer)
        for with_doctor in (doctor, None):  # libraries loaded, threads started
            stretch(trainer, batches, with_doctor)
        times: dict[str, list[float]] = {"with": [], "without": [], "without again": []}
        for number in range(options.rounds):
            names = list(times)
            for name in names[number % 3 :] + names[: number % 3]:
                times[name].append(stretch(trainer, batches, doctor if name == "with" else None))
        trainer.train_step(next(batches))
        costs = parts(trainer, options.rounds)
        precision = trainer.config.precision
    plain = statistics.median(times["without"])
    where = torch.cuda.get_device_name() if device == "cuda" else f"{platform.machine()}, {os.cpu_count()} cores"
    load = f", load {os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else ""
    print(
        f"{where}{load}, torch {torch.__version__}; {options.preset}, batch {options.batch_size}, {precision}, a look "
        f"every {options.log_every} steps; {options.rounds} rounds, medians\n"
    )
    print(f"a stretch of {options.log_every} steps takes {1e3 * plain:.1f} ms without\n")
    print("| part | ms a look | share |\n| --- | --- | --- |")
    for name, seconds in {**costs, "together": sum(costs.values())}.items():
        print(f"| {name} | {1e3 * seconds:.2f} | {seconds / plain:.2%} |")
    print()
    for name in ("with", "without again"):
        ratios = sorted(a / b - 1 for a, b in zip(times[name], times["without"], strict=True))
        low, high = ratios[len(ratios) // 4], ratios[-1 - len(ratios) // 4]
        print(f"whole stretches, {name} by without: {statistics.median(ratios):+.2%} (half: {low:+.2%} to {high:+.2%})")


if __name__ == "__main__":
    main()
