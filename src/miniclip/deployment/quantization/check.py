"""Check of int8 towers beside float32: cosines of embeddings, and recall and zero-shot accuracy on the user's data.

Letters: N items, E embedding.
"""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from miniclip.checkpoints.native import write_json
from miniclip.config import CLIPConfig
from miniclip.data.given import as_dataset
from miniclip.deployment import INT8_CHECK
from miniclip.deployment.quantization.attention import write_fused
from miniclip.deployment.quantization.calibration import Samples, draw_samples, pixel_batches, token_batches
from miniclip.deployment.quantization.encoder import OnnxEncoder, encode_images
from miniclip.deployment.quantization.graph import quantize_file
from miniclip.deployment.towers import sample_pixels, sample_tokens
from miniclip.deployment.verification import Arrays
from miniclip.errors import CheckpointError
from miniclip.evaluation.labelled.images import as_labelled
from miniclip.evaluation.retrieval import Embeddings, LazyImages, recalls
from miniclip.evaluation.zero_shot import class_vectors, predictions, scale_of
from miniclip.inference.model import CLIPModel

MIN_COSINE = 0.97  # smallest cosine with the float32 embedding of noise; trained models have more
NOISE = "noise"
MAX_LOSS = 0.5  # points of recall or accuracy that int8 may lose

Figures = dict[str, float]  # name to percent


@torch.no_grad()
def write_int8(
    model: CLIPModel,
    visual: Path,
    textual: Path,
    captioned: Any = None,
    labelled: Any = None,
    calibration: Any = None,
) -> None:
    """Write int8 forms of two towers, `NAME_int8.onnx`, and the report of their check, `int8_check.json`.

    The report has the smallest cosines, on noise or on the calibration data, the limits, and recall and zero-shot
    accuracy of both forms, each null without its data.

    Args:
        model: the model that the files came from.
        visual: its image tower in float32, without preprocessing inside.
        textual: its text tower in float32.
        captioned: an image-caption dataset to measure recall on.
        labelled: a labelled dataset to measure zero-shot accuracy on. Without it and `captioned`, there is a warning.
        calibration: an image-caption dataset to find constant scales of activations on; None: a scale for each token.

    Raises:
        ValueError: the calibration data are empty, or give activations that are not finite.
        CheckpointError: a cosine, a recall or the accuracy is below its limit, or files with fused attention give
            other embeddings.
    """
    files = [path.with_name(f"{path.stem}_int8.onnx") for path in (visual, textual)]
    samples = None if calibration is None else draw_samples(calibration)
    batches = () if samples is None else (pixel_batches(model, samples.images), token_batches(model, samples.texts))
    quantize_towers(model.config, (visual, textual), files, *batches)
    encoders = [OnnxEncoder(model, visual, textual), OnnxEncoder(model, *files)]
    where = NOISE if samples is None else "the calibration data"
    report: dict[str, Any] = {"limits": {"cosine": MIN_COSINE, "points": MAX_LOSS}}
    report |= {"cosine": _cosines(encoders, samples), "cosine_on": where}
    for tower, cosine in report["cosine"].items():
        if not cosine >= MIN_COSINE:
            raise CheckpointError(
                f"the int8 {tower} tower was checked and refused: the cosine with float32 is {cosine:.4f} on {where}; "
                f"the limit is {MIN_COSINE}. Export without {'int8' if samples is None else 'calibration data'}"
            )
    for name, data, measure in (("recall", captioned, _recalls), ("zero_shot", labelled, _accuracies)):
        report[name] = None if data is None else _within_limit(measure(encoders, data))
    write_json(visual.with_name(INT8_CHECK), report)
    if captioned is None and labelled is None:
        cosines = ", ".join(f"{tower} {cosine:.4f}" for tower, cosine in report["cosine"].items())
        warnings.warn(
            f"int8: cosines with float32 on {where}: {cosines}. Recall was not checked: pass check_data, captioned "
            "images, or check_classes, labelled ones",
            stacklevel=2,
        )


