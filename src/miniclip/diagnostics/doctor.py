"""Callback that applies the rules to the metrics of a run and reports each problem once."""

from __future__ import annotations

import json
import os
import sys
import textwrap
from collections.abc import Iterable
from pathlib import Path

import torch

from miniclip.diagnostics.rules import BATCH_RULES, EVALUATION_RULES, START_RULES, STEP_RULES
from miniclip.diagnostics.rules.window import Rule, RunFacts, RunWindow
from miniclip.runs.history import Record
from miniclip.runtime import distributed
from miniclip.runtime.cores import available_cores
from miniclip.train.callbacks import Callback, TrainerProtocol
from miniclip.train.step import by_tower
from miniclip.utils.atomic import write_atomically
from miniclip.utils.files import parse_json

FILE = "doctor.jsonl"
CLEAR_AFTER = 10  # consecutive negative results of a rule after which its problem counts as solved
LINE_WIDTH = 100


class Doctor(Callback):
    """Reporter of training problems, on the console and in `doctor.jsonl`.

    A problem is reported when it appears, and again if it returns after it was solved. All state comes from the
    records, so a resumed run rebuilds it by replaying the history without output.
    """

    def on_start(self, trainer: TrainerProtocol) -> None:
        """Check the captions; replay the history of a resumed run."""
        self._path = trainer.run_dir / FILE
        self._window = RunWindow(run_facts(trainer))
        self._negatives: dict[str, int] = {}  # current problems, with their number of consecutive negative results
        _truncate(self._path, trainer.step)
        records = [*trainer.history.steps, *trainer.history.skipped, *trainer.history.evaluations]
        at_start = self._apply(START_RULES)
        for record in sorted(records, key=lambda record: (record["step"], "val_loss" in record)):
            self._update(record)
        if not records:
            self._report(0, at_start)

    def on_step(self, trainer: TrainerProtocol, record: Record) -> None:
        """Apply the rules to a step."""
        self._report(record["step"], self._update(record))

    def on_skip(self, trainer: TrainerProtocol, record: Record) -> None:
        """Apply the rules to a non-finite step."""
        self._report(record["step"], self._update(record))

    def on_evaluate(self, trainer: TrainerProtocol, record: Record) -> None:
        """Apply the rules to an evaluation."""
        self._report(record["step"], self._update(record))

    def _update(self, record: Record) -> list[tuple[Rule, str]]:
        """Add a record to the window and return the new problems with their observations."""
        self._window.add(record)
        if "val_loss" in record:
            return self._apply(EVALUATION_RULES)
        return self._apply([*STEP_RULES, *(BATCH_RULES if "loss_floor" in record else ())])

    def _apply(self, rules: Iterable[Rule]) -> list[tuple[Rule, str]]:
        new = []
        for rule in rules:
            observation, is_known = rule.detect(self._window), rule.name in self._negatives
            if observation is not None:
                if not is_known:
                    new.append((rule, observation))
                self._negatives[rule.name] = 0
            elif is_known:
                self._negatives[rule.name] += 1
                if self._negatives[rule.name] >= CLEAR_AFTER:
                    del self._negatives[rule.name]
        return new

    def _report(self, step: int, problems: Iterable[tuple[Rule, str]]) -> None:
        from tqdm import tqdm

        for rule, observation in problems:
            tqdm.write(report_text(step, rule, observation), file=sys.stdout)  # above the progress bar
            sys.stdout.flush()
            entry = {"step": step, "name": rule.name, "severity": rule.severity, "observation": observation}
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with self._path.open("a", encoding="utf-8") as file:
                file.write(json.dumps({**entry, "meaning": rule.meaning, "advice": rule.advice}) + "\n")


def report_text(step: int, rule: Rule, observation: str) -> str:
    """Return the console message of a problem."""
    paragraphs = [f"means: {rule.meaning}", f"try:   {rule.advice}"]
    return "\n".join(
        [
            f"{rule.severity}, step {step}: {rule.name}: {observation}",
            *(textwrap.fill(text, LINE_WIDTH, initial_indent="  ", subsequent_indent=" " * 9) for text in paragraphs),
        ]
    )


def run_facts(trainer: TrainerProtocol) -> RunFacts:
    """Return the constants of a run that rules need."""
    config, parameters = trainer.config, by_tower(trainer.model)
    is_on_cpu = trainer.model.device.type == "cpu"
    return RunFacts(
        steps=trainer.total_steps,
        warmup_steps=config.warmup_steps(trainer.total_steps),
        max_logit_scale=config.max_logit_scale,
        trained_towers=tuple(name for name in ("image", "text") if any(p.requires_grad for p in parameters[name])),
        captions=trainer.train_captions,
        truncated_captions=trainer.truncated_captions,
        captions_per_image=config.captions_per_image,
        repeats_are_positives=config.positives == "all",
        threads=torch.get_num_threads() if is_on_cpu else 1,
        cores=available_cores(),
        ranks=distributed.local_world_size(),
        threads_sleep=os.environ.get("OMP_WAIT_POLICY", "").lower() == "passive" or "GOMP_SPINCOUNT" in os.environ,
    )


def _truncate(path: Path, step: int) -> None:
    """Drop the entries later than a step, and an incomplete last line."""
    if not path.exists():
        return
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    valid = "".join(line for line in lines if line.endswith("\n") and parse_json(line)["step"] <= step)
    write_atomically(path, lambda temporary: temporary.write_text(valid, encoding="utf-8"))
