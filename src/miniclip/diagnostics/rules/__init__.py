"""Rules that detect silent training failures in the metrics of a run, grouped by the time at which they apply."""

from miniclip.diagnostics.rules.data import DATA_WAIT, REPEATED_CAPTIONS, REPEATED_IMAGES, SHORT, TRUNCATED_CAPTIONS
from miniclip.diagnostics.rules.machine import BUSY_CORES, MANY_THREADS
from miniclip.diagnostics.rules.training import (
    COLLAPSE,
    NONFINITE_LOSS,
    SCALE_AT_MAXIMUM,
    SCALE_NEAR_ONE,
    STUCK,
    TOWER_WITHOUT_GRADIENT,
)
from miniclip.diagnostics.rules.validation import END_AT_CHANCE, LOSS_AND_RECALL_RISE, OVERFITTING

START_RULES = (TRUNCATED_CAPTIONS, SHORT, MANY_THREADS)
STEP_RULES = (NONFINITE_LOSS,)
BATCH_RULES = (  # they apply to the steps with batch metrics, every `log_every` steps
    STUCK,
    COLLAPSE,
    SCALE_AT_MAXIMUM,
    SCALE_NEAR_ONE,
    REPEATED_CAPTIONS,
    REPEATED_IMAGES,
    TOWER_WITHOUT_GRADIENT,
    DATA_WAIT,
    BUSY_CORES,
)
EVALUATION_RULES = (LOSS_AND_RECALL_RISE, OVERFITTING, END_AT_CHANCE)
ALL_RULES = (*START_RULES, *STEP_RULES, *BATCH_RULES, *EVALUATION_RULES)

__all__ = ["ALL_RULES", "BATCH_RULES", "EVALUATION_RULES", "START_RULES", "STEP_RULES"]
