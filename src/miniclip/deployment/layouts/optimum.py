"""Layout "optimum": a folder for `ORTModelForZeroShotImageClassification` of optimum-onnx.

`model.onnx` has the inputs `input_ids`, `pixel_values` and `attention_mask`, and the outputs `logits_per_image`,
`logits_per_text`, `text_embeds` and `image_embeds`, which are unit vectors. A model that attends to its padding has no
`attention_mask`. transformers reads the other files: `config.json`, `preprocessor_config.json`, `tokenizer.json` and
`tokenizer_config.json`. Source: `optimum/onnxruntime/modeling.py` of optimum-onnx 0.1.
"""

from __future__ import annotations

from pathlib import Path

from miniclip.checkpoints.export import TOKENIZER_CONFIG, tokenizer_config
from miniclip.checkpoints.native import TOKENIZER, write_json
from miniclip.deployment.joint import write_joint
from miniclip.deployment.layouts.settings import required_tokenizer, save_tokenizer
from miniclip.deployment.layouts.transformers_files import write_settings
from miniclip.deployment.options import Options
from miniclip.inference.model import CLIPModel

MODEL = "model.onnx"


def write(model: CLIPModel, folder: Path, options: Options) -> None:
    """Write the files of the layout to an empty folder.

    Raises:
        ValueError: the model has no tokenizer, or transformers cannot pad with it.
    """
    save_tokenizer(required_tokenizer(model, "optimum"), folder / TOKENIZER)
    write_json(folder / TOKENIZER_CONFIG, tokenizer_config(folder / TOKENIZER, model.config))
    write_settings(model, folder)
    write_joint(model, folder / MODEL, options.precision, external=f"{MODEL}_data")
