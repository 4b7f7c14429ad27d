"""Settings of a training run, with their documentation and valid ranges."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Mapping
from typing import Any, Literal

from miniclip.data.skipping import MAX_SKIP_FRACTION, OnError
from miniclip.runtime.precision import Precision
from miniclip.utils.checks import check_types, did_you_mean
from miniclip.utils.config_checks import KnownFields
from miniclip.utils.option_names import option

Loss = Literal["contrastive", "sigmoid"]
Optimizer = Literal["adamw", "muon"]
Positives = Literal["pairs", "all"]
Monitor = Literal["recall", "text_to_image", "image_to_text", "val_loss"]
Range = tuple[str, Callable[[Any], bool]]

MIN_WARMUP_STEPS = 40  # a few steps of warmup leave a short run at chance; at most half of the run
LORA_TARGETS = ("q", "k", "v", "out", "mlp")  # names in `finetuning.lora.TARGETS`, which needs torch

ANY: Range = ("any value", lambda value: True)
AT_LEAST_0: Range = ("at least 0", lambda value: value >= 0)
AT_LEAST_1: Range = ("at least 1", lambda value: value >= 1)
POSITIVE: Range = ("above 0", lambda value: value > 0)
FRACTION: Range = ("in 0..1", lambda value: 0 <= value <= 1)
BELOW_1: Range = ("at least 0 and below 1", lambda value: 0 <= value < 1)
TUNED: Range = (
    "full, frozen, lora, or last-N, as in last-2",
    lambda value: re.fullmatch(r"full|frozen|lora|last-[1-9][0-9]*", value) is not None,
)


def setting(default: Any, valid: Range, help: str) -> Any:
    """Return a dataclass field with its valid range and its documentation."""
    return dataclasses.field(default=default, metadata={"valid": valid, "help": help})


@dataclasses.dataclass(frozen=True)
class TrainConfig(KnownFields):
    """Settings of a training run.

    Raises:
        ValueError: a setting is out of its range.
        TypeError: a setting has the wrong type, or a name is unknown.
    """

    epochs: int = setting(30, AT_LEAST_1, "passes over the training images")
    max_steps: int | None = setting(None, AT_LEAST_1, "maximum number of steps; `epochs` may end the run earlier")
    batch_size: int = setting(128, AT_LEAST_1, "samples per step; each is contrasted with all others of its batch")
    micro_batch_size: int | Literal["auto"] | None = setting(
        None,
        ("at least 1, or auto", lambda value: value == "auto" or value >= 1),
        "samples in memory at a time (gradient caching): the same step, two forward passes; auto: as many as fit",
    )
    gradient_checkpointing: bool = setting(
        False, ANY, "keep only the input of each block and recompute the rest in backward: less memory, slower"
    )
    fsdp: bool = setting(False, ANY, "shard the weights and the optimizer's state over the ranks, for large models")
    tune_image: str = setting("full", TUNED, "trained part of the image tower: full, frozen, last-N blocks, or lora")
    tune_text: str = setting("full", TUNED, "trained part of the text tower: full, frozen, last-N blocks, or lora")
    lora_rank: int = setting(4, AT_LEAST_1, "rank of LoRA's matrices, for towers that are tuned by lora")
    lora_alpha: float = setting(4.0, POSITIVE, "LoRA's update is multiplied by lora_alpha / lora_rank")
    lora_targets: str = setting(
        "q,k,v",
        (f"some of {','.join(LORA_TARGETS)}", lambda value: set(value.split(",")) <= set(LORA_TARGETS)),
        "layers of each block that LoRA adapts: queries, keys, values, out (of attention), mlp (both layers)",
    )
    optimizer: Optimizer = setting(
        "adamw", ANY, "adamw, or muon: Muon on matrices of blocks and stem, AdamW on the rest"
    )
    lr: float = setting(1e-3, POSITIVE, "peak learning rate")
    weight_decay: float = setting(
        0.1, AT_LEAST_0, "of the optimizer, only on the weights of linear layers and patch embeddings"
    )
    image_lr_scale: float = setting(1.0, AT_LEAST_0, "factor on the learning rate of the image tower")
    text_lr_scale: float = setting(1.0, AT_LEAST_0, "factor on the learning rate of the text tower")
    projection_lr_scale: float = setting(
        1.0, AT_LEAST_0, "factor on the learning rate of both projections, in place of that of their tower"
    )
    logit_scale_lr_scale: float = setting(1.0, AT_LEAST_0, "factor on the learning rate of the logit scale and bias")
    layer_decay: float = setting(
        1.0,
        ("above 0, at most 1", lambda value: 0 < value <= 1),
        "factor on the learning rate for each block between a weight and its tower's output, e.g. 0.8",
    )
    beta2: float = setting(0.98, BELOW_1, "of AdamW: decay of the squared gradient's average")
    warmup_fraction: float = setting(
        0.1,
        BELOW_1,
        f"fraction of the steps in which the learning rate rises from 0, at least {MIN_WARMUP_STEPS} steps or half of "
        "a short run (0: no warmup); then it falls to 0 along a cosine",
    )
    max_grad_norm: float = setting(1.0, POSITIVE, "maximum norm of the gradient; longer gradients are clipped")
    max_logit_scale: float = setting(100.0, AT_LEAST_1, "maximum factor on the cosine similarities")
    loss: Loss = setting("contrastive", ANY, "contrastive (CLIP) or sigmoid (SigLIP)")
    cache_frozen: bool = setting(
        False, ANY, "encode frozen towers once, and read their embeddings at every step; no random change of images"
    )
    embedding_cache: str | None = setting(
        None, ANY, "folder of these embeddings, which several runs may share; unset: in the run directory"
    )
    teacher: str | None = setting(None, ANY, "the checkpoint of a CLIP to distill from; its embeddings are kept too")
    distillation: float = setting(0.0, AT_LEAST_0, "weight of the divergence from the teacher's similarities")
    anchor_weights: float = setting(
        0.0, AT_LEAST_0, "weight of the squared distance from the starting weights, relative to their length (L2-SP)"
    )
    anchor_embeddings: float = setting(
        0.0, AT_LEAST_0, "weight of 1 - cosine to the starting model's embeddings of the same images and captions"
    )
    captions_per_image: int = setting(
        1,
        AT_LEAST_1,
        "captions of each image in a step, all of them its positives; different ones if the image has that many",
    )
    positives: Positives = setting(
        "pairs", ANY, "pairs: an image's own captions; all: also every identical caption of another image in the batch"
    )
    label_smoothing: float = setting(
        0.0, BELOW_1, "part of each target that is spread over all classes, in [0, 1); not in the validation loss"
    )
    precision: Precision = setting(
        "auto", ANY, "float32, bfloat16 (autocast), or auto: bfloat16 if the device has hardware for it"
    )
    min_crop_area: float = setting(
        0.9,
        ("above 0, at most 1", lambda value: 0 < value <= 1),
        "minimum fraction of an image's area that a random crop keeps, in (0, 1]; 1: no cropping",
    )
    max_rotation_degrees: float = setting(
        0.0, ("degrees in 0..180", lambda value: 0 <= value <= 180), "maximum random rotation in degrees, either way"
    )
    flip: bool = setting(False, ANY, "mirror half of the images; not for captions that mention left or right")
    swap_left_right: bool = setting(
        False, ANY, "with `flip`, exchange left and right in the English captions of mirrored images"
    )
    word_dropout: float = setting(0.0, BELOW_1, "probability that a step leaves out a word of a caption, in [0, 1)")
    color_jitter: float = setting(0.0, FRACTION, "random change of brightness, contrast and saturation, in [0, 1]")
    patch_dropout: float = setting(
        0.0, BELOW_1, "fraction of an image's patches that a step leaves out, in [0, 1): cheaper steps, augmentation"
    )
    first_image_size: int | None = setting(
        None, AT_LEAST_1, "side in pixels of the images in the first part of the run, a multiple of the patch size"
    )
    first_fraction: float = setting(0.75, BELOW_1, "fraction of the steps that has images of `first_image_size`")
    stochastic_depth: float = setting(
        0.0,
        BELOW_1,
        "probability, in [0, 1), that a sample skips a branch of the last block in a step; less before",
    )
    seed: int = setting(0, AT_LEAST_0, "seed of all random numbers: weights, order, captions, augmentation")
    eval_every: int = setting(1, AT_LEAST_1, "epochs between evaluations")
    evaluate_first: bool = setting(
        False, ANY, "also evaluate before the first step, as step 0, so that a harm of fine-tuning shows"
    )
    ema_decay: float | None = setting(
        None, BELOW_1, "decay of an exponential moving average of the weights, e.g. 0.999; it is evaluated and saved"
    )
    compile: bool = setting(False, ANY, "compile the towers' blocks with torch.compile: slow start, faster steps")
    monitor: Monitor = setting(
        "recall", ANY, "metric of best/: recall (mean R@1 of both directions), the R@1 of one direction, or val_loss"
    )
    save_every: int | None = setting(None, AT_LEAST_1, "steps between checkpoints, besides the one after each epoch")
    save_minutes: float | None = setting(
        15.0, POSITIVE, "minutes between checkpoints, besides the one after each epoch"
    )
    keep_checkpoints: int = setting(1, AT_LEAST_1, "training states to keep: the newest, and earlier ones in states/")
    save_in_background: bool = setting(True, ANY, "write checkpoints in a thread, from a copy of the tensors")
    max_nonfinite_steps: int = setting(
        10, AT_LEAST_0, "non-finite steps in a row that do not stop the run; they change no weight"
    )
    log_every: int = setting(
        10, AT_LEAST_1, "steps between reads of the metrics, which wait for the device; all are logged"
    )
    tensorboard: bool = setting(False, ANY, "log to TensorBoard as well, in the run directory")
    wandb: str | None = setting(None, ANY, "the Weights & Biases project to log to as well")
    num_workers: int | None = setting(
        None, AT_LEAST_0, "processes that decode images; unset: none if all decoded images fit in 2 GiB, else cores - 1"
    )
    reduced_decoding: bool = setting(
        True,
        ANY,
        "decode large JPEGs at a reduced size, at least twice the model's, and resize JPEGs with torch: much faster, "
        "one grey level off; evaluation and the cache never do",
    )
    on_error: OnError = setting(
        "raise", ANY, "for training images that cannot be read: stop the run (raise), or warn and leave them out (skip)"
    )
    max_skip_fraction: float = setting(
        MAX_SKIP_FRACTION, FRACTION, "maximum fraction of the training images that may be left out"
    )

    def __post_init__(self) -> None:
        check_types(self)
        for field in dataclasses.fields(self):
            value, (expected, is_valid) = getattr(self, field.name), field.metadata["valid"]
            if value is not None and not is_valid(value):
                raise ValueError(f"{option(field.name)} is {value}; expected {expected} ({self.help(field.name)})")
        if self.swap_left_right and not self.flip:
            raise ValueError(f"{option('swap_left_right', True)}: no image is mirrored; add {option('flip', True)}")
        if self.word_dropout and self.positives == "all":
            raise ValueError(
                f"{option('word_dropout', self.word_dropout)} changes captions, which {option('positives', 'all')} "
                "compares: leave one of the two out"
            )

    def warmup_steps(self, total: int) -> int:
        """Return the number of warmup steps of a run of `total` steps."""
        if not self.warmup_fraction:
            return 0
        return max(round(self.warmup_fraction * total), min(MIN_WARMUP_STEPS, total // 2))

    @classmethod
    def help(cls, name: str) -> str:
        """Return the documentation of a setting, one line."""
        return str(next(f for f in dataclasses.fields(cls) if f.name == name).metadata["help"])

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> TrainConfig:
        """Return the settings with the given names and values.

        Raises:
            ValueError: a name is unknown, or a value is out of its range.
            TypeError: a value has the wrong type.
        """
        if not isinstance(values, Mapping):
            raise TypeError(f"the settings are a {type(values).__name__}; expected a dict")
        names = [field.name for field in dataclasses.fields(cls)]
        for name in values:
            if name not in names:
                raise ValueError(f"unknown setting {name!r}{did_you_mean(name, names)}")
        return cls(**values)

    def to_dict(self) -> dict[str, Any]:
        """Return the settings as JSON values; `from_dict` reads them back."""
        return dataclasses.asdict(self)
