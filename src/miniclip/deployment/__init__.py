"""Models in the files that applications open: ONNX, immich, transformers.js, optimum, rclip.

This module imports no torch: the help of a command lists the names of the layouts.
"""

from typing import Literal, get_args

DeploymentLayout = Literal["onnx", "immich", "transformers.js", "optimum", "rclip"]
DEPLOYMENT_LAYOUTS: tuple[str, ...] = get_args(DeploymentLayout)

Precision = Literal["float32", "float16"]
PRECISIONS: tuple[str, ...] = get_args(Precision)
FORMS = ("fp32", "fp16", "q8", "int8", "q4")  # precisions of transformers.js, by its names
INT8_CHECK = "int8_check.json"  # report of the check of the int8 files
