"""Models between models: interpolation of two, and the average of several.

- WiSE-FT (Wortsman et al. 2022, https://arxiv.org/abs/2109.01903): the weights (1 - alpha) a + alpha b of a pretrained
  model a and the fine-tuned model b keep much of both.
- Model soups (Wortsman et al. 2022, https://arxiv.org/abs/2203.05482): the mean of several fine-tuned models.

Each weight is computed in float64 and rounded to float32. The logit scale is averaged as its logarithm, which is the
parameter: the factor is the geometric mean of the factors.

Statistics of batch normalization are averaged too. Runs of miniclip keep those of their start, so the mean is exact.

A model without a logit bias (contrastive loss) may be averaged with one that has a bias (sigmoid loss). It then gets
the first bias and scale of the other's configuration, with which `add_logit_bias` starts such a run. No ranking of
images or captions changes by that.
"""

from __future__ import annotations

import dataclasses
import math
import warnings
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from miniclip.checkpoints.native import full_state, unwrap_clip
from miniclip.config import CLIPConfig, ImageConfig
from miniclip.data.cache.format import tokenizer_checksum
from miniclip.inference.image_towers import fill_buffers
from miniclip.inference.model import CLIPModel
from miniclip.tower_config import OtherImageConfig
from miniclip.utils.items import describe, listed

SAME_STATISTICS = 0.01  # largest relative difference, as of bfloat16
RELATED = 0.5  # cosine of the matrices of two models; after fine-tuning above 0.9, of independent models about 0


def interpolate(a: CLIPModel, b: CLIPModel, alpha: float = 0.5) -> CLIPModel:
    """Return the model with the weights (1 - alpha) a + alpha b.

    Args:
        a: a model, such as the pretrained one.
        b: a model that was trained from it, or from the same start. Adapters are merged.
        alpha: the share of b, in 0..1; 0 gives the weights of a, and 1 those of b.

    Returns:
        A new model with float32 weights (float64 if a model has them) on the device of a, in evaluation mode.

    Raises:
        ValueError: alpha is out of range; architecture, preprocessing or tokenizer of the models differ, so that their
            weights have different meanings; or a weight is not finite.
        TypeError: an argument is something else.
    """
    if isinstance(alpha, bool) or not isinstance(alpha, int | float):
        raise TypeError(f"alpha: found {describe(alpha)}; expected a number in 0..1, the share of the second model")
    if not 0 <= alpha <= 1:
        raise ValueError(f"alpha is {alpha}; expected a number in 0..1, the share of the second model")
    return soup([a, b], [1 - alpha, alpha])


def soup(models: Sequence[CLIPModel], weights: Sequence[float] | None = None) -> CLIPModel:
    """Return the weighted average of models, such as several fine-tuning runs from one start.

    Args:
        models: at least two models.
        weights: a number per model, at least 0, with the sum 1; None: equal numbers (a uniform soup).

    Returns:
        As `interpolate`.

    Raises:
        ValueError: there are fewer than two models, the weights do not fit, or as `interpolate`.
        TypeError: as `interpolate`.
    """
    clips = [unwrap_clip(model) for model in listed(models, "models", "a list of models")]
    if len(clips) < 2:
        raise ValueError(f"found {len(clips)} models; an average needs at least two")
    shares = [1 / len(clips)] * len(clips) if weights is None else [float(weight) for weight in weights]
    if len(shares) != len(clips) or min(shares) < 0 or not abs(sum(shares) - 1) < 1e-6:
        raise ValueError(f"weights are {shares}; expected {len(clips)} numbers, at least 0, with the sum 1")
    first, *others = clips
    for number, other in enumerate(others, 2):
        require_same_kind(first, other, number)
    config = next((clip.config for clip in clips if clip.logit_bias is not None), first.config)
    states = [_with_bias(full_state(clip), config) for clip in clips]
    for number, state in enumerate(states[1:], 2):
        _warn_of_strangers(states[0], state, number)
        _warn_of_statistics(states[0], state, number)
    tensors = {name: _mean([state[name] for state in states], shares, name) for name in states[0]}
    with torch.device("meta"):
        model = CLIPModel(config)
    model.load_state_dict(tensors, assign=True)
    fill_buffers(model.image, config.embed_dim)
    model.tokenizer, model.preprocess = first.tokenizer, first.preprocess
    return model.to(first.device).eval()


