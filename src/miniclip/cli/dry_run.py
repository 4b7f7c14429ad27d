"""`miniclip train --dry-run`: every setting with its origin, and the plan of the run."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from miniclip.diagnostics.plan import plan_run
from miniclip.runtime import distributed
from miniclip.train.config import TrainConfig

RESOLVED = ("data", "model", "preset", "run_dir", "device", "replay")  # a run stores these in another spelling


@dataclasses.dataclass(frozen=True)
class Origins:
    """The sources of a run's settings.

    Attributes:
        resumed_run: the run that is resumed, or None.
        file: settings of the TOML file.
        flags: settings of the command line; they override the file.
        case: where other defaults than those of `TrainConfig` apply.
    """

    resumed_run: str | None
    file: Mapping[str, Any]
    flags: Mapping[str, Any]
    case: str

    def of(self, name: str, value: Any) -> str:
        """Return the source of a setting, and its original value if the run resolved it, as `auto`."""
        for source, settings in (("flag", self.flags), ("file", self.file)):
            if name in settings:
                original = settings[name]
                is_same = str(original) == str(value) or name in RESOLVED
                return source if is_same else f"{source}: {_format(original)}"
        if self.resumed_run:
            return "the run"
        default = getattr(TrainConfig(), name, value)
        if value == default or name not in TrainConfig().to_dict():
            return "default"
        return f"default: {_format(default)}" if default == "auto" else f"default {self.case}"


def format_plan(trainer: Any, origins: Origins) -> str:
    """Return the settings and the plan of a run that has not started."""
    settings = dict(trainer.about)
    settings |= {"device": str(trainer.model.device), "run_dir": str(trainer.run_dir)} | trainer.config.to_dict()
    rows = [(name, _format(value), origins.of(name, value)) for name, value in settings.items()]
    widths = [max(len(row[column]) for row in rows) for column in (0, 1)]
    ranks = f", {distributed.world_size()} ranks" if distributed.world_size() > 1 else ""
    verb = "continue in" if origins.resumed_run else "write to"
    return "\n".join(
        [
            "settings",
            *(f"  {name:<{widths[0]}}  {value:<{widths[1]}}  {origin}" for name, value, origin in rows),
            f"the run, on {trainer.model.device} in {trainer.config.precision}{ranks}",
            str(plan_run(trainer)),
            f"The run would {verb} {trainer.run_dir}. This was a dry run: nothing was written.",
        ]
    )


def _format(value: Any) -> str:
    return "unset" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
