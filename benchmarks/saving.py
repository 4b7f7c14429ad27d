"""Cost of a checkpoint: steps with a save, in the background or not, against steps without.

python -m benchmarks.saving [--preset bert_vit_small] [--batch 32] [--rounds 5]

A round is a few steps without a save, the same number with one in the background at the first of them, and the same
with one written at once; rounds are interleaved, figures are medians over them.
"""

import argparse
import os
import platform
import statistics
import tempfile
import time
from pathlib import Path

STEPS = 4  # steps of each kind in a round


def trainer_of(preset: str, batch: int, run_dir: Path):
    """Return a trainer of a fresh model on Shapes, at the start of an epoch."""
    import torch

    import miniclip
    from miniclip.data import Shapes

    data = Shapes("train", 8 * batch)
    tokenizer = miniclip.Tokenizer.train([caption for group in data.captions for caption in group], 2048)
    torch.manual_seed(0)
    model = miniclip.load(preset, pretrained=False, tokenizer=tokenizer)
    config = miniclip.TrainConfig(batch_size=batch, epochs=1000)
    return miniclip.Trainer(model, data, config=config, run_dir=run_dir, callbacks=[])


def batches(trainer):
    """Batches without end."""
    epoch = 0
    while True:
        yield from trainer.loader.epoch(epoch)
        epoch += 1


def seconds(trainer, source, save: bool, background: bool) -> float:
    """Some steps, with a save after the first of them; what is still being written at their end is not waited for."""
    trainer.checkpointer.writer.background = background
    start = time.perf_counter()
    for number in range(STEPS):
        trainer.train_step(next(source))
        trainer.log()
        if save and number == 0:
            trainer.save()
    taken = time.perf_counter() - start
    trainer.checkpointer.writer.wait()
    return taken


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="bert_vit_small")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    import torch

    with tempfile.TemporaryDirectory() as folder:
        trainer = trainer_of(options.preset, options.batch, Path(folder) / "run")
        source = batches(trainer)
        seconds(trainer, source, save=True, background=True)  # memory taken, threads started
        kinds = {"no save": (False, True), "in the background": (True, True), "at once": (True, False)}
        taken: dict[str, list[float]] = {kind: [] for kind in kinds}
        for _ in range(options.rounds):
            for kind, how in kinds.items():
                taken[kind].append(seconds(trainer, source, *how))
        size = (trainer.run_dir / "state.safetensors").stat().st_size / 2**20
        size += (trainer.run_dir / "last" / "model.safetensors").stat().st_size / 2**20
    print(
        f"{platform.machine()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}, torch {torch.__version__}; "
        f"{options.preset}, batch {options.batch}, {size:,.0f} MiB a save"
    )
    step = statistics.median(taken["no save"]) / STEPS
    print(f"a step: {1000 * step:.0f} ms")
    for kind in ("in the background", "at once"):
        extra = statistics.median(a - b for a, b in zip(taken[kind], taken["no save"], strict=True))
        print(f"a save {kind}: {1000 * extra:.0f} ms more, {extra / step:.2f} steps")


if __name__ == "__main__":
    main()
