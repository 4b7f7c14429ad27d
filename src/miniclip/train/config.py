"""The settings of a training run: typed and documented here, once, for library, command line and docs."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

from miniclip.data.skipping import MAX_SKIP_FRACTION, OnError
from miniclip.runtime.precision import Precision
from miniclip.utils.checks import check_types, did_you_mean

Loss = Literal["contrastive", "sigmoid"]
Monitor = Literal["recall", "text_to_image", "image_to_text", "val_loss"]


def setting(default: Any, help: str) -> Any:
    """A dataclass field with its documentation."""
    return dataclasses.field(default=default, metadata={"help": help})


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """Settings of a training run.

    Raises:
        ValueError: a setting is out of its range.
        TypeError: a setting has another type.
    """

    epochs: int = setting(30, "passes over the training pictures")
    max_steps: int | None = setting(None, "stop after so many steps, whatever the epochs say")
    batch_size: int = setting(128, "pairs a step; each is told apart from all others of its batch")
    micro_batch_size: int | Literal["auto"] | None = setting(
        None,
        "pairs in memory at a time, for batches larger than it: the same step, for a second forward pass; auto: as "
        "many as fit, found at the start",
    )
    gradient_checkpointing: bool = setting(
        False, "keep the input of each block alone, and compute the rest again in backward: less memory, slower"
    )
    fsdp: bool = setting(
        False, "of several ranks, let each keep a part of the weights and of the optimizer's state, for large models"
    )
    lr: float = setting(1e-3, "greatest learning rate of AdamW")
    weight_decay: float = setting(0.1, "of AdamW, on the weights of linear layers and patches alone")
    beta2: float = setting(0.98, "of AdamW, the memory of the squared gradient")
    warmup_fraction: float = setting(
        0.1, "share of the steps in which the learning rate rises from 0; then a cosine to 0"
    )
    max_grad_norm: float = setting(1.0, "greatest norm of the gradient; a longer one is shortened to it")
    max_logit_scale: float = setting(100.0, "greatest factor on the cosine similarities")
    loss: Loss = setting("contrastive", "contrastive (CLIP) or sigmoid (SigLIP)")
    precision: Precision = setting(
        "auto", "float32, bfloat16 (autocast), or auto: bfloat16 if the device has hardware for it"
    )
    min_crop_area: float = setting(
        0.9, "random crops keep at least this share of a picture's area, in (0, 1]; 1: no cropping"
    )
    max_rotation_degrees: float = setting(0.0, "random rotation, degrees either way")
    flip: bool = setting(False, "mirror half of the pictures (captions that say left or right forbid it)")
    color_jitter: float = setting(0.0, "random change of brightness, contrast and saturation, in [0, 1]")
    patch_dropout: float = setting(
        0.0, "share of a picture's patches that a training step leaves out, in [0, 1): cheaper steps, and augmentation"
    )
    seed: int = setting(0, "of everything random: weights, order, captions, augmentation")
    eval_every: int = setting(1, "epochs between evaluations")
    ema_decay: float | None = setting(
        None, "decay of a moving average of the weights, such as 0.999: evaluated, and saved as the model"
    )
    compile: bool = setting(False, "let torch.compile translate the towers' blocks: some minutes first, faster steps")
    monitor: Monitor = setting(
        "recall", "what best/ is best by: recall (the mean R@1 of both directions), the R@1 of one of them, or val_loss"
    )
    save_every: int | None = setting(None, "steps between checkpoints, besides the one after each epoch")
    save_minutes: float | None = setting(15.0, "minutes between checkpoints, likewise")
    keep_checkpoints: int = setting(
        1, "how many states to go on from are kept: the newest, and those before it in states/"
    )
    save_in_background: bool = setting(
        True, "write checkpoints beside the training, from a copy of the weights and the optimizer's state"
    )
    max_nonfinite_steps: int = setting(
        10, "a step whose loss or gradient is not finite changes nothing; more than so many in a row stop the run"
    )
    log_every: int = setting(10, "steps between looks at the loss (every step is logged; a look waits for the device)")
    tensorboard: bool = setting(False, "log to TensorBoard too, below the run directory")
    wandb: str | None = setting(None, "the Weights & Biases project to log to as well")
    num_workers: int | None = setting(
        None, "processes that decode pictures; unset: none if all fit into 2 GiB once decoded, else one a core but one"
    )

    reduced_decoding: bool = setting(
        True,
        "decode large JPEGs at a part of their size, no less than twice the model's, and resize JPEGs by torch: much "
        "faster, a grey level off; evaluation and packing never do",
    )
    on_error: OnError = setting(
        "raise", "a training picture that cannot be read ends the run (raise), or is named and left out (skip)"
    )
    max_skip_fraction: float = setting(
        MAX_SKIP_FRACTION, "share of the training pictures that may be left out before the run ends"
    )

    def __post_init__(self) -> None:
        check_types(self)
        for name in ("epochs", "batch_size", "eval_every", "log_every", "max_steps", "save_every", "keep_checkpoints"):
            self._require(name, lambda v: v >= 1, "at least 1")
        for name in ("lr", "max_grad_norm", "save_minutes"):
            self._require(name, lambda v: v > 0, "above 0")
        for name in ("weight_decay", "num_workers", "seed", "max_nonfinite_steps"):
            self._require(name, lambda v: v >= 0, "at least 0")
        for name in ("warmup_fraction", "beta2", "patch_dropout", "ema_decay"):
            self._require(name, lambda v: 0 <= v < 1, "at least 0 and below 1")
        self._require("micro_batch_size", lambda v: v == "auto" or v >= 1, "at least 1, or auto")
        self._require("max_logit_scale", lambda v: v >= 1, "at least 1")
        self._require("max_skip_fraction", lambda v: 0 <= v <= 1, "in 0..1")
        self._require("min_crop_area", lambda v: 0 < v <= 1, "above 0, at most 1")
        self._require("max_rotation_degrees", lambda v: 0 <= v <= 180, "degrees in 0..180")
        self._require("color_jitter", lambda v: 0 <= v <= 1, "in 0..1")

    def _require(self, name: str, holds: Any, expected: str) -> None:
        value = getattr(self, name)
        if value is not None and not holds(value):
            raise ValueError(f"{name} is {value}; expected {expected} ({self.help(name)})")

    @classmethod
    def help(cls, name: str) -> str:
        """What a setting means, in a line."""
        return str(next(f for f in dataclasses.fields(cls) if f.name == name).metadata["help"])

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> TrainConfig:
        """Build the settings from names and values.

        Raises:
            ValueError: a name is unknown (the nearest is named), or a value out of its range.
            TypeError: a value has the wrong type.
        """
        names = [field.name for field in dataclasses.fields(cls)]
        for name in values:
            if name not in names:
                raise ValueError(f"unknown setting {name!r}{did_you_mean(name, names)}")
        return cls(**values)

    def to_dict(self) -> dict[str, Any]:
        """The settings as plain JSON values; `from_dict` reads them back."""
        return dataclasses.asdict(self)
