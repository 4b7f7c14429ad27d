"""Rules on the CPU cores: other programs that use them, and more threads than cores."""

from __future__ import annotations

from miniclip.diagnostics.rules.window import MIN_VALUES, Rule, RunWindow

MIN_OTHER_CORES = 0.5  # used by other programs


def _busy_cores(window: RunWindow) -> str | None:
    facts, values = window.facts, window.other_cores
    if len(values) < MIN_VALUES or facts.threads == 1 or facts.threads_sleep:
        return None
    others, cores, threads = sum(values) / len(values), facts.cores * facts.ranks, facts.threads * facts.ranks
    if others < MIN_OTHER_CORES or threads <= cores - others:
        return None
    return f"other programs use {others:.1f} of {cores} cores, and training has {threads} threads"


def _many_threads(window: RunWindow) -> str | None:
    facts = window.facts
    return f"{facts.threads} threads for {facts.cores} cores" if 0 < facts.cores < facts.threads else None


BUSY_CORES = Rule(
    "busy cores",
    _busy_cores,
    "After each operation, the threads of a step wait for the slowest one. They spin while they wait, which takes even "
    "more time from the one that shares its core with another program.",
    "Stop the other programs; or stop this run, and resume it with the environment variable OMP_WAIT_POLICY=passive: "
    "threads then sleep while they wait, and the results are the same.",
)
MANY_THREADS = Rule(
    "more threads than cores",
    _many_threads,
    "A container, a scheduler or the other ranks leave this process fewer cores than it has threads, which wait for "
    "each other after each operation.",
    "Set the environment variable OMP_NUM_THREADS to the number of cores before the run starts.",
)
