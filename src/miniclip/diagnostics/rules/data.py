"""Rules on the data: short runs, repeated captions and images, truncated captions, slow loading."""

from __future__ import annotations

from miniclip.diagnostics.rules.window import Rule, RunWindow

MAX_TRUNCATED_FRACTION = 0.01  # share of the captions
MAX_REPEATED_FRACTION = 0.05  # share of the pairs of a batch
SHORT_RUN = 100  # steps
MAX_DATA_WAIT = 0.3  # share of the time


def _repeated_captions(window: RunWindow) -> str | None:
    return None if window.facts.repeats_are_positives else _repeated(window, "caption", window.facts.captions_per_image)


def _repeated_images(window: RunWindow) -> str | None:
    return _repeated(window, "image")


def _repeated(window: RunWindow, kind: str, per_pair: int = 1) -> str | None:
    distinct, pairs = window.mean(f"distinct_{kind}s"), window.mean("pairs")
    if not window.is_full or distinct is None or pairs is None:
        return None
    pairs *= per_pair
    if distinct > (1 - MAX_REPEATED_FRACTION) * pairs:
        return None
    return f"{pairs - distinct:.1f} of a batch's {pairs:.0f} pairs repeat the {kind} of another pair"


def _data_wait(window: RunWindow) -> str | None:
    fraction = window.mean("data_wait")
    if not window.is_full or fraction is None or fraction < MAX_DATA_WAIT:
        return None
    return f"the run waits for batches {fraction:.0%} of the time"


def _truncated_captions(window: RunWindow) -> str | None:
    truncated, captions = window.facts.truncated_captions, window.facts.captions
    if not captions or truncated < MAX_TRUNCATED_FRACTION * captions:
        return None
    return f"{truncated:,} of {captions:,} captions are longer than the model's context"


def _short_run(window: RunWindow) -> str | None:
    facts = window.facts
    return f"{facts.steps} steps, {facts.warmup_steps} of them warmup" if facts.steps < SHORT_RUN else None


SHORT = Rule(
    "short run",
    _short_run,
    "From fresh weights, the loss leaves chance only after some hundred steps. Most rules need 100 steps after the "
    "warmup, so that they cannot detect a problem in this run.",
    "Train for more epochs; with few images, use a smaller batch_size. A pretrained model needs fewer steps.",
    severity="note",
)
REPEATED_CAPTIONS = Rule(
    "repeated captions in a batch",
    _repeated_captions,
    "If two images of a batch share a caption, the loss treats it as wrong for one of them. The model learns to "
    "separate what belongs together, and the loss cannot fall below `loss_floor`.",
    "Write captions that distinguish the images, remove generic ones, use smaller batches, in which repeats are rarer, "
    "or set positives to all, which counts identical captions as right.",
)
REPEATED_IMAGES = Rule(
    "repeated images in a batch",
    _repeated_images,
    "If an image is in the data twice, each time with its own caption, the loss treats the other caption as wrong.",
    "Merge the copies into one image with several captions; `miniclip train --check` names them.",
)
DATA_WAIT = Rule(
    "data wait",
    _data_wait,
    "Images are decoded more slowly than the model uses them; the device is idle for that time.",
    "Build a cache of decoded images once (`miniclip data cache`), increase num_workers, or use smaller image files.",
)
TRUNCATED_CAPTIONS = Rule(
    "truncated captions",
    _truncated_captions,
    "The text tower never receives the ends of these captions and cannot learn what is only stated there.",
    "Shorten the captions to their first sentence, or use a model with a longer context.",
)
