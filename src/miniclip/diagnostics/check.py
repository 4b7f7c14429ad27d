"""Check before a run: the data, the memory, and whether the model can overfit a few pairs."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator

from miniclip.data.dataset import ImageCaptionDataset
from miniclip.data.replay import batch_and_steps
from miniclip.diagnostics.checks.captions import check_captions
from miniclip.diagnostics.checks.images import check_images, sample_images
from miniclip.diagnostics.checks.memory import check_memory
from miniclip.diagnostics.checks.overfit import check_overfit
from miniclip.diagnostics.checks.overlap import check_overlap
from miniclip.diagnostics.findings import CheckReport
from miniclip.inference.model import CLIPModel
from miniclip.runtime import distributed
from miniclip.train.config import TrainConfig
from miniclip.utils.randomness import random_state, set_random_state

MAX_STEPS, MAX_SECONDS = 300, 60.0


def check(
    model: CLIPModel,
    train_data: ImageCaptionDataset,
    val_data: ImageCaptionDataset | None,
    config: TrainConfig,
    *,
    steps: int = MAX_STEPS,
    seconds: float = MAX_SECONDS,
) -> CheckReport:
    """Check data and model as a run would use them. The model and the random state are left unchanged.

    Args:
        model: with a tokenizer, on the training device.
        train_data: training data.
        val_data: validation data, or None.
        config: settings of the run, with a resolved precision.
        steps: maximum number of steps of the overfit test.
        seconds: maximum duration of each image sample and of the overfit test.

    Raises:
        ValueError: the training data is empty, the model has no tokenizer, or there are several ranks.
    """
    if distributed.world_size() > 1:
        raise ValueError(
            f"the check runs in one process, found {distributed.world_size()} ranks: run it without torchrun"
        )
    if not len(train_data) or model.tokenizer is None:
        raise ValueError("the check needs training data that is not empty, and a model with a tokenizer")
    batch_size = batch_and_steps(train_data, config.batch_size)[0]
    with _preserved(model):
        sample = sample_images(train_data, seconds=seconds)
        findings = check_captions(train_data, model.tokenizer, model.config.text.context_length, batch_size)
        findings += check_images(sample, model.config.image.image_size, config.on_error)
        if val_data is not None and len(val_data):
            findings += check_overlap(train_data, val_data, sample, sample_images(val_data, seconds=seconds))
        findings += [check_memory(model, config, batch_size), check_overfit(model, train_data, config, steps, seconds)]
    return CheckReport(tuple(findings))


@contextlib.contextmanager
def _preserved(model: CLIPModel) -> Iterator[None]:
    """Restore the random state and the tokenizer's count of truncated captions on exit."""
    state, tokenizer = random_state(model.device), model.tokenizer
    counters = {name: getattr(tokenizer, name) for name in ("truncated", "_warned") if hasattr(tokenizer, name)}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # a finding reports the truncated captions
            yield
    finally:
        set_random_state(model.device, state)
        for name, value in counters.items():
            setattr(tokenizer, name, value)