def quantize_towers(
    config: CLIPConfig,
    sources: Sequence[Path],
    targets: Sequence[Path],
    pixels: Iterable[Arrays] | None = None,
    tokens: Iterable[Arrays] | None = None,
) -> None:
    """Write int8 forms of two towers, unchecked but for their attention.

    Args:
        config: of the model.
        sources: files of the image tower and of the text tower in float32.
        targets: the new files.
        pixels: calibration data of the image tower, its inputs by name; None: a scale for each token.
        tokens: likewise of the text tower.

    Raises:
        ValueError: the calibration data are empty, or give activations that are not finite.
        CheckpointError: files with fused attention give other embeddings.
    """
    samples: list[Arrays] = [{"image": sample_pixels(config, 2).numpy()}, {"text": sample_tokens(config, 2).numpy()}]
    heads, causal = (config.image.heads, config.text.heads), (False, config.text.causal)
    with tempfile.TemporaryDirectory(dir=targets[0].parent) as folder:
        for tower, batches in enumerate((pixels, tokens)):
            fused = Path(folder) / f"{sources[tower].stem}_fused.onnx"
            write_fused(sources[tower], fused, heads[tower], causal[tower], samples[tower])
            quantize_file(fused, targets[tower], batches)


def _cosines(encoders: list[OnnxEncoder], samples: Samples | None) -> dict[str, float]:
    """Return the smallest cosine of each tower's embeddings of calibration data, or of noise."""
    config = encoders[0].model.config
    images: Any = sample_pixels(config, 8) if samples is None else samples.images
    texts: Any = sample_tokens(config, 8) if samples is None else samples.texts
    pairs = {"image": encode_images(encoders, images), "text": [one.encode_text(texts) for one in encoders]}
    return {tower: float((a * b).sum(dim=1).min()) for tower, (a, b) in pairs.items()}


def _recalls(encoders: list[OnnxEncoder], data: Any) -> list[Figures]:
    """Return the recalls of each encoder, such as "image to text R@1"."""
    data = as_dataset(data)
    counts = torch.tensor([len(group) for group in data.captions], device="cpu")
    image_indices = torch.arange(len(counts), device="cpu").repeat_interleave(counts)
    texts = [caption for group in data.captions for caption in group]

    def figures(encoder: OnnxEncoder, images: Tensor) -> Figures:
        result = recalls(Embeddings(images, encoder.encode_text(texts), image_indices))
        return {f"{way.replace('_', ' ')} {k}": value for way, values in result.items() for k, value in values.items()}

    return [figures(*pair) for pair in zip(encoders, encode_images(encoders, LazyImages(data)), strict=True)]


def _accuracies(encoders: list[OnnxEncoder], data: Any) -> list[Figures]:
    """Return the zero-shot accuracy of each encoder."""
    images = as_labelled(data, None)
    embeddings, scale = encode_images(encoders, images), scale_of(encoders[0].model).cpu()

    def figures(encoder: OnnxEncoder, rows: Tensor) -> Figures:
        classes = class_vectors(encoder, images, None)
        correct = predictions(rows, classes, images.labels, scale, images.class_names).correct
        return {"zero-shot top-1": 100 * float(correct.double().mean())}

    return [figures(*pair) for pair in zip(encoders, embeddings, strict=True)]


def _within_limit(measured: list[Figures]) -> Mapping[str, Figures]:
    """Return the figures of both forms by the form's name.

    Raises:
        CheckpointError: int8 loses more than the limit in one of them.
    """
    before, after = measured
    for name, value in before.items():
        if not value - after[name] <= MAX_LOSS + 1e-9:
            raise CheckpointError(
                f"the int8 towers were checked and refused: {name} falls from {value:.1f} to {after[name]:.1f} %; the "
                f"limit is {MAX_LOSS} points. Export without int8, or check on more data if one query is more than that"
            )
    return {"float32": before, "int8": after}
