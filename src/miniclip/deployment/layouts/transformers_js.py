"""Layout "transformers.js": a folder for `@huggingface/transformers` in a browser or in node.

- `onnx/vision_model.onnx`: `pixel_values` (batch, 3, S, S) float32 to `image_embeds`, or to SigLIP's `pooler_output`.
- `onnx/text_model.onnx`: `input_ids` (batch, length) int64 to `text_embeds`, or to SigLIP's `pooler_output`. A model
  with masked padding takes `attention_mask` too, which the library's tokenizer returns.
- The same with the endings of the library's `dtype` options, such as `_fp16`. Weights that need a file of their own are
  in one with the ending `_data`, and `transformers.js_config` in `config.json` names them.

As in transformers, the embeddings are not normalized. The library cuts long captions at their end and loses the end
token. The file puts it into the last position of a row without one, so the caption is cut as by miniclip. Source:
`src/utils/dtypes.js`, `src/models/session.js` and `src/tokenization_utils.js` of version 4.3.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np

from miniclip.deployment import Precision
from miniclip.deployment.encoders import Signature, write_image_encoder, write_text_encoder
from miniclip.deployment.layouts.settings import required_tokenizer, write_tokenizer
from miniclip.deployment.layouts.transformers_files import is_siglip, write_settings
from miniclip.deployment.options import Options
from miniclip.deployment.towers import row_end, sample_pixels, sample_tokens
from miniclip.deployment.verification import require_cosine
from miniclip.deployment.weight_forms import WEIGHT_FORMS
from miniclip.inference.model import CLIPModel

ENDINGS = {"fp32": "", "fp16": "_fp16", "int8": "_int8", "q8": "_quantized", "q4": "_q4"}
VISION, TEXT = "vision_model", "text_model"
logger = logging.getLogger(__name__)


def write(model: CLIPModel, folder: Path, options: Options) -> None:
    """Write the files of the layout to an empty folder.

    Raises:
        ValueError: the model has no tokenizer, or a form is unknown.
    """
    models = folder / "onnx"
    tokenizer = required_tokenizer(model, "transformers.js")  # before the models, which take longer
    for form in ("fp32", *(form for form in options.forms if form != "fp32")):  # others are made from float32
        if form in ("fp32", "fp16"):
            _write_float(model, models, form)
        else:
            _write_small(model, models, form)
    if "fp32" not in options.forms:
        for file in [*models.glob(f"{VISION}.onnx*"), *models.glob(f"{TEXT}.onnx*")]:
            file.unlink()
    external = {file.name.removesuffix("_data"): 1 for file in models.glob("*_data")}
    extra: dict[str, Any] = {"transformers.js_config": {"use_external_data_format": external}} if external else {}
    write_settings(model, folder, **extra)
    write_tokenizer(tokenizer, folder, model.config.text.context_length)


def _write_float(model: CLIPModel, folder: Path, form: str) -> None:
    siglip, masked = is_siglip(model.config), model.config.text.padding == "masked"
    image, text = ("pooler_output", "pooler_output") if siglip else ("image_embeds", "text_embeds")
    precision: Precision = "float16" if form == "fp16" else "float32"
    vision_file, text_file = (folder / f"{name}{ENDINGS[form]}.onnx" for name in (VISION, TEXT))
    vision = Signature("pixel_values", image, normalize=False, external=f"{vision_file.name}_data")
    write_image_encoder(model, vision_file, vision, precision)
    words = Signature(
        "input_ids",
        text,
        normalize=False,
        mask="attention_mask" if masked else None,
        row_end=row_end(model),
        external=f"{text_file.name}_data",
    )
    write_text_encoder(model, text_file, words, precision)


def _write_small(model: CLIPModel, folder: Path, form: str) -> None:
    """Write both towers with small weights, from their float32 files; check them on noise."""
    convert, least = WEIGHT_FORMS[form]
    tokens = sample_tokens(model.config, 7).numpy()
    text = {"input_ids": tokens}
    if model.config.text.padding == "masked":
        text["attention_mask"] = np.ones_like(tokens)
    for name, inputs in ((VISION, {"pixel_values": sample_pixels(model.config, 7).numpy()}), (TEXT, text)):
        source, target = folder / f"{name}.onnx", folder / f"{name}{ENDINGS[form]}.onnx"
        convert(source, target)
        cosine = require_cosine(target, source, inputs, least)
        logger.info("%s: the smallest cosine with float32 on noise is %.4f", target.name, cosine)
