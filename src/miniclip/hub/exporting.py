"""Export of a model in the layout of another project: weights for a library, or ONNX for an application."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import nn

from miniclip.checkpoints import LAYOUTS, Layout
from miniclip.checkpoints.export import export as export_weights
from miniclip.deployment import DEPLOYMENT_LAYOUTS, FORMS, DeploymentLayout, Precision
from miniclip.deployment.options import Options
from miniclip.utils.checks import did_you_mean


def export(
    model: nn.Module,
    path: str | Path,
    *,
    layout: Layout | DeploymentLayout,
    repo: str | None = None,
    precision: Precision = "float32",
    preprocessing: bool = False,
    forms: Sequence[str] = FORMS,
    int8: bool = False,
    check_data: Any = None,
    check_classes: Any = None,
    calibration_data: Any = None,
    overwrite: bool = False,
) -> None:
    """Write a model in another project's layout, for that project's code to open.

    Args:
        model: a CLIPModel of any precision. torch.compile and DataParallel may wrap the model or its parts.
        path: a directory, made if it is missing.
        layout: weights, in the model's precision, for another library: "openai" (a state dict, `model.pt`, for
            `clip.load`), "open_clip" (for `local-dir:`) or "transformers" (for `from_pretrained`: a CLIPModel, or a
            SiglipModel if images are pooled by attention). ONNX for an application: "onnx" (`visual.onnx` and
            `textual.onnx`), "immich", "transformers.js", "optimum" or "rclip".
        repo: for weights: the repository that the files will be pushed to, which open_clip's configuration names for
            its tokenizer.
        precision: for ONNX: "float32", or "float16" for half the size. Inputs and embeddings are float32 in both.
        preprocessing: for "onnx": `visual.onnx` takes uint8 RGB images (B, H, W, 3) of any size, in place of pixels.
        forms: for "transformers.js": the precisions to write, by its names.
        int8: for "onnx": also write `visual_int8.onnx` and `textual_int8.onnx` for a CPU, and check them.
        check_data: for int8: an image-caption dataset. Each recall on it may fall by half a point at most.
        check_classes: for int8: a labelled dataset. The zero-shot accuracy on it may fall by half a point at most.
            Without either, only cosines are checked, with a warning.
        calibration_data: for int8: an image-caption dataset of a hundred or more images like those that the model will
            embed. Constant scales of activations are found on up to 256 of them, which is faster than a scale for each
            token.
        overwrite: allow a directory with files; those of the same names are replaced.

    Raises:
        TypeError: the model is not a CLIPModel.
        FileExistsError: the directory has files, or belongs to a run.
        ValueError: the layout is unknown, or the other project cannot open this model; the message gives the reason.
        ImportError: an export to ONNX lacks a library.
        CheckpointError: the files do not give the model's embeddings; nothing is left at the path.
    """
    if layout not in (*LAYOUTS, *DEPLOYMENT_LAYOUTS):
        raise ValueError(f"unknown layout {layout!r}{did_you_mean(layout, (*LAYOUTS, *DEPLOYMENT_LAYOUTS))}")
    options = Options(precision, preprocessing, tuple(forms), int8, check_data, check_classes, calibration_data)
    options.require_layout(layout)
    if layout in LAYOUTS:
        export_weights(model, path, layout=layout, repo=repo, overwrite=overwrite)  # type: ignore[arg-type]
    else:
        from miniclip.deployment.exporting import deploy

        deploy(model, path, layout=layout, options=options, overwrite=overwrite)
