"""Check of a directory before a checkpoint is written there: files of a run or of the user are not overwritten."""

from __future__ import annotations

from pathlib import Path

from miniclip.utils.files import parse_json, read_limited
from miniclip.utils.option_names import option

FILE_SUFFIXES = frozenset((".pt", ".pth", ".bin", ".ckpt", ".safetensors", ".json", ".onnx", ".pkl", ".zip", ".tar"))
RUN_FORMAT = "miniclip run"  # start of the "format" in a run's config.json
RUN_PARTS = ("best", "last", "states")  # folders inside a run
MAX_LISTED = 3


def require_target(path: str | Path, overwrite: bool) -> Path:
    """Check that a checkpoint may be written to a directory; return its path.

    Args:
        path: the directory, which need not exist.
        overwrite: allow a directory with files; those of the same names are replaced.

    Raises:
        ValueError: the path has the suffix of a file.
        FileExistsError: it is a file, part of a run, or a directory with files that must stay.
    """
    path = Path(path)
    place = next(place for place in (path, *path.parents) if place.exists())
    if not place.is_dir():
        raise FileExistsError(f"{place} is a file; a checkpoint is a directory: choose another name")
    if path.suffix.lower() in FILE_SUFFIXES and not path.is_dir():
        raise ValueError(
            f"{path}: a checkpoint is a directory of several files, and this is the name of a file: leave out "
            f"{path.suffix!r}, as in {path.with_suffix('')}"
        )
    resolved = path.resolve()
    run = next((place for place in (resolved, resolved.parent) if _is_run(place)), None)
    if run == resolved or (run and resolved.name in RUN_PARTS):
        raise FileExistsError(f"{path} belongs to a run, which could not be resumed any more: choose another directory")
    visible = sorted(file.name for file in path.iterdir() if file.name[0] != ".") if path.is_dir() else []
    if visible and not overwrite:
        listed = ", ".join(visible[:MAX_LISTED]) + (", …" if len(visible) > MAX_LISTED else "")
        raise FileExistsError(
            f"{path} is not empty ({listed}): choose another directory, or allow its files to be replaced with "
            f"{option('overwrite', True)}"
        )
    return path


def _is_run(path: Path) -> bool:
    """Return whether a directory is a run, also a damaged one."""
    if any((path / name).exists() for name in ("state.safetensors", "metrics.jsonl")):
        return True
    try:
        return str(parse_json(read_limited(path / "config.json"))["format"]).startswith(RUN_FORMAT)
    except (OSError, ValueError, LookupError, TypeError):
        return False
