"""Export of a model to the layout of an application."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from torch import nn

from miniclip.checkpoints.native import require_plain, unwrap_clip
from miniclip.deployment.directory import written_directory
from miniclip.deployment.layouts import bare, immich, optimum, rclip, transformers_js
from miniclip.deployment.onnx_files import require_onnx
from miniclip.deployment.options import Options
from miniclip.finetuning.lora import without_adapters
from miniclip.inference.model import CLIPModel

Writer = Callable[[CLIPModel, Path, Options], None]  # writes to an empty folder, and checks the files

WRITERS: Mapping[str, Writer] = {
    "onnx": bare.write,
    "immich": immich.write,
    "transformers.js": transformers_js.write,
    "optimum": optimum.write,
    "rclip": rclip.write,
}


def deploy(
    model: nn.Module, path: str | Path, *, layout: str, options: Options | None = None, overwrite: bool = False
) -> None:
    """Write a model for an application, checked in onnxruntime. `miniclip.export` describes the arguments."""
    require_onnx()
    clip = without_adapters(unwrap_clip(model))
    require_plain(clip, clip.state_dict())
    with written_directory(path, overwrite) as folder:
        WRITERS[layout](clip, folder, options or Options())
