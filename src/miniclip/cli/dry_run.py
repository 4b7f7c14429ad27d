"""`miniclip train --dry-run`: every setting and where it comes from, and what the run would be and cost."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from miniclip.diagnostics.plan import plan_run
from miniclip.runtime import distributed
from miniclip.train.config import TrainConfig


def describe(trainer: Any, resumed: str | None, file: Mapping[str, Any], flags: Mapping[str, Any]) -> str:
    """What a trainer would do.

    Args:
        trainer: which is not started.
        resumed: the run that it would take up, or None.
        file: what the TOML file sets.
        flags: what the command line sets; they win.
    """
    config, about = trainer.config.to_dict(), dict(trainer.about)
    given = {"device": str(trainer.model.device), "run_dir": str(trainer.run_dir)}
    rows = [
        (name, _shown(value), _origin(name, value, resumed, file, flags)) for name, value in {**about, **given}.items()
    ]
    rows += [(name, _shown(value), _origin(name, value, resumed, file, flags)) for name, value in config.items()]
    widths = [max(len(row[column]) for row in rows) for column in (0, 1)]
    ranks = f", {distributed.world_size()} ranks" if distributed.world_size() > 1 else ""
    verb = "go on in" if resumed else "write to"
    return "\n".join(
        [
            "settings",
            *(f"  {name:<{widths[0]}}  {value:<{widths[1]}}  {origin}" for name, value, origin in rows),
            f"the run, on {trainer.model.device} in {trainer.config.precision}{ranks}",
            str(plan_run(trainer)),
            f"It would {verb} {trainer.run_dir}. This was a dry run: nothing was written.",
        ]
    )


def _shown(value: Any) -> str:
    return "unset" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def _origin(name: str, value: Any, resumed: str | None, file: Mapping[str, Any], flags: Mapping[str, Any]) -> str:
    """Who says so; and what was said, where the run makes something else of it (`auto`)."""
    for source, settings in (("flag", flags), ("file", file)):
        if name in settings:
            said = settings[name]
            same = said == value or str(said) == str(value) or name in ("data", "model", "preset", "run_dir", "device")
            return source if same else f"{source}: {_shown(said)}"
    if resumed:
        return "the run"
    default = getattr(TrainConfig(), name, value)
    if value == default or name not in TrainConfig().to_dict():
        return "default"
    return f"default: {_shown(default)}" if default == "auto" else "default for this set"
