"""Lines at the end of a run: the change since its start, and commands to try next."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from miniclip.cli.evaluate import format_recalls
from miniclip.utils.formatting import format_command

HARM = (
    "no evaluation is better than the model before the first step: best/ is that model. Lower --lr, train for more "
    "epochs, or check that captions match images (--check)"
)


def comparison_with_start(first: Mapping[str, Any], best: Mapping[str, Any], val_data: Any) -> list[str]:
    """Return the recalls before the first step, and a warning if no later evaluation is better.

    Args:
        first: the first evaluation of a run.
        best: its best one.
        val_data: the validation data.

    Returns:
        No lines if the run was not evaluated before the first step.
    """
    if first["step"]:
        return []
    lines = [f"before the first step: {format_recalls(dict(first), val_data)}"]
    return [*lines, HARM] if best is first else lines


def next_commands(start: str | None, run: Path, finetuned: bool) -> str:
    """Return commands to try next.

    Args:
        start: the model that the run started from, if any.
        run: the run directory.
        finetuned: whether the run was started by `miniclip finetune`, which evaluates before the first step.
    """
    if start is None or not finetuned:
        return f"{format_command('miniclip', 'eval', run)}    or, in Python: miniclip.load({str(run)!r})"
    tuned = Path("models") / run.name
    return "\n      ".join(
        [
            f"{format_command('miniclip', 'eval', run, '--against', start)}    add --old-data DATA for what was lost",
            f"{format_command('miniclip', 'interpolate', start, run, '--alpha', '0.5', '-o', tuned)}",
            f"{format_command('miniclip', 'export', run, 'onnx')}    or, in Python: miniclip.load({str(run)!r})",
        ]
    )
