"""Recognition of a checkpoint by the names of its weights: the layout, a training script's prefix, a lone tower."""

from __future__ import annotations

import re
import warnings
from collections.abc import Collection, Iterable
from pathlib import Path

from miniclip.checkpoints.key_maps import (
    OPENAI_IMAGE,
    OPENAI_SIZES,
    OPENAI_TEXT,
    SCALARS,
    TEXT_MATRIX,
    TRANSFORMERS_CLIP,
)
from miniclip.checkpoints.names import unwrapped_name, without_wrappers
from miniclip.checkpoints.weights import RenamedWeights, Weights
from miniclip.errors import CheckpointError
from miniclip.utils.formatting import one_line
from miniclip.utils.option_names import option

# a key that only this layout has
NATIVE_KEY = "text.tokens.weight"
OPENAI_KEY = "visual.conv1.weight"  # open_clip's own towers have this key too
TIMM_KEY = "visual.trunk."  # the start of many
TRANSFORMERS_KEY = "vision_model.embeddings.patch_embedding.weight"
_WHOLE = "|".join(map(re.escape, (NATIVE_KEY, OPENAI_KEY, TRANSFORMERS_KEY)))
LAYOUT = re.compile(rf"(?P<prefix>(?:.*\.)?)(?:(?:{_WHOLE})$|{re.escape(TIMM_KEY)})")

NATIVE_ROOTS = frozenset({"image", "text", "log_scale", "logit_bias"})
_ROWS = (*OPENAI_IMAGE, *OPENAI_TEXT, *TEXT_MATRIX, *SCALARS, *OPENAI_SIZES, *TRANSFORMERS_CLIP)
_KEYS = (key for row in _ROWS for key in ((row.keys,) if isinstance(row.keys, str) else row.keys))
ROOTS = NATIVE_ROOTS | {key.partition(".")[0] for key in _KEYS}  # first parts of the names of all layouts
ADAPTER = re.compile(
    r"(?:^|[._])(?:lora|ia3|oft|vera|hada|lokr|adapters?|prompts?|base_layer)(?:[._]|$)", re.IGNORECASE
)
MAX_NAMED = 4
MAX_PREFIX = 80  # characters in a message

# one tower has only names that begin or end like these
IMAGE_STARTS, TEXT_STARTS = ("image.", "visual.", "vision_model."), ("text.", "text_model.", "transformer.")
IMAGE_ENDS = re.compile(r"(?:^|\.)(?:(?:visual\.conv1|patch_embed\.proj|patch_embedding|patches)\.weight$|trunk\.)")
TEXT_ENDS = re.compile(r"(?:^|\.)(?:token_embedding|tokens)\.weight$")


def model_weights(weights: Weights, prefix: str | None = None) -> Weights:
    """Return the weights of the model in a file, under the names of its layout.

    Names of a training script have a common prefix, such as Lightning's `model.`, and other parts beside the model,
    such as a classifier's head. These parts are left out, with a warning that names them.

    Args:
        weights: of the file.
        prefix: before the model's names, with or without the last dot; None: found by the names of the layouts.

    Raises:
        CheckpointError: there are several models, none with this prefix, one tower only, or an adapter.
    """
    names, is_given = without_wrappers(weights.shapes), prefix is not None
    if prefix is None:
        prefix = _find_prefix(weights.path, names.values())
    else:
        prefix = "".join(f"{part}." for part in unwrapped_name(prefix).split(".") if part)
    inside = {plain.removeprefix(prefix): name for name, plain in names.items() if plain.startswith(prefix)}
    if names and not inside:
        raise CheckpointError(
            f"{weights.path}: no name begins with the prefix {prefix!r}; found {_some(names.values())}"
        )
    _refuse_adapter(weights.path, inside if is_given else names.values())
    _require_both_towers(weights.path, inside)
    if not any(map(LAYOUT.match, inside)):
        return RenamedWeights(weights, inside)
    model = {plain: name for plain, name in inside.items() if plain.partition(".")[0] in ROOTS and not _is_mask(plain)}
    used = set(model.values())
    beside = [plain for name, plain in names.items() if name not in used]
    if left_out := [name for name in beside if not _is_mask(name) and (name.startswith(prefix) or not is_given)]:
        text = f"{weights.path}: left out, since a CLIP has no such weights: {_some(left_out)}"
        warnings.warn(text, UserWarning, stacklevel=5)
    return RenamedWeights(weights, model)


def _is_mask(name: str) -> bool:
    return name.rpartition(".")[2] == "attn_mask"  # in TorchScript archives of open_clip


def _find_prefix(path: Path, names: Collection[str]) -> str:
    """Return the prefix before the names of a layout; "" if there is none, or no layout."""
    prefixes = sorted({match["prefix"] for name in names if (match := LAYOUT.match(name))})
    if len(prefixes) > 1:
        raise CheckpointError(
            f"{path}: several models, under the prefixes {one_line(', '.join(map(repr, prefixes)))}: choose one, "
            f"as in {option('prefix', prefixes[-1][:MAX_PREFIX])}"
        )
    return prefixes[0] if prefixes else ""


def _refuse_adapter(path: Path, names: Iterable[str]) -> None:
    """Raise `CheckpointError` for weights of an adapter, which changes the model's outputs."""
    if adapter := [name for name in names if ADAPTER.search(name)]:
        raise CheckpointError(
            f"{path}: weights of an adapter ({_some(adapter)}), without which the outputs differ: merge it into the "
            "model, as peft's merge_and_unload() does, and save that"
        )


def _require_both_towers(path: Path, keys: Collection[str]) -> None:
    """Raise `CheckpointError` if the weights are one tower of a CLIP."""
    bare = {"conv1.weight", "class_embedding"} <= set(keys)  # the state dict of open_clip's image tower
    has_patches, has_tokens = (any(map(ends.search, keys)) for ends in (IMAGE_ENDS, TEXT_ENDS))
    if has_tokens and not has_patches and not any(key.startswith(IMAGE_STARTS) for key in keys):
        found, other = "a text", "an image"
    elif bare or (has_patches and not has_tokens and not any(key.startswith(TEXT_STARTS) for key in keys)):
        found, other = "an image", "a text"
    else:
        return
    raise CheckpointError(
        f"{path}: only {found} tower ({_some(keys)}); a CLIP has {other} tower too: load a checkpoint with both"
    )


def _some(names: Iterable[str]) -> str:
    """Return the first names, and the number of the others."""
    names = sorted(names)
    more = f" and {len(names) - MAX_NAMED} more" if len(names) > MAX_NAMED else ""
    return one_line(", ".join(names[:MAX_NAMED])) + more
