"""Options of an export."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Precision = Literal["float32", "float16"]


@dataclass(frozen=True)
class Options:
    """Options of an export; a layout refuses those that it does not have.

    Attributes:
        precision: of the weights and of the arithmetic; inputs and embeddings are float32 in both.
        preprocessing: also write an image tower that takes uint8 images of any size.
    """

    precision: Precision = "float32"
    preprocessing: bool = False
