"""Layout "rclip": a folder for the data directory of rclip, which searches photos from the command line.

rclip 3.3 (in its wheel on PyPI: `rclip/model.py`, `model_download.py`, `utils/preprocess.py`, `utils/tokenizer.py`)
opens `ViT-B-32-256-datacomp_s34b_b86k/visual.onnx` and `textual.onnx` in its data directory, and downloads them only if
they are missing. It has one preprocessing and one tokenizer, so a model must take these:

- `input` (batch, 3, 256, 256) float32: the shorter side resized to 256 by bicubic interpolation, the center cropped
  with halves rounded to even, normalised by OpenAI's mean and standard deviation;
- `input` (batch, 77) int64, of OpenAI's vocabulary, padded with 0;
- embeddings of 512 numbers.
"""

from __future__ import annotations

from pathlib import Path

from miniclip.config import OPENAI_MEAN, OPENAI_STD
from miniclip.deployment.encoders import Signature, write_image_encoder, write_text_encoder
from miniclip.deployment.layouts.settings import required_tokenizer
from miniclip.deployment.options import Options
from miniclip.inference.model import CLIPModel

IMAGE, TEXT = Signature("input", "output"), Signature("input", "output", padded=True)
FOLDER = "ViT-B-32-256-datacomp_s34b_b86k"


def write(model: CLIPModel, folder: Path, options: Options) -> None:
    """Write the files of the layout to an empty folder.

    Raises:
        ValueError: rclip would give the model other pixels or token ids; the message names the differences.
    """
    _require_supported(model)
    write_image_encoder(model, folder / FOLDER / "visual.onnx", IMAGE, options.precision)
    write_text_encoder(model, folder / FOLDER / "textual.onnx", TEXT, options.precision)


def _require_supported(model: CLIPModel) -> None:
    config, tokenizer = model.config, required_tokenizer(model, "rclip")
    settings = {
        "image size": (config.image.image_size, 256),
        "embedding": (config.embed_dim, 512),
        "context length": (config.text.context_length, 77),
        "mean": (config.mean, OPENAI_MEAN),
        "standard deviation": (config.std, OPENAI_STD),
        "interpolation": (config.interpolation, "bicubic"),
        "resize": (config.resize, "shortest"),
        "crop rounding": (config.crop_rounding, "rounded"),
        "vocabulary": ("OpenAI's" if getattr(tokenizer, "is_openai", False) else "another", "OpenAI's"),
    }
    differences = [f"{name} {value!r}, there {there!r}" for name, (value, there) in settings.items() if value != there]
    if differences:
        raise ValueError(f"rclip has one fixed preprocessing, and this model has another: {'; '.join(differences)}")
