"""Models by name: a preset with fresh weights, or a checkpoint on disk; and saving them."""

from __future__ import annotations

from pathlib import Path

import torch

from miniclip.checkpoints.files import CONFIG, WEIGHTS, load_checkpoint, save_checkpoint
from miniclip.checks import did_you_mean
from miniclip.config import PRESETS, CLIPConfig, preset
from miniclip.models.clip import CLIP
from miniclip.tokenizer import Tokenizer

RUN_CHECKPOINTS = ("best", "last")  # of a run directory, the first that is there


def list_models() -> dict[str, str]:
    """The presets, with what each one is."""
    return {name: description for name, (description, _) in PRESETS.items()}


def load(
    name: str | Path,
    *,
    pretrained: bool = True,
    device: str | torch.device | None = None,
    dtype: torch.dtype | None = None,
    tokenizer: str | Path | Tokenizer | None = None,
) -> CLIP:
    """Open a model.

    Args:
        name: a checkpoint directory, a run directory (its `best/`, else its `last/`), or, with `pretrained=False`, a
            preset (`list_models` names them).
        pretrained: False: a preset's architecture with fresh weights, drawn from torch's global generator.
        device: where the weights go; None: the CPU.
        dtype: their precision; None: as saved, or float32 for fresh ones.
        tokenizer: in place of the checkpoint's; a path or a `Tokenizer`. A fresh model's text tower takes its end
            token, and more rows of embeddings where the preset has too few for it.

    Returns:
        The model, in evaluation mode.

    Raises:
        ValueError: no preset has this name; the nearest is named.
        FileNotFoundError: there is no checkpoint.
        CheckpointError: the checkpoint is damaged, or the weights do not fit.
    """
    if tokenizer is not None and not isinstance(tokenizer, Tokenizer):
        tokenizer = Tokenizer.load(tokenizer)
    if pretrained:
        model = load_checkpoint(find_checkpoint(name), tokenizer)
    else:
        model = fresh(preset(str(name)), tokenizer)
    return model.to(device=device, dtype=dtype).eval()


def fresh(config: CLIPConfig, tokenizer: Tokenizer | None = None) -> CLIP:
    """A model with fresh weights, its text tower made to fit the tokenizer."""
    if tokenizer is not None:
        rows = max(config.text.vocab_size, tokenizer.vocab_size)
        config = config.replace_text(vocab_size=rows, end_id=tokenizer.end_id)
    return CLIP(config, tokenizer).initialise()


def find_checkpoint(name: str | Path) -> Path:
    """The checkpoint directory that a name stands for.

    Raises:
        FileNotFoundError: there is none.
        ValueError: the name is a preset's, or like one.
    """
    path = Path(name)
    candidates = [path, *(path / part for part in RUN_CHECKPOINTS)]
    for candidate in candidates:
        if (candidate / CONFIG).is_file() and (candidate / WEIGHTS).is_file():
            return candidate
    if path.exists():
        raise FileNotFoundError(
            f"{path}: no checkpoint there; expected a directory with {CONFIG} and {WEIGHTS}, or a run with "
            f"{' or '.join(RUN_CHECKPOINTS)}"
        )
    if str(name) in PRESETS:
        raise ValueError(
            f"{name!r} is a preset, and this version fetches no weights for it: pass pretrained=False for fresh ones, "
            "or the path of a checkpoint"
        )
    raise FileNotFoundError(f"{name}: no such path, and no preset of that name{did_you_mean(str(name), PRESETS)}")


def save(model: CLIP, path: str | Path) -> None:
    """Write a model with all that it needs: `model.safetensors`, `config.json`, `tokenizer.json`; `load` opens it.

    Args:
        model: the model.
        path: a directory, made where it is missing.
    """
    save_checkpoint(model, path)
