"""Comparison of a result with chance: recall of a random ranking, loss of a model that distinguishes no pairs."""

from __future__ import annotations

import math

from miniclip.runs.history import History, Record

DEVIATIONS = 2.0  # standard deviations of a random ranking's recall above its mean that count as better than chance
MIN_LOSS_FRACTION = 0.98  # share of the chance loss; a training loss above it is at chance
LAST_STEPS = 10  # whose mean is the training loss at the end


def recall_at_chance(evaluation: Record) -> str | None:
    """Describe an evaluation whose recall is that of a random ranking; None if it is better.

    The K of R@K is the largest whose recall by chance is at most 50%. The recall is the mean of both directions.
    """
    chance = evaluation["chance_recall"]
    images = round(100 / chance["text_to_image"]["R@1"])
    k = max((k for k in chance["text_to_image"] if chance["text_to_image"][k] <= 50), key=chance["text_to_image"].get)
    recall, expected = (
        (record["text_to_image"][k] + record["image_to_text"][k]) / 2 for record in (evaluation, chance)
    )
    deviation = math.sqrt(expected * (100 - expected) / images)
    if recall > expected + DEVIATIONS * deviation:
        return None
    return f"{k} is {recall:.1f}%, and {expected:.1f}% for a random ranking of the {images:,} validation images"


def loss_at_chance(history: History) -> str | None:
    """Describe a run whose training loss at the end is that of a model without knowledge; None if it is lower."""
    steps = [record for record in history.steps[-LAST_STEPS:] if record.get("loss") is not None]
    if not steps:
        return None
    loss, chance = (sum(record[name] for record in steps) / len(steps) for name in ("loss", "chance_loss"))
    return None if loss < MIN_LOSS_FRACTION * chance else f"the training loss is {loss:.3f}, by chance {chance:.3f}"