def require_same_kind(first: CLIPModel, other: CLIPModel, number: int = 2) -> None:
    """Check that the weights of two models have the same meaning.

    Args:
        first: a model.
        other: another one.
        number: number of the other, for the message.

    Raises:
        ValueError: architecture, preprocessing or tokenizer differ; the message names what differs.
    """
    start = f"models 1 and {number} cannot be averaged:"
    different = _differences(first.config, other.config)
    if different:
        raise ValueError(f"{start} they differ in {', '.join(different)}; load both with the same values")
    if repr(first.preprocess) != repr(other.preprocess):
        raise ValueError(f"{start} their preprocessing differs, {first.preprocess!r} and {other.preprocess!r}")
    if _checksum(first) != _checksum(other):
        raise ValueError(
            f"{start} their tokenizers differ, so that their token embeddings belong to different words; if you are "
            "certain that they are equal, give both the same object: b.tokenizer = a.tokenizer"
        )


def _with_bias(state: dict[str, Tensor], config: CLIPConfig) -> dict[str, Tensor]:
    """Return a state with the first bias and scale of a configuration, if that has a bias and the state has none."""
    if config.logit_bias is None or "logit_bias" in state:
        return state
    scale = state["log_scale"]
    first = {"log_scale": math.log(config.logit_scale), "logit_bias": config.logit_bias}
    return state | {name: torch.full_like(scale, value) for name, value in first.items()}


def _differences(a: CLIPConfig, b: CLIPConfig) -> list[str]:
    """Return the settings that differ, as text; the initial values of logit scale and bias mean nothing any more."""
    if type(a.image) is not type(b.image):
        return ["the image tower ({} and {})".format(*map(_tower, (a.image, b.image)))]
    before, after = (_flat(dataclasses.replace(config, logit_scale=1.0, logit_bias=None)) for config in (a, b))
    return [f"{name} ({value} and {after[name]})" for name, value in before.items() if after[name] != value]


def _tower(image: ImageConfig | OtherImageConfig) -> str:
    return "a vision transformer" if isinstance(image, ImageConfig) else image.label


def _flat(config: Any, prefix: str = "") -> dict[str, Any]:
    values: dict[str, Any] = {}
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        inner = dataclasses.is_dataclass(value)
        values |= _flat(value, f"{field.name}.") if inner else {f"{prefix}{field.name}": value}
    return values


def _checksum(model: CLIPModel) -> str | None:
    return None if model.tokenizer is None else tokenizer_checksum(model.tokenizer)


def _mean(tensors: Iterable[Tensor], shares: Sequence[float], name: str) -> Tensor:
    """Return a weighted mean on the CPU: some devices have no float64."""
    parts = [tensor.cpu() for tensor in tensors]
    if not all(torch.isfinite(part).all() for part in parts):
        raise ValueError(f"{name} is not finite in one of the models, whose run diverged: use an earlier checkpoint")
    mean = torch.stack([share * part.double() for share, part in zip(shares, parts, strict=True)]).sum(dim=0)
    return mean.to(torch.float64 if any(part.dtype == torch.float64 for part in parts) else torch.float32)


def _warn_of_statistics(a: dict[str, Tensor], b: dict[str, Tensor], number: int) -> None:
    """Warn if two models have different statistics of batch normalization, of which no mean is exact."""
    for name, first in a.items():
        if name.endswith(("running_mean", "running_var")):
            difference = float((first - b[name]).norm() / first.norm().clamp(min=1e-30))
            if not difference <= SAME_STATISTICS:
                warnings.warn(
                    f"models 1 and {number} have different statistics of batch normalization ({name}), as training "
                    "elsewhere gives them, and the mean of two is not that of the averaged weights: compare the result "
                    "with both models",
                    stacklevel=4,
                )
                return


def _warn_of_strangers(a: dict[str, Tensor], b: dict[str, Tensor], number: int) -> None:
    """Warn if the matrices of two models point in different directions: neither was trained from the other."""
    names = [name for name, tensor in a.items() if tensor.dim() == 2 and min(tensor.shape) > 1]
    pairs = [(a[name].float().cpu().flatten(), b[name].float().cpu().flatten()) for name in names]
    product, first, second = (
        sum(float(x @ y) for x, y in each) for each in (pairs, [(x, x) for x, _ in pairs], [(y, y) for _, y in pairs])
    )
    cosine = product / max((first * second) ** 0.5, 1e-30)
    if cosine < RELATED:
        warnings.warn(
            f"models 1 and {number} have unrelated weights (cosine {cosine:.2f}): neither was trained from the other, "
            "nor both from one start, and a model between them is most likely worse than either",
            stacklevel=4,
        )
