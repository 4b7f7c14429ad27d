"""Recall after equal training time: miniclip and open_clip, trained from scratch on the same images.

python -m benchmarks learning [--sets emoji clipart shapes] [--budget 240 600 1200] [--seeds 5] [--out FOLDER]

Both train on the same images and captions with the same number of threads. The same code scores both: retrieval R@1 in
both directions, every image with all its captions.

A budget is in CPU seconds of the training process, so that other work on the machine does not decide: 240, 600 and 1200
are 2, 5 and 10 minutes of two cores. On a GPU it is the time of the steps. Decoding, compilation and evaluation are
apart. The learning rate is a function of the consumed part of the budget, and falls to 0 at its end.

Settings are chosen on a tuning split, which is drawn from the training images. `--tune` chooses those of open_clip, one
after the other. `python -m benchmarks.learning.trials` tries those of a recipe. Each run is added to `runs.jsonl` in
the folder, and a stopped command continues from it.
"""

import argparse
import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from benchmarks.harness import describe_machine
from benchmarks.learning import open_clip_system, sets
from benchmarks.learning.records import Runs, final
from benchmarks.learning.report import Comparison, write
from benchmarks.learning.run import Spec
from miniclip import recipes
from miniclip.cli.trainers import read_toml

SYSTEMS = ("miniclip", "open_clip")
SMALL_BUDGET = 2.0  # seconds, with which nothing is learned
RUN_SETTINGS = ("data", "run_dir", "device", "epochs", "eval_every", "seed")  # the measure sets these of a recipe


def main(arguments: Sequence[str] | None = None) -> None:
    options = parse(arguments)
    machine = describe_machine()
    runs = Runs(options.out, options.data, machine)
    settings = {"miniclip": recipe_settings(options.recipe)}
    comparisons = []
    for name in usable(options.sets, options.data):
        for budget in options.budget:
            settings["open_clip"] = tuned(runs, options, name, budget)
            specs = [
                spec_of(options, name, system, settings[system], seed, budget)
                for seed in range(options.seeds)
                for system in options.systems  # in turns, so that other work on the machine meets both
            ]
            with ThreadPoolExecutor(options.jobs) as pool:
                records = list(pool.map(runs.result, specs))
            done = {
                system: [record for record in records if record["spec"]["system"] == system]
                for system in options.systems
            }
            comparisons.append(Comparison(name, budget, done))
            table = write(comparisons, machine, options.out)  # after each, so that a stopped command has a table
    if not comparisons:
        raise SystemExit("no set can be used: --sets shapes needs no files")
    print(table)


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        "python -m benchmarks learning", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sets", nargs="+", choices=sets.SETS, default=["emoji", "clipart"])
    parser.add_argument("--data", type=Path, default=Path("../shared/data"), help="folder that holds the sets")
    parser.add_argument("--budget", nargs="+", type=float, default=[240.0], metavar="SECONDS")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--systems", nargs="+", choices=SYSTEMS, default=list(SYSTEMS))
    parser.add_argument("--recipe", default="small-set", help="of miniclip: a name of `miniclip recipes`, or a file")
    parser.add_argument(
        "--tune",
        type=float,
        nargs="?",
        const=0.0,
        metavar="SECONDS",
        help="choose open_clip's settings on the tuning split first, with runs of SECONDS (default: the budget)",
    )
    parser.add_argument(
        "--tune-set", choices=sets.SETS, help="dataset on which they are chosen (default: each its own)"
    )
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=0, help="of torch, for all systems (default: torch's choice)")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time, each a process; see --threads")
    parser.add_argument("--small", action="store_true", help="seconds, two seeds, few images: everything works")
    parser.add_argument("--out", type=Path, default=Path("learning"), help="folder for the runs, the table, the curves")
    options = parser.parse_args(arguments)
    if options.small:
        options.sets, options.budget, options.seeds = ["shapes"], [SMALL_BUDGET], 2
    return options


def usable(names: Sequence[str], folder: Path) -> list[str]:
    """Return the sets that are here, and print why the others are skipped."""
    reasons = {name: sets.why_missing(name, folder) for name in names}
    for name, reason in reasons.items():
        if reason:
            print(f"skipped {name}: {reason}", flush=True)
    return [name for name, reason in reasons.items() if reason is None]


def recipe_settings(recipe: str) -> dict[str, Any]:
    """Return the settings of a recipe or a file that the measure does not set itself."""
    settings = read_toml(recipe if recipe.endswith(".toml") else str(recipes.path_of(recipe)))
    return {name: value for name, value in settings.items() if name not in RUN_SETTINGS}


def spec_of(
    options: argparse.Namespace, name: str, system: str, settings: dict[str, Any], seed: int, budget: float
) -> Spec:
    """Return a run of the claim."""
    points = 2 if options.small else 10
    return Spec(
        name, "report", system, settings, seed, budget, options.device, options.threads, points, bool(options.small)
    )


def tuned(runs: Runs, options: argparse.Namespace, name: str, budget: float) -> dict[str, Any]:
    """Return open_clip's settings for a set and a budget: those that `--tune` has chosen in this folder, or its own.

    One setting after the other is chosen, by one seed on the tuning split.
    """
    path = options.out / "tuned.json"
    chosen: dict[str, dict[str, Any]] = json.loads(path.read_text()) if path.exists() else {}
    name, budget = options.tune_set or name, options.tune or budget
    key = f"{name}, {budget:g} s, {options.device}"
    if key in chosen or options.tune is None or "open_clip" not in options.systems:
        return chosen.get(key, open_clip_system.SETTINGS)
    settings = dict(open_clip_system.SETTINGS)
    for setting, candidates in open_clip_system.CANDIDATES.items():
        if setting == "compile" and options.device == "cpu":  # compiling takes longer than a budget there
            continue
        if setting == "patch_dropout" and settings["size"] == "resnet":  # it has no patches
            continue
        results = {}
        for candidate in candidates:
            trial = {**settings, setting: candidate}
            spec = Spec(
                name, "tuning", "open_clip", trial, 0, budget, options.device, options.threads, 2, options.small
            )
            results[candidate] = final(runs.result(spec))
        settings[setting] = max(results, key=lambda candidate: results[candidate])
    path.write_text(json.dumps({**chosen, key: settings}, indent=1) + "\n")
    print(f"tuned for {key}: {settings}", flush=True)
    return settings


if __name__ == "__main__":
    main()
