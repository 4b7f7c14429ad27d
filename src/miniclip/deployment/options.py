"""Options of an export."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from miniclip.checkpoints import LAYOUTS
from miniclip.deployment import FORMS, Precision
from miniclip.utils.checks import did_you_mean

DTYPES: dict[Precision, torch.dtype] = {"float32": torch.float32, "float16": torch.float16}


@dataclass(frozen=True)
class Options:
    """Options of an export; a layout refuses those that it does not have.

    Attributes:
        precision: of the weights and of the arithmetic; inputs and embeddings are float32 in both.
        preprocessing: the image tower of "onnx" takes uint8 images of any size.
        forms: precisions of "transformers.js", by its names.
        int8: also write int8 forms of the towers of "onnx".
        check_data: image-caption dataset on which the int8 forms must keep the recall; None: it is not checked.
        check_classes: labelled dataset on which they must keep the zero-shot accuracy; None: it is not checked.
        calibration_data: image-caption dataset on which constant scales are found; None: int8 has a scale per token.
    """

    precision: Precision = "float32"
    preprocessing: bool = False
    forms: Sequence[str] = FORMS
    int8: bool = False
    check_data: Any = None
    check_classes: Any = None
    calibration_data: Any = None

    def require_layout(self, layout: str) -> None:
        """Check that a layout has these options.

        Raises:
            ValueError: an option belongs to another layout, or its value is unknown.
        """
        if self.precision not in DTYPES:
            raise ValueError(f"unknown precision {self.precision!r}{did_you_mean(str(self.precision), DTYPES)}")
        for form in self.forms:
            if form not in FORMS:
                raise ValueError(f"unknown form {form!r}{did_you_mean(str(form), FORMS)}")
        if not self.forms:
            raise ValueError(f"forms is empty; expected some of {', '.join(FORMS)}")
        if self.precision != "float32" and layout in (*LAYOUTS, "transformers.js"):
            instead = "forms" if layout == "transformers.js" else "the model's own precision"
            raise ValueError(f"the layout {layout!r} has no option precision: it writes {instead}")
        if self.preprocessing and layout != "onnx":
            raise ValueError(f"the layout {layout!r} has no preprocessing inside; only 'onnx' has")
        if self.int8 and (layout != "onnx" or self.precision != "float32" or self.preprocessing):
            raise ValueError(
                "int8 is written for the layout 'onnx' in float32, without preprocessing inside; 'transformers.js' has "
                "the form 'int8'"
            )
        given = (self.check_data, self.check_classes, self.calibration_data)
        if not self.int8 and any(data is not None for data in given):
            raise ValueError("check_data, check_classes and calibration_data are for int8: pass int8=True too")
        if tuple(self.forms) != FORMS and layout != "transformers.js":
            raise ValueError(f"the layout {layout!r} has no forms; only 'transformers.js' has")
