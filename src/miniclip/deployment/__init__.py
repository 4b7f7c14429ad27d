"""Models in the files that applications open: ONNX, immich, transformers.js, optimum, rclip.

This module imports no torch: the help of a command lists the names of the layouts.
"""

from typing import Literal, get_args

DeploymentLayout = Literal["onnx", "immich", "transformers.js", "optimum", "rclip"]
DEPLOYMENT_LAYOUTS: tuple[str, ...] = get_args(DeploymentLayout)
