"""Changes of a recipe, one at a time, on the tuning split: `python -m benchmarks.learning.trials CHANGE […]`.

python -m benchmarks.learning.trials "batch_size=64" "model.image.patch_size=16 patch_dropout=0.0" --budget 120

A change is one or more settings, as in a recipe's file; `model.` begins those of the table `[model]`. Each is compared
with the recipe as it is: mean and spread over the seeds, and the p-value of the difference. Runs are kept as those of
`python -m benchmarks learning` are, and `--jobs 2 --threads 1` makes two at a time, with one thread each.
"""

import argparse
import copy
import tomllib
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from benchmarks.harness import describe_machine
from benchmarks.learning import sets
from benchmarks.learning.command import SYSTEMS, recipe_settings
from benchmarks.learning.open_clip_system import SETTINGS
from benchmarks.learning.records import Runs, final
from benchmarks.learning.run import Spec
from benchmarks.learning.statistics_of_runs import mean_and_spread, p_value

PLAIN = "the recipe"


def main(arguments: Sequence[str] | None = None) -> None:
    options = parse(arguments)
    runs = Runs(options.out, options.data, describe_machine())
    base = recipe_settings(options.recipe) if options.system == "miniclip" else SETTINGS
    settings = {PLAIN: base} | {change: with_change(base, change) for change in options.changes}
    specs = {
        (change, seed): spec_of(options, settings[change], seed)
        for seed in range(options.seeds)
        for change in settings  # in turns, so that other work on the machine meets all of them
    }
    with ThreadPoolExecutor(options.jobs) as pool:
        finals = dict(zip(specs, map(final, pool.map(runs.result, specs.values())), strict=True))
    print(table({change: [finals[change, seed] for seed in range(options.seeds)] for change in settings}))


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("changes", nargs="*", metavar="CHANGE")
    parser.add_argument("--recipe", default="small-set")
    parser.add_argument("--system", choices=SYSTEMS, default="miniclip", help="open_clip: changes of its settings")
    parser.add_argument("--set", choices=sets.SETS, default="emoji")
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--budget", type=float, default=120.0, metavar="SECONDS")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time, each a process; see --threads")
    parser.add_argument("--small", action="store_true")
    parser.add_argument("--out", type=Path, default=Path("learning"))
    return parser.parse_args(arguments)


def table(results: Mapping[str, Sequence[float]]) -> str:
    """Return a row a change, in Markdown: mean and spread, and the difference from the first row with its p-value."""
    rows = ["| change | mean R@1 | difference | p-value |", "| --- | --- | --- | --- |"]
    plain = results[PLAIN]
    for change, values in results.items():
        mean, spread = mean_and_spread(values)
        p = None if change == PLAIN else p_value(values, plain)
        difference = "" if change == PLAIN else f"{mean - mean_and_spread(plain)[0]:+.1f}"
        rows.append(f"| `{change}` | {mean:.1f} ± {spread:.1f} | {difference} | {'' if p is None else f'{p:.2g}'} |")
    return "\n".join(rows)


def spec_of(options: argparse.Namespace, settings: dict[str, Any], seed: int) -> Spec:
    return Spec(
        options.set,
        "tuning",
        options.system,
        settings,
        seed,
        options.budget,
        options.device,
        options.threads,
        points=2,
        small=options.small,
    )


def with_change(settings: dict[str, Any], change: str) -> dict[str, Any]:
    """Return settings with those of a change, as `lr=1e-3 model.text.layers=2`."""
    changes = tomllib.loads("\n".join(change.split()))
    changes = {"architecture" if name == "model" else name: value for name, value in changes.items()}
    return merged(settings, changes)


def merged(values: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """Return nested dicts, the second one over the first."""
    result = copy.deepcopy(values)
    for name, change in changes.items():
        result[name] = merged(result.get(name, {}), change) if isinstance(change, dict) else change
    return result


if __name__ == "__main__":
    main()
