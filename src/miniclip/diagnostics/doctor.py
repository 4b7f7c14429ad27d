"""The doctor: a callback that says each ailment when it is seen first, and again if it went away and came back.

It is said on the console and kept in `ailments.jsonl`. What it knows comes from the records alone, so a run that is
taken up goes on with the same knowledge: the history is gone through once more, silently.
"""

from __future__ import annotations

import json
import sys
import textwrap
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from miniclip.diagnostics.rules import AT_EVALUATIONS, AT_LOOKS, AT_START, AT_STEPS, Ailment, Facts, Rule, Seen
from miniclip.runs.history import Record
from miniclip.train.callbacks import Callback
from miniclip.train.step import by_tower
from miniclip.utils.atomic import write_atomically

FILE = "ailments.jsonl"
GONE_AFTER = 10  # times in a row that a rule finds nothing: then its ailment is over
WIDTH = 100  # columns of what is printed


class Doctor(Callback):
    """Looks at the records, and says what is wrong, what it means and what to try."""

    def on_start(self, trainer: Any) -> None:
        """Learn what a run that is taken up has shown so far; look at the captions."""
        self._path = trainer.run_dir / FILE
        self._seen = Seen(facts_of(trainer))
        self._clear: dict[str, int] = {}  # the ailments that the run has, and how often in a row they were not found
        _cut_after(self._path, trainer.step)
        records = [*trainer.history.steps, *trainer.history.skipped, *trainer.history.evaluations]
        began = self._apply(AT_START)
        for record in sorted(records, key=lambda record: (record["step"], "val_loss" in record)):
            self._take(record)
        if not records:
            self._say(0, began)

    def on_step(self, trainer: Any, record: Record) -> None:
        """Judge a step, and a look."""
        self._say(record["step"], self._take(record))

    def on_skip(self, trainer: Any, record: Record) -> None:
        """Judge a step that was not finite."""
        self._say(record["step"], self._take(record))

    def on_evaluate(self, trainer: Any, record: Record) -> None:
        """Judge an evaluation."""
        self._say(record["step"], self._take(record))

    def _take(self, record: Record) -> list[tuple[Ailment, str]]:
        """What is new with a record."""
        self._seen.add(record)
        if "val_loss" in record:
            return self._apply(AT_EVALUATIONS)
        return self._apply({**AT_STEPS, **(AT_LOOKS if "loss_nothing" in record else {})})

    def _apply(self, rules: dict[Rule, Ailment]) -> list[tuple[Ailment, str]]:
        new = []
        for rule, ailment in rules.items():
            found, had = rule(self._seen), ailment.name in self._clear
            if found is not None:
                if not had:
                    new.append((ailment, found))
                self._clear[ailment.name] = 0
            elif had:
                self._clear[ailment.name] += 1
                if self._clear[ailment.name] >= GONE_AFTER:
                    del self._clear[ailment.name]
        return new

    def _say(self, step: int, new: Iterable[tuple[Ailment, str]]) -> None:
        from tqdm import tqdm

        for ailment, found in new:
            tqdm.write(in_words(step, ailment, found), file=sys.stdout)  # above the bar, where there is one
            sys.stdout.flush()
            entry = {"step": step, "name": ailment.name, "warning": ailment.warning, "found": found}
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with self._path.open("a", encoding="utf-8") as file:
                file.write(json.dumps({**entry, "meaning": ailment.meaning, "advice": ailment.advice}) + "\n")


def in_words(step: int, ailment: Ailment, found: str) -> str:
    """An ailment as it is printed."""
    kind = "warning" if ailment.warning else "note"
    parts = [f"means: {ailment.meaning}", f"try:   {ailment.advice}"]
    return "\n".join(
        [
            f"{kind}, step {step}: {ailment.name}: {found}",
            *(textwrap.fill(part, WIDTH, initial_indent="  ", subsequent_indent=" " * 9) for part in parts),
        ]
    )


def facts_of(trainer: Any) -> Facts:
    """What the rules know of a run besides its records."""
    config, groups = trainer.config, dict(zip(("image", "text"), by_tower(trainer.model), strict=False))
    return Facts(
        steps=trainer.total_steps,
        warmup=round(config.warmup_fraction * trainer.total_steps),
        max_logit_scale=config.max_logit_scale,
        trained=tuple(side for side, group in groups.items() if any(p.requires_grad for p in group)),
        captions=trainer.train_captions,
        cut=trainer.truncated_captions,
    )


def _cut_after(path: Path, step: int) -> None:
    """Drop from the file what came after a state that a run is taken up from, and a line cut short."""
    if not path.exists():
        return
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    kept = "".join(line for line in lines if line.endswith("\n") and json.loads(line)["step"] <= step)
    write_atomically(path, lambda temporary: temporary.write_text(kept, encoding="utf-8"))
