"""Findings of the check before a run, and their report."""

from __future__ import annotations

import dataclasses
import textwrap
from typing import Literal

Severity = Literal["fine", "note", "warning", "error"]
SEVERITIES: tuple[Severity, ...] = ("fine", "note", "warning", "error")
LINE_WIDTH = 100


@dataclasses.dataclass(frozen=True)
class Finding:
    """Result of one check.

    Attributes:
        name: name of the check.
        severity: "fine"; "note": worth knowing; "warning": the model will be worse; "error": the run would fail or be
            useless.
        observation: measured numbers and affected names.
        meaning: effect on training; reported unless the severity is "fine".
        advice: suggested remedy; reported unless the severity is "fine".
    """

    name: str
    severity: Severity
    observation: str
    meaning: str = ""
    advice: str = ""

    def __str__(self) -> str:
        first = f"{self.severity:<8} {self.name}: {self.observation}"
        lines = [textwrap.fill(first, LINE_WIDTH, subsequent_indent=" " * 9, break_on_hyphens=False)]
        for label, text in (("means", self.meaning), ("try", self.advice)):
            if text and self.severity != "fine":
                indent = f"{'':9}{label + ':':<7}"
                lines.append(textwrap.fill(text, LINE_WIDTH, initial_indent=indent, subsequent_indent=" " * 16))
        return "\n".join(lines)


@dataclasses.dataclass(frozen=True)
class CheckReport:
    """Findings of a check, in the order of the checks. `print(report)` shows all of them."""

    findings: tuple[Finding, ...]

    @property
    def worst(self) -> Severity:
        """Highest severity among the findings."""
        return max((finding.severity for finding in self.findings), key=SEVERITIES.index)

    def __getitem__(self, name: str) -> Finding:
        """Return the finding with a name; raise KeyError if there is none."""
        return {finding.name: finding for finding in self.findings}[name]

    def __str__(self) -> str:
        counts = [(severity, sum(f.severity == severity for f in self.findings)) for severity in reversed(SEVERITIES)]
        summary = ", ".join(f"{count} {severity}" for severity, count in counts if count)
        return "\n".join([*map(str, self.findings), summary])
