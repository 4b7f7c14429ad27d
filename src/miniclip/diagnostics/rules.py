"""What goes wrong in CLIP training without an error: rules on the log's records, what each means, what to try.

A rule sees what a run has logged so far (`Seen`) and answers with what it found, in figures, or with None. Each has one
threshold or two, named here; docs/doctor.md explains them. Figures of looks are judged by their mean over the last
`WINDOW` looks, at least `STEPS` steps, and mostly only where all of these came after the warm-up: at its start every
model is stuck and collapsed.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence

from miniclip.diagnostics.health import learned
from miniclip.runs.history import Record

WINDOW, STEPS = 10, 100  # looks, and steps from the first of them to the last, at least
STUCK = 0.02  # share of what can be learned (`health.learned`) below which nothing was
ALIKE = -0.05  # uniformity above which embeddings are all alike: cosines of 0.99
ONE_LINE = 1.5  # effective rank below which they lie along one line
MAX_SKIP_FRACTION = 0.99  # of the greatest scale that is allowed: there it stands
HALF_LEARNED = 0.5  # with so little learned, or in the first half of a run, a scale at its greatest ran away
FLAT = 2.0  # a scale that falls below makes all similarities nearly the same
CUT = 0.01  # share of the captions
REPEATED = 0.05  # share of a batch's pairs
RISEN = 1.05  # of the least validation loss
RECALL = 1.0  # percentage points of R@1 by which it must have risen, to count as better
GAP = 0.5  # of the validation set's log N: training loss so far below the validation loss
WAITING = 0.3  # share of the time
VANISHED = 1e-3  # a tower's gradient norm by the other's


@dataclasses.dataclass(frozen=True)
class Ailment:
    """Something that can be wrong: its name, what it means, and what to try.

    Attributes:
        warning: whether something should be done; else it is a note.
    """

    name: str
    meaning: str
    advice: str
    warning: bool = True


@dataclasses.dataclass(frozen=True)
class Facts:
    """What the rules know of a run besides its records."""

    steps: int  # in all
    warmup: int  # steps
    max_logit_scale: float
    trained: tuple[str, ...] = ("image", "text")  # towers with parameters that are trained
    captions: int = 0  # of the training data
    cut: int = 0  # of them, at the context length


@dataclasses.dataclass
class Seen:
    """What a run has logged so far.

    Attributes:
        facts: what does not change.
        first: the first look's record; None before.
        looks: the last looks' records, as many as the window has.
        steps: the records of the steps since the first of them.
        evaluations: all of them.
        skipped: the last step that was not finite; None before.
    """

    facts: Facts
    first: Record | None = None
    looks: list[Record] = dataclasses.field(default_factory=list)
    steps: list[Record] = dataclasses.field(default_factory=list)
    evaluations: list[Record] = dataclasses.field(default_factory=list)
    skipped: Record | None = None

    def add(self, record: Record) -> None:
        """Take in a record, and let go of those that are too old to be judged by."""
        if "val_loss" in record:
            self.evaluations.append(record)
            return
        if "skipped" in record:
            self.skipped = record
            return
        self.steps.append(record)
        if "loss_nothing" in record:
            self.first = self.first or record
            self.looks.append(record)
            while len(self.looks) > WINDOW and record["step"] - self.looks[1]["step"] >= STEPS:
                gone = self.looks.pop(0)["step"]
                self.steps = [step for step in self.steps if step["step"] > gone]

    @property
    def full(self) -> bool:
        """Whether there are as many looks as a figure is judged by."""
        return len(self.looks) >= WINDOW and self.looks[-1]["step"] - self.looks[0]["step"] >= STEPS

    @property
    def ready(self) -> bool:
        """Whether the window is full, and wholly after the warm-up."""
        return self.full and bool(self.looks[0]["step"] > self.facts.warmup)

    def mean(self, name: str) -> float | None:
        """The mean of a figure over the looks; None where one lacks it, or has it not finite."""
        return mean([record.get(name) for record in self.looks])

    def learned(self) -> float | None:
        """The mean share learned, over the looks."""
        return mean([learned(record) for record in self.looks])


def mean(values: Sequence[float | None]) -> float | None:
    """The mean; None where there are none, or one is missing or not finite."""
    known = [value for value in values if value is not None and math.isfinite(value)]
    return sum(known) / len(known) if known and len(known) == len(values) else None


Rule = Callable[[Seen], str | None]


# what the looks show


def stuck(seen: Seen) -> str | None:
    """The loss stays at that of a model that knows nothing."""
    share, loss, nothing = seen.learned(), seen.mean("loss"), seen.mean("loss_nothing")
    if not seen.ready or share is None or loss is None or nothing is None or share > STUCK:
        return None
    return f"the loss is {loss:.3f}; a model that tells nothing apart has {nothing:.3f}"


def collapsed(seen: Seen) -> str | None:
    """A side's embeddings are all alike, or lie along one line."""
    found = []
    for side in ("image", "text"):
        uniformity, rank = seen.mean(f"uniformity_{side}"), seen.mean(f"effective_rank_{side}")
        if seen.ready and uniformity is not None and rank is not None and (uniformity > ALIKE or rank < ONE_LINE):
            found.append(
                f"the {side} embeddings have an effective rank of {rank:.1f}, a uniformity of {uniformity:.1g}"
            )
    return "; ".join(found) or None


