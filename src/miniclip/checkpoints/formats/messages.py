"""Error messages that several formats share."""

from __future__ import annotations

from miniclip.errors import CheckpointError
from miniclip.utils.formatting import one_line

GIT_LFS = b"version https://git-lfs"


def not_weights(head: bytes) -> str | None:
    """Describe a file that holds no weights; None if the start of the file does not show that.

    Args:
        head: the first bytes of the file, at least 64 if it has as many.
    """
    text = head.removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    if not head:
        return "the file is empty"
    if text.startswith(GIT_LFS):
        return "a Git LFS pointer instead of the weights: fetch them with `git lfs pull`"
    if text.startswith(b"<"):
        return "a web page (HTML or XML) instead of the weights: download the file itself"
    return None


def refused_global(name: str) -> CheckpointError:
    """Return the error for a pickle that refers to a function or class other than those of tensors."""
    return CheckpointError(
        f"refers to {one_line(name)}, which plain weights never need and which could run any code; nothing was run: "
        "save only the weights, the model's state_dict(), in the program that wrote it, or ask its author for a "
        "safetensors file"
    )
