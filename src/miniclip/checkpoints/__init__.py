"""Checkpoints on disk: reading and converting any project's layout safely, and writing atomically.

This module imports no torch: the help of a command lists the names of the layouts.
"""

from typing import Literal, get_args

Layout = Literal["openai", "open_clip", "transformers"]  # those that `export` writes
LAYOUTS: tuple[str, ...] = get_args(Layout)
