"""Layout "rclip": a folder for the data directory of rclip, which searches photos from the command line.

rclip 3.3 (in its wheel on PyPI: `rclip/model.py`, `model_download.py`, `utils/preprocess.py`, `utils/tokenizer.py`)
opens `ViT-B-32-256-datacomp_s34b_b86k/visual.onnx` and `textual.onnx` in its data directory, and downloads them only if
they are missing. It has one preprocessing and one tokenizer, so a model must take these:

- `input` (batch, 3, 256, 256) float32: the shorter side resized to 256 by bicubic interpolation, the center cropped
  with halves rounded to even, normalised by OpenAI's mean and standard deviation;
- `input` (batch, 77) int64: byte-level BPE of OpenAI's kind, cleaned by ftfy, padded with 0. The merges are in
  `tokenizer/bpe_simple_vocab_16e6.txt.gz`, which the export writes too; they need not be OpenAI's;
- embeddings of 512 numbers.
"""

from __future__ import annotations

import gzip
from pathlib import Path

from miniclip.config import OPENAI_MEAN, OPENAI_STD, CLIPConfig
from miniclip.deployment.encoders import Signature, write_image_encoder, write_text_encoder
from miniclip.deployment.layouts.settings import require_same_ids, required_tokenizer
from miniclip.deployment.options import Options
from miniclip.inference.model import CLIPModel
from miniclip.tokenizer import Tokenizer
from miniclip.tokenizer.bpe import vocabulary
from miniclip.tokenizer.files import NUM_OPENAI_MERGES

IMAGE, TEXT = Signature("input", "output"), Signature("input", "output", padded=True)
FOLDER, MERGES = "ViT-B-32-256-datacomp_s34b_b86k", "tokenizer/bpe_simple_vocab_16e6.txt.gz"
FIRST_LINE = '"bpe_simple_vocab_16e6.txt#version: 0.2'


def write(model: CLIPModel, folder: Path, options: Options) -> None:
    """Write the files of the layout to an empty folder.

    Raises:
        ValueError: rclip would give the model other pixels or token ids; the message names the differences.
    """
    _require_supported(model.config)
    _write_merges(model, folder / MERGES)
    write_image_encoder(model, folder / FOLDER / "visual.onnx", IMAGE, options.precision)
    write_text_encoder(model, folder / FOLDER / "textual.onnx", TEXT, options.precision)


def _require_supported(config: CLIPConfig) -> None:
    settings = {
        "image size": (config.image.image_size, 256),
        "embedding": (config.embed_dim, 512),
        "context length": (config.text.context_length, 77),
        "mean": (config.mean, OPENAI_MEAN),
        "standard deviation": (config.std, OPENAI_STD),
        "interpolation": (config.interpolation, "bicubic"),
        "resize": (config.resize, "shortest"),
        "crop rounding": (config.crop_rounding, "rounded"),
    }
    differences = [f"{name} {value!r}, there {there!r}" for name, (value, there) in settings.items() if value != there]
    if differences:
        raise ValueError(f"rclip has one fixed preprocessing, and this model has another: {'; '.join(differences)}")


def _write_merges(model: CLIPModel, file: Path) -> None:
    """Write the merges of the model's tokenizer, whose ids rclip numbers in OpenAI's order."""
    tokenizer = required_tokenizer(model, "rclip")
    merges = tokenizer.merges if isinstance(tokenizer, Tokenizer) else []
    if not isinstance(tokenizer, Tokenizer) or tokenizer.vocab != vocabulary(merges) or len(merges) > NUM_OPENAI_MERGES:
        raise ValueError(
            f"rclip has byte-level BPE in OpenAI's order, of at most {NUM_OPENAI_MERGES} merges, and this model has a "
            f"{tokenizer!r}"
        )
    there = Tokenizer(tokenizer.vocab, merges, openai_cleaning=True)
    context = model.config.text.context_length
    require_same_ids(tokenizer, model.config, lambda caption: there([caption], context, pad=True)[0].tolist(), "rclip")
    file.parent.mkdir(parents=True)
    lines = [FIRST_LINE, *(" ".join(merge) for merge in merges)]  # an empty line at the end would count as a merge
    file.write_bytes(gzip.compress("\n".join(lines).encode(), mtime=0))
