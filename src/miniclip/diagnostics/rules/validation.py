"""Rules on the evaluations: overfitting, and a validation loss that rises together with recall."""

from __future__ import annotations

from collections.abc import Sequence

from miniclip.diagnostics.chance import recall_at_chance
from miniclip.diagnostics.rules.window import Rule, RunWindow, mean
from miniclip.runs.history import Record

MAX_LOSS_RATIO = 1.05  # last validation loss by the lowest one
MIN_EVALUATIONS_AFTER = 2  # evaluations after the one with the lowest validation loss
MIN_RECALL_GAIN = 1.0  # percentage points of R@1 since then that count as better recall
MIN_GAP = 0.5  # validation loss minus training loss, as a fraction of the validation chance loss


def _loss_and_recall_rise(window: RunWindow) -> str | None:
    best = _best_before_rise(window.evaluations)
    if best is None or _recall(window.evaluations[-1]) - _recall(best) < MIN_RECALL_GAIN:
        return None
    last = window.evaluations[-1]
    return (
        f"the validation loss rose from {best['val_loss']:.3f} (epoch {best['epoch']}) to {last['val_loss']:.3f}, "
        f"R@1 from {_recall(best):.1f} to {_recall(last):.1f}"
    )


def _overfits(window: RunWindow) -> str | None:
    best, loss = _best_before_rise(window.evaluations), mean([record.get("loss") for record in window.steps])
    if best is None or loss is None:
        return None
    last = window.evaluations[-1]
    if _recall(last) - _recall(best) >= MIN_RECALL_GAIN or last["val_loss"] - loss < MIN_GAP * last["val_chance_loss"]:
        return None
    return (
        f"the training loss is {loss:.3f}, the validation loss {last['val_loss']:.3f}, up from {best['val_loss']:.3f} "
        f"(epoch {best['epoch']})"
    )


def _ends_at_chance(window: RunWindow) -> str | None:
    last = window.evaluations[-1] if window.evaluations else None
    if last is None or last["step"] < window.facts.steps or "chance_recall" not in last:
        return None
    return recall_at_chance(last)


def _best_before_rise(evaluations: Sequence[Record]) -> Record | None:
    """Return the evaluation with the lowest validation loss if the loss has risen since; otherwise None."""
    if not evaluations:
        return None
    best = min(evaluations, key=lambda record: float(record["val_loss"]))
    evaluations_after = len(evaluations) - 1 - evaluations.index(best)
    has_risen = evaluations[-1]["val_loss"] > MAX_LOSS_RATIO * best["val_loss"]
    return best if evaluations_after >= MIN_EVALUATIONS_AFTER and has_risen else None


def _recall(record: Record) -> float:
    """Return the mean R@1 of both directions."""
    return float(record["text_to_image"]["R@1"] + record["image_to_text"]["R@1"]) / 2


LOSS_AND_RECALL_RISE = Rule(
    "validation loss rises while recall rises",
    _loss_and_recall_rise,
    "The ranking improves, but the model is more confident in its wrong matches. The loss penalises this confidence, "
    "recall does not. This is not a fault in itself.",
    "For retrieval, judge by recall (`best/` does). If you use the probabilities, use a lower max_logit_scale, more "
    "augmentation or fewer epochs.",
    severity="note",
)
OVERFITTING = Rule(
    "overfitting",
    _overfits,
    "The model memorises its training images and does not improve, or gets worse, on others.",
    "Use more data, more augmentation (min_crop_area, color_jitter, patch_dropout), more weight_decay, a smaller model "
    "or fewer epochs. `best/` holds the model with the best recall.",
)
END_AT_CHANCE = Rule(
    "no better than chance at the end",
    _ends_at_chance,
    "The model cannot find the captions of validation images. Either it has not learned anything yet, or it learned "
    "from the training images only what does not apply to others.",
    "If the training loss is at chance too, train for more epochs, then check that captions match images (`miniclip "
    "train --check`). If it is low, the model memorises: use more data or a pretrained model.",
)
