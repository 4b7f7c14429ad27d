"""Plans: how the files of a checkpoint become a model, and how a model becomes the files of another layout."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from miniclip.checkpoints.key_maps import Row
from miniclip.config import CLIPConfig


class LoadPlan(NamedTuple):
    """Plan for reading a checkpoint.

    Attributes:
        config: of the model.
        rows: the key map of its weights.
        tokenizer_options: arguments of `load_tokenizer`.
        tokenizer_repo: repository with the tokenizer, for checkpoints without one.
    """

    config: CLIPConfig
    rows: tuple[Row, ...]
    tokenizer_options: Mapping[str, Any] = {}
    tokenizer_repo: str | None = None


class ExportPlan(NamedTuple):
    """Plan for writing a checkpoint.

    Attributes:
        rows: the key map of its weights.
        config_files: JSON files beside the weights, by name.
        weights_file: the name of the file of weights.
    """

    rows: tuple[Row, ...]
    config_files: Mapping[str, Mapping[str, Any]]
    weights_file: str