def scale_ran_away(seen: Seen) -> str | None:
    """The scale came to its greatest value from below, early or with little learned."""
    most, share = seen.facts.max_logit_scale, seen.learned()
    if not seen.ready or seen.first is None or seen.first["logit_scale"] > 0.9 * most:
        return None
    early = seen.looks[-1]["step"] < seen.facts.steps / 2 or (share is not None and share < HALF_LEARNED)
    if not early or any(look["logit_scale"] < MAX_SKIP_FRACTION * most for look in seen.looks):
        return None
    return f"the scale stands at {seen.looks[-1]['logit_scale']:.1f}, the greatest that max_logit_scale allows"


def scale_fell(seen: Seen) -> str | None:
    """The scale fell to 1, or near it."""
    if not seen.ready or seen.first is None or seen.first["logit_scale"] <= FLAT:
        return None
    if any(look["logit_scale"] > FLAT for look in seen.looks):
        return None
    return f"the scale fell from {seen.first['logit_scale']:.1f} to {seen.looks[-1]['logit_scale']:.2f}"


def captions_repeated(seen: Seen) -> str | None:
    """Many pairs of a batch have a caption that another one has too."""
    return _repeated(seen, "captions", "caption")


def pictures_repeated(seen: Seen) -> str | None:
    """Many pairs of a batch have a picture that another one has too."""
    return _repeated(seen, "pictures", "picture")


def _repeated(seen: Seen, name: str, one: str) -> str | None:
    distinct, pairs = seen.mean(name), seen.mean("pairs")
    if not seen.full or distinct is None or pairs is None or distinct > (1 - REPEATED) * pairs:
        return None
    return f"of a batch's {pairs:.0f} pairs {pairs - distinct:.1f} repeat the {one} of another one"


def tower_without_gradient(seen: Seen) -> str | None:
    """One tower's gradient is nothing against the other's."""
    norms = {side: mean([record.get(f"grad_norm_{side}") for record in seen.steps]) for side in seen.facts.trained}
    if not seen.ready or len(norms) < 2:
        return None
    (small, least), (large, most) = sorted(norms.items(), key=lambda item: item[1] or 0.0)
    if least is None or most is None or most == 0 or least > VANISHED * most:
        return None
    return f"the gradient's norm is {least:.1e} in the {small} tower and {most:.1e} in the {large} tower"


def waiting(seen: Seen) -> str | None:
    """The device waits for data."""
    share = seen.mean("data_wait")
    if not seen.full or share is None or share < WAITING:
        return None
    return f"{share:.0%} of the time goes into waiting for batches"


# what a single step, the evaluations, or the data show


def not_finite(seen: Seen) -> str | None:
    """The last step was skipped, since something in it was no number; or a loss is none."""
    last = seen.steps[-1] if seen.steps else None
    if seen.skipped is not None and (last is None or last["step"] < seen.skipped["step"]):
        return f"step {seen.skipped['step']} was skipped, not finite: {seen.skipped['skipped']}"
    if last is None or ((loss := last.get("loss")) is not None and math.isfinite(loss)):
        return None
    return f"the loss of step {last['step']} is {last.get('loss')}"


def loss_rises_with_recall(seen: Seen) -> str | None:
    """The validation loss has risen from its least, and the recall since then as well."""
    rise = _rise(seen.evaluations)
    if rise is None or rise[1] < RECALL:
        return None
    least, last = _least(seen.evaluations), seen.evaluations[-1]
    return (
        f"the validation loss rose from {least['val_loss']:.3f} (epoch {least['epoch']}) to {last['val_loss']:.3f}, "
        f"R@1 from {_recall(least):.1f} to {_recall(last):.1f}"
    )


def overfits(seen: Seen) -> str | None:
    """The training loss is far below the validation loss, which has risen from its least; the recall has not."""
    rise, loss = _rise(seen.evaluations), mean([record.get("loss") for record in seen.steps])
    if rise is None or rise[1] >= RECALL or loss is None:
        return None
    least, last = _least(seen.evaluations), seen.evaluations[-1]
    if last["val_loss"] - loss < GAP * last["val_log_n"]:
        return None
    return (
        f"the training loss is {loss:.3f}, the validation loss {last['val_loss']:.3f}, up from {least['val_loss']:.3f} "
        f"(epoch {least['epoch']})"
    )


def _rise(evaluations: Sequence[Record]) -> tuple[float, float] | None:
    """How many times its least the validation loss is, two evaluations or more after; and what R@1 gained since."""
    if not evaluations:
        return None
    least, last = _least(evaluations), evaluations[-1]
    late = evaluations.index(least) <= len(evaluations) - 3
    if not late or last["val_loss"] <= RISEN * least["val_loss"]:
        return None
    return last["val_loss"] / least["val_loss"], _recall(last) - _recall(least)


