"""Tasks as `miniclip eval` runs them: metrics with intervals, compared with the first model."""

from miniclip.evaluation.tasks.classification import run_few_shot, run_probe, run_zero_shot
from miniclip.evaluation.tasks.outcome import Outcome
from miniclip.evaluation.tasks.retrieval import run_retrieval

__all__ = ["Outcome", "run_few_shot", "run_probe", "run_retrieval", "run_zero_shot"]
