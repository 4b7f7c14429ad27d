"""Layout "onnx": the two towers and what belongs to them, for programs of one's own.

- `visual.onnx`: `image` (batch, 3, S, S) float32, normalized, to `embedding` (batch, E), unit vectors. With the option
  `preprocessing`, `image` is (batch, height, width, 3) uint8 instead, RGB images of any one size.
- `textual.onnx`: `text` (batch, length) int64 to `embedding` (batch, E), unit vectors. A model that attends to its
  padding takes rows of the context length only.
- With the option `int8`: `visual_int8.onnx` and `textual_int8.onnx`, the same for onnxruntime on a CPU in int8, and
  `int8_check.json`, their cosines, recalls and accuracy beside float32.
- `config.json`: the configuration of the model; `preprocess_cfg.json`: size, mean, standard deviation, interpolation,
  resizing and cropping; `tokenizer.json`: the tokenizer, for the tokenizers library.
"""

from __future__ import annotations

from pathlib import Path

from miniclip.checkpoints.native import CONFIG, TOKENIZER, available_tokenizer, write_json
from miniclip.deployment.encoders import Signature, write_image_encoder, write_text_encoder
from miniclip.deployment.layouts.settings import preprocess_cfg, save_tokenizer
from miniclip.deployment.onnx_files import OPSET
from miniclip.deployment.options import Options
from miniclip.deployment.quantization.check import write_int8
from miniclip.inference.model import CLIPModel
from miniclip.tower_config import OtherImageConfig

IMAGE, TEXT = Signature("image"), Signature("text")
VISUAL, TEXTUAL, PREPROCESSING = "visual.onnx", "textual.onnx", "preprocess_cfg.json"


def write(model: CLIPModel, folder: Path, options: Options) -> None:
    """Write the files of the layout to an empty folder.

    Raises:
        ValueError: int8 is for another image tower than a vision transformer; or it is to be checked or calibrated on
            data, and the model has no tokenizer; or the calibration data are empty, or give activations that are not
            finite.
    """
    image = model.config.image
    if options.int8 and isinstance(image, OtherImageConfig):
        raise ValueError(f"int8: the image tower is {image.label}, which has no int8 form: leave int8 out")
    given = (options.check_data, options.check_classes, options.calibration_data)
    if any(data is not None for data in given) and available_tokenizer(model) is None:
        raise ValueError(
            "the model has no tokenizer, so int8 can be neither checked nor calibrated on data: load the model with "
            "one, as in miniclip.load(name, tokenizer=path), or pass no data"
        )
    write_image_encoder(model, folder / VISUAL, IMAGE, options.precision, raw=options.preprocessing)
    write_text_encoder(model, folder / TEXTUAL, TEXT, options.precision)
    if options.int8:
        write_int8(model, folder / VISUAL, folder / TEXTUAL, *given)
    settings = {"format": "miniclip onnx", "opset": OPSET, "precision": options.precision}
    write_json(folder / CONFIG, {**settings, **model.config.to_dict()})
    write_json(folder / PREPROCESSING, preprocess_cfg(model) | {"inside": options.preprocessing})
    if (tokenizer := available_tokenizer(model)) is not None:
        save_tokenizer(tokenizer, folder / TOKENIZER)
