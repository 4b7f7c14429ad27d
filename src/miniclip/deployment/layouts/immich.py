"""Layout "immich": a folder for the machine-learning cache of immich, which searches photos by text.

The contract of its code (immich-app/immich, in `machine-learning/immich_ml/models/`: `clip/visual.py`,
`clip/textual.py`, `transforms.py`, `constants.py`; read in 2026):

- `visual/model.onnx` takes `image` (1, 3, S, S) float32 and gives the embedding as its first output. Pixels are divided
  by 255 and normalised by `visual/preprocess_cfg.json` (`size`, `mean`, `std`, `interpolation`, `resize_mode`). The
  other side is `int(ratio * S)`, and the crop starts half a pixel to the left where the excess is odd.
- `textual/model.onnx` takes `text` (1, context) int32. The tokenizers library reads `textual/tokenizer.json`, pads with
  `pad_token` of `textual/tokenizer_config.json` to `context_length` of `text_cfg` in `config.json`, and cuts longer
  texts. Before that, white space is collapsed; with `clean` = "canonicalize" in `tokenizer_kwargs`, ASCII punctuation
  is removed and the text is lowercased.
- `clip/<name>/` in the cache holds the three parts. The name must be in immich's list of models, and the server expects
  that model's number of dimensions.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch

from miniclip.checkpoints.export import TOKENIZER_CONFIG
from miniclip.checkpoints.foreign_config import warn_if_cropped_differently
from miniclip.checkpoints.native import CONFIG, TOKENIZER, read_json, write_json
from miniclip.config import ImageConfig
from miniclip.deployment.encoders import Signature, write_image_encoder, write_text_encoder
from miniclip.deployment.layouts.settings import preprocess_cfg, require_same_ids, required_tokenizer, write_tokenizer
from miniclip.deployment.options import Options
from miniclip.inference.model import CLIPModel

IMAGE, TEXT = Signature("image"), Signature("text", ids=torch.int32, padded=True)
MODEL, PREPROCESSING = "model.onnx", "preprocess_cfg.json"


def write(model: CLIPModel, folder: Path, options: Options) -> None:
    """Write the files of the layout to an empty folder.

    Raises:
        ValueError: the model has no tokenizer, or immich would tokenize captions in another way.
    """
    tokenizer = required_tokenizer(model, "immich")
    warn_if_cropped_differently(model.config, "floored", "immich")
    text, visual, textual = model.config.text, folder / "visual", folder / "textual"
    write_tokenizer(tokenizer, textual, text.context_length)
    require_same_ids(tokenizer, model.config, reader(textual, text.context_length), "immich")
    write_json(visual / PREPROCESSING, preprocess_cfg(model))
    image = model.config.image
    patches = {"patch_size": image.patch_size} if isinstance(image, ImageConfig) else {}
    towers = {
        "vision_cfg": {"image_size": image.image_size, **patches},
        "text_cfg": {"context_length": text.context_length, "vocab_size": text.vocab_size},
    }
    write_json(folder / CONFIG, {"embed_dim": model.config.embed_dim, **towers})
    write_image_encoder(model, visual / MODEL, IMAGE, options.precision)
    write_text_encoder(model, textual / MODEL, TEXT, options.precision)


def reader(textual: Path, context_length: int) -> Callable[[str], list[int]]:
    """Return the function that tokenizes a caption as immich does with the files in a folder."""
    import tokenizers

    tokenizer = tokenizers.Tokenizer.from_file(str(textual / TOKENIZER))
    pad_token = read_json(textual / TOKENIZER_CONFIG)["pad_token"]
    pad_id = tokenizer.token_to_id(pad_token)
    tokenizer.enable_padding(length=context_length, pad_token=pad_token, pad_id=pad_id)
    tokenizer.enable_truncation(max_length=context_length)
    return lambda caption: list(tokenizer.encode(" ".join(caption.split())).ids)