def _least(evaluations: Sequence[Record]) -> Record:
    return min(evaluations, key=lambda record: float(record["val_loss"]))


def _recall(record: Record) -> float:
    return float(record["text_to_image"]["R@1"] + record["image_to_text"]["R@1"]) / 2


def captions_cut(seen: Seen) -> str | None:
    """Captions are longer than the context."""
    cut, captions = seen.facts.cut, seen.facts.captions
    if not captions or cut < CUT * captions:
        return None
    return f"{cut:,} of {captions:,} captions are longer than the model's context, and cut"


AT_START: dict[Rule, Ailment] = {
    captions_cut: Ailment(
        "captions cut",
        "The text tower never sees how these captions end. What is only said there cannot be learned.",
        "Shorten the captions to their first sentence, or take a model with a longer context.",
    ),
}
AT_STEPS: dict[Rule, Ailment] = {
    not_finite: Ailment(
        "loss not finite",
        "A number grew beyond what its format holds, or something was divided by 0: in bfloat16 and float16 most often "
        "an activation or a gradient, after weights grew too fast. One such step in a long run is bad luck, more "
        "are not.",
        "Go on from the last state with a smaller lr, a longer warmup or a smaller max_grad_norm; try precision float32, "
        "which tells rounding from divergence; look at the pictures of the batch.",
    ),
}
AT_LOOKS: dict[Rule, Ailment] = {
    stuck: Ailment(
        "loss stuck at log N",
        "The model tells no pair of a batch from the others: it has learned nothing yet. Either the captions do not "
        "belong to the pictures, or the training cannot begin.",
        "See whether captions and pictures belong together (`miniclip train --check` overfits a few of them). If they "
        "do: a smaller lr, a longer warmup; for a set of many near twins a smaller batch.",
    ),
    collapsed: Ailment(
        "collapse",
        "A tower gives (nearly) the same embedding whatever it is shown, so nothing can be found by it.",
        "See whether its inputs differ: pictures that are all blank, captions that are all the same. If they do: a "
        "smaller lr, a longer warmup, fresh weights; a collapsed tower seldom comes back.",
    ),
    scale_ran_away: Ailment(
        "scale at its greatest",
        "The scale multiplies the cosines. It grew as far as it may although little is learned yet, or early: the loss "
        "was made small by being more sure, and not by better embeddings; gradients come from few pairs alone.",
        "A smaller lr or a longer warmup; a lower max_logit_scale. Late in a long run on much data it is usual: "
        "OpenAI's models ended at 100.",
    ),
    scale_fell: Ailment(
        "scale fell to 1",
        "All similarities count nearly the same, whatever the embeddings are: the training has found that being unsure "
        "costs least, since pairs and non-pairs cannot be told apart.",
        "See whether captions and pictures belong together (`miniclip train --check`), and whether many captions are "
        "the same; then a smaller lr.",
    ),
    captions_repeated: Ailment(
        "same caption twice in a batch",
        "A caption that two pictures of a batch share is wrong for one of them, however right it is. The model is "
        "taught to part what belongs together, and the loss cannot fall below `loss_least`.",
        "Write captions that say what sets a picture apart, leave out the ones that fit everything, or take smaller "
        "batches, in which twins are rarer.",
    ),
    pictures_repeated: Ailment(
        "same picture twice in a batch",
        "A picture that is in the data twice, with its own caption each time, is taught that the other caption is "
        "wrong.",
        "Join the copies into one picture with several captions; `miniclip train --check` names them.",
    ),
    tower_without_gradient: Ailment(
        "a tower without gradient",
        "One tower does not learn, and the other follows it. Its inputs may be all the same, or its activations dead "
        "or saturated; a tower that you froze on purpose is not meant by this.",
        "See what that tower is shown; a smaller lr and fresh weights; if you changed the model, whether its output "
        "still depends on its parameters.",
    ),
    waiting: Ailment(
        "waiting for data",
        "Pictures are decoded more slowly than the model takes them: the device stands still for that time.",
        "Pack the set once (`miniclip data pack`), take more workers, or smaller picture files.",
    ),
}
AT_EVALUATIONS: dict[Rule, Ailment] = {
    loss_rises_with_recall: Ailment(
        "validation loss rises while recall rises",
        "The ranks get better, and the wrong ones among them are held with more certainty, which the loss punishes and "
        "recall does not see. No contradiction, and no fault by itself.",
        "Judge by recall if you retrieve (`best/` does). If you use the probabilities, a lower max_logit_scale, more "
        "augmentation or fewer epochs.",
        warning=False,
    ),
    overfits: Ailment(
        "overfitting",
        "The model learns its training pictures by heart, and gets no better, or worse, on others.",
        "More data, more augmentation (crop, color, patch_dropout), more weight_decay, a smaller model, or fewer "
        "epochs. `best/` holds the model of the best recall.",
    ),
}
ALL: dict[Rule, Ailment] = {**AT_START, **AT_STEPS, **AT_LOOKS, **AT_EVALUATIONS}
