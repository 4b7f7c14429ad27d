"""Files beside the models: preprocessing, tokenizer, and checks that an application will tokenize like the model."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from miniclip.checkpoints.export import TOKENIZER_CONFIG
from miniclip.checkpoints.formats import open_clip_export
from miniclip.checkpoints.native import TOKENIZER, write_json
from miniclip.config import CLIPConfig
from miniclip.inference.model import CLIPModel
from miniclip.utils.formatting import short

if TYPE_CHECKING:
    from miniclip.tokenizer import TextTokenizer

CAPTIONS = (
    "a photo of a cat",
    "Two  dogs & a cat's toy, 12 of 30!",
    "Ein Caf\u00e9 in \u6771\u4eac \U0001f642",
    "",
    "a very long caption " * 200,
)  # one for each part of a tokenizer: case, spaces, punctuation, digits, other scripts, no text, too much text


def preprocess_cfg(model: CLIPModel) -> dict[str, Any]:
    """Return the preprocessing in open_clip's words, with `crop_rounding` of miniclip."""
    config = model.config
    return {
        "size": [config.image.image_size] * 2,
        "mode": "RGB",
        **open_clip_export.preprocess_cfg(config),
        "fill_color": 0,
        "crop_rounding": config.crop_rounding,
    }


def required_tokenizer(model: CLIPModel, application: str) -> TextTokenizer:
    """Return a model's tokenizer.

    Raises:
        ValueError: the model has none.
    """
    tokenizer = model.tokenizer
    if tokenizer is None:
        raise ValueError(
            f"{application} needs a tokenizer, and this model has none: set model.tokenizer = Tokenizer.load(path), or "
            "write it into the checkpoint first with `miniclip convert SOURCE TARGET --tokenizer PATH`"
        )
    return tokenizer


def save_tokenizer(tokenizer: TextTokenizer, file: Path) -> None:
    """Write a tokenizer.json.

    Raises:
        ValueError: the tokenizer cannot be written as one.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    try:
        tokenizer.save(file)
    except (AttributeError, NotImplementedError, TypeError) as error:
        raise ValueError(
            f"the tokenizer, a {type(tokenizer).__name__}, cannot be written as tokenizer.json ({error}): use one that "
            "miniclip.Tokenizer or miniclip.tokenizer.load_tokenizer reads"
        ) from error


def write_tokenizer(tokenizer: TextTokenizer, folder: Path, context_length: int) -> None:
    """Write tokenizer.json, and tokenizer_config.json for applications that pad by a token's name."""
    import tokenizers

    save_tokenizer(tokenizer, folder / TOKENIZER)
    library = tokenizers.Tokenizer.from_file(str(folder / TOKENIZER))
    values = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": context_length,
        "pad_token": library.id_to_token(getattr(tokenizer, "pad_id", 0)),
        "padding_side": "left" if getattr(tokenizer, "pad_left", False) else "right",
    }
    write_json(folder / TOKENIZER_CONFIG, values)


def require_same_ids(
    tokenizer: TextTokenizer, config: CLIPConfig, encode: Callable[[str], Sequence[int]], application: str
) -> None:
    """Check that an application's reader of the files gives the ids of the model's tokenizer.

    Args:
        tokenizer: of the model.
        config: of the model. Ids after the end token are compared only if the model attends to its padding.
        encode: the application's way from a caption to a row of ids.
        application: its name, for the message.

    Raises:
        ValueError: the ids differ.
    """
    text = config.text
    tokenizer = copy.copy(tokenizer)  # counts captions that were cut, and warns of the first one
    for caption in CAPTIONS:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            expected = tokenizer([caption], context_length=text.context_length, pad=True)[0].tolist()
            ids = list(encode(caption))
        if text.padding == "masked":
            ids, expected = _until_end(ids, text.end_id), _until_end(expected, text.end_id)
        if ids != expected:
            raise ValueError(
                f"{application} would tokenize {short(caption)} to {short(ids)}, and this model's tokenizer to "
                f"{short(expected)}: its embeddings of texts would be wrong"
            )


def _until_end(ids: list[int], end_id: int | None) -> list[int]:
    end = max(ids) if end_id is None else end_id
    return ids[: ids.index(end) + 1] if end in ids else ids
