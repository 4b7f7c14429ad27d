"""Settings in the files of transformers, which optimum and transformers.js read beside ONNX models.

The graph is in the ONNX files, so `config.json` only names the kind of model. A BERT-style text tower works too, which
transformers itself cannot build.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from miniclip.checkpoints.foreign_config import warn_if_cropped_differently
from miniclip.checkpoints.formats.transformers import CONFIG, PREPROCESSOR
from miniclip.checkpoints.formats.transformers_export import model_config, processor_config
from miniclip.checkpoints.native import write_json
from miniclip.config import CLIPConfig, ImageConfig
from miniclip.inference.model import CLIPModel


def is_siglip(config: CLIPConfig) -> bool:
    """Return whether transformers' name of a model is SigLIP: images pooled by attention, texts padded in full."""
    image = config.image
    return isinstance(image, ImageConfig) and image.pooling == "attention" and config.text.padding == "attended"


def write_settings(model: CLIPModel, folder: Path, **extra: Any) -> None:
    """Write the configuration of the model and of the preprocessing.

    Args:
        model: the model.
        folder: where to write.
        extra: more values of `config.json`.
    """
    config, siglip = model.config, is_siglip(model.config)
    warn_if_cropped_differently(config, "floored", "transformers")
    write_json(folder / CONFIG, {**model_config(config, siglip), **extra})
    write_json(folder / PREPROCESSOR, processor_config(config, siglip and config.resize == "squash"))
