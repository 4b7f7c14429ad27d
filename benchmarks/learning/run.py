"""One run: a system trains for a budget, and is scored on the way. `python -m benchmarks.learning.run SPEC RESULT`.

The same code scores all systems: R@1 in both directions, every image with all its captions, in float32.
"""

import dataclasses
import json
import statistics
import sys
from pathlib import Path
from typing import Any

import torch

from benchmarks.learning import sets
from benchmarks.learning.clock import Clock
from benchmarks.learning.systems import Start, System, build
from miniclip.evaluation.retrieval import LazyImages, embed, recalls


@dataclasses.dataclass(frozen=True)
class Spec:
    """A run, as its record names it.

    Attributes:
        set: one of `sets.SETS`.
        split: "report" for a claim, "tuning" for the choice of settings.
        system: "miniclip" or "open_clip".
        settings: of the system.
        seed: of weights, order, captions and augmentation.
        budget: seconds of the clock.
        device: "cpu" or "cuda".
        threads: of torch; 0: as torch chooses.
        points: of the curve; the last one is the result.
        small: few images, to check that everything works.
    """

    set: str
    split: sets.Split
    system: str
    settings: dict[str, Any]
    seed: int
    budget: float
    device: str = "cpu"
    threads: int = 0
    points: int = 10
    small: bool = False


def run(spec: Spec, folder: Path) -> dict[str, Any]:
    """Train and score; return the record of the run."""
    torch.set_num_threads(spec.threads or torch.get_num_threads())  # fixed, even if an import changes it
    task, device = sets.load(spec.set, folder, spec.split, spec.small), torch.device(spec.device)
    system = build(spec.system, Start(task.train, spec.settings, spec.seed, device))
    system.warm_up()
    clock, curve, steps = Clock(device), [], 0
    batches = system.batches()
    for point in range(1, spec.points + 1):
        while clock.seconds < spec.budget * point / spec.points:
            train_one(system, batches, clock, spec.budget)
            steps += 1
        curve.append({"seconds": round(clock.seconds, 2), "steps": steps, **score(system, task.scored)})
    images = {"train": len(task.train), "scored": len(task.scored)}
    return {
        "spec": dataclasses.asdict(spec),
        "pairs": steps * system.batch_size,
        "images": images,
        "facts": system.facts,
        "curve": curve,
    }


def train_one(system: System, batches: Any, clock: Clock, budget: float) -> None:
    """Make one step, with the making of its batch on the clock on a CPU."""
    progress = clock.seconds / budget
    if not clock.counts_batches:
        batch = next(batches)
        with clock.counting():
            system.step(batch, progress)
        return
    with clock.counting():
        system.step(next(batches), progress)


def score(system: System, data: sets.Pictures) -> dict[str, float]:
    """Return R@1 in both directions, and their mean R@1 and R@5, in percent."""
    with system.encoder() as encoder:
        result = recalls(embed(encoder, data.captions, LazyImages(data)), ks=(1, 5))
    values = {way: recall["R@1"] for way, recall in result.items()}
    values |= {f"mean_R@{k}": statistics.mean(recall[f"R@{k}"] for recall in result.values()) for k in (1, 5)}
    return {name: round(value, 2) for name, value in values.items()}


def main() -> None:
    written = json.loads(Path(sys.argv[1]).read_text())
    record = run(Spec(**written["spec"]), Path(written["folder"]))
    Path(sys.argv[2]).write_text(json.dumps(record))


if __name__ == "__main__":
    main()
