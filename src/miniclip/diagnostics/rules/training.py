"""Rules on the training itself: stuck loss, collapse, logit scale, gradients, non-finite steps."""

from __future__ import annotations

import math

from miniclip.diagnostics.rules.window import Rule, RunWindow, mean

MIN_LEARNED_FRACTION = 0.02  # below it the loss is stuck at chance
MAX_UNIFORMITY = -0.05  # above it all embeddings are nearly equal: cosines of 0.99
MIN_EFFECTIVE_RANK = 1.5  # below it all embeddings lie on one line
AT_MAXIMUM = 0.99  # fraction of max_logit_scale at which the scale counts as saturated
SCALE_LEARNED_FRACTION = 0.5  # a scale that saturates with less learned than this is a problem
MIN_LOGIT_SCALE = 2.0  # below it the softmax is nearly flat
MIN_GRADIENT_RATIO = 1e-3  # gradient norm of one tower by that of the other


def _stuck(window: RunWindow) -> str | None:
    fraction, loss, chance = window.learned_fraction(), window.mean("loss"), window.mean("chance_loss")
    if not window.is_past_warmup or fraction is None or loss is None or chance is None:
        return None
    return f"the loss is {loss:.3f}; chance is {chance:.3f}" if fraction <= MIN_LEARNED_FRACTION else None


def _collapsed(window: RunWindow) -> str | None:
    observations = []
    for side in ("image", "text"):
        uniformity, rank = window.mean(f"uniformity_{side}"), window.mean(f"effective_rank_{side}")
        if not window.is_past_warmup or uniformity is None or rank is None:
            continue
        if uniformity > MAX_UNIFORMITY or rank < MIN_EFFECTIVE_RANK:
            observations.append(
                f"the {side} embeddings have an effective rank of {rank:.1f} and a uniformity of {uniformity:.1g}"
            )
    return "; ".join(observations) or None


def _scale_at_maximum(window: RunWindow) -> str | None:
    """The scale rose to its maximum early in the run, or with little learned."""
    maximum, fraction = window.facts.max_logit_scale, window.learned_fraction()
    if not window.is_past_warmup or window.first is None or window.first["logit_scale"] > 0.9 * maximum:
        return None
    is_early = window.batch_records[-1]["step"] < window.facts.steps / 2
    has_learned_little = fraction is not None and fraction < SCALE_LEARNED_FRACTION
    if not (is_early or has_learned_little):
        return None
    if any(record["logit_scale"] < AT_MAXIMUM * maximum for record in window.batch_records):
        return None
    return f"the scale is {window.batch_records[-1]['logit_scale']:.1f}, the maximum (max_logit_scale)"


def _scale_near_one(window: RunWindow) -> str | None:
    if not window.is_past_warmup or window.first is None or window.first["logit_scale"] <= MIN_LOGIT_SCALE:
        return None
    if any(record["logit_scale"] > MIN_LOGIT_SCALE for record in window.batch_records):
        return None
    return f"the scale fell from {window.first['logit_scale']:.1f} to {window.batch_records[-1]['logit_scale']:.2f}"


def _tower_without_gradient(window: RunWindow) -> str | None:
    towers = window.facts.trained_towers
    norms = {tower: mean([record.get(f"grad_norm_{tower}") for record in window.steps]) for tower in towers}
    if not window.is_past_warmup or len(norms) < 2:
        return None
    (small_tower, small), (large_tower, large) = sorted(norms.items(), key=lambda item: item[1] or 0.0)
    if small is None or large is None or large == 0 or small > MIN_GRADIENT_RATIO * large:
        return None
    return f"the gradient norm is {small:.1e} in the {small_tower} tower and {large:.1e} in the {large_tower} tower"


def _nonfinite_loss(window: RunWindow) -> str | None:
    """The last step was skipped, or its loss is missing or not finite."""
    last = window.steps[-1] if window.steps else None
    if window.skipped is not None and (last is None or last["step"] < window.skipped["step"]):
        return f"step {window.skipped['step']} was skipped, not finite: {window.skipped['skipped']}"
    if last is None or ((loss := last.get("loss")) is not None and math.isfinite(loss)):
        return None
    return f"the loss of step {last['step']} is {last.get('loss')}"


STUCK = Rule(
    "loss stuck at chance",
    _stuck,
    "The model cannot distinguish the pairs of a batch: it has learned nothing yet. Either the captions do not match "
    "the images, or the training does not start.",
    "Check that captions match images (`miniclip train --check` overfits a few pairs). If they do, use a smaller lr or "
    "a longer warmup; for data with many near duplicates, a smaller batch.",
)
COLLAPSE = Rule(
    "embedding collapse",
    _collapsed,
    "A tower gives nearly the same embedding for every input, so retrieval with it is impossible.",
    "Check that its inputs differ: images may be blank, captions may be equal. If they differ, use a smaller lr, a "
    "longer warmup and fresh weights; a collapsed tower seldom recovers.",
)
SCALE_AT_MAXIMUM = Rule(
    "logit scale at maximum",
    _scale_at_maximum,
    "The scale multiplies the cosines. It reached its maximum early, or with little learned: the loss fell because of "
    "higher confidence, not better embeddings, and few pairs contribute gradients.",
    "Use a smaller lr, a longer warmup or a lower max_logit_scale. Late in a long run on much data this is usual: "
    "OpenAI's models ended at 100.",
)
SCALE_NEAR_ONE = Rule(
    "logit scale near 1",
    _scale_near_one,
    "All similarities have nearly the same weight, for any embeddings. Low confidence gives the lowest loss "
    "if pairs and non-pairs cannot be distinguished.",
    "Check that captions match images (`miniclip train --check`) and that few captions repeat; then use a smaller lr.",
)
TOWER_WITHOUT_GRADIENT = Rule(
    "tower without gradient",
    _tower_without_gradient,
    "One tower does not learn, and the other adapts to it. Its inputs may all be equal, or its activations dead or "
    "saturated. Towers that you froze are excluded.",
    "Check the inputs of that tower; use a smaller lr and fresh weights. If you changed the model, check that its "
    "output depends on its parameters.",
)
NONFINITE_LOSS = Rule(
    "non-finite loss",
    _nonfinite_loss,
    "A number exceeded the range of its format, or a division by zero occurred. In bfloat16 and float16 it is usually "
    "an activation or a gradient, after weights grew too fast. One such step in a long run is harmless, several are "
    "not.",
    "Resume from the last state with a smaller lr, a longer warmup or a smaller max_grad_norm. Precision float32 "
    "distinguishes rounding from divergence. Inspect the images of the batch.",
)
