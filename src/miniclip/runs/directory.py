"""The run directory: a free one, never over another run, with the file that says what the run was started with."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from importlib.metadata import version
from itertools import count
from pathlib import Path
from typing import Any

import torch

from miniclip.checkpoints.native import read_json, write_json
from miniclip.data.dataset import ImageCaptionDataset
from miniclip.errors import CheckpointError
from miniclip.runs import history, state
from miniclip.runs.changes import Changes, describe
from miniclip.runtime import distributed
from miniclip.utils.atomic import TEMPORARY

CONFIG = "config.json"
LAST, BEST, CURVE = "last", "best", "learning_curve.png"
FORMAT = "miniclip run 1"


def next_run_dir(name: str | Path) -> Path:
    """`name`, or the first of `name-2`, `name-3`, … that does not exist yet."""
    return next(path for path in _names(Path(name)) if not path.exists())


def _names(path: Path) -> Iterator[Path]:
    yield path
    for number in count(2):
        yield path.with_name(f"{path.name}-{number}")


def refuse_a_run(path: Path) -> None:
    """Check that a new run may be written here.

    Raises:
        FileExistsError: the directory holds a run, or the path is a file.
    """
    if path.exists() and not path.is_dir():
        raise FileExistsError(f"{path} is a file; a run needs a directory of its own: name another one")
    for name in (state.FILE, BEST, LAST, history.FILE, CONFIG):
        if (path / name).exists() and not (name not in (state.FILE, BEST) and _never_began(path)):
            raise FileExistsError(
                f"{path} already holds a run ({name}): take it up with `miniclip train --resume {path}` or "
                "Trainer.resume, or name another run directory"
            )


def _never_began(path: Path) -> bool:
    """Whether a run was killed here before its first state: there is nothing to take up, and nothing to lose."""
    metrics = path / history.FILE
    if metrics.exists() and metrics.stat().st_size:
        return False
    try:
        return bool(read_run(path))
    except (FileNotFoundError, CheckpointError):
        return False  # somebody else's files


def write_run(path: Path, what: dict[str, Any], device: torch.device, new: bool, other: tuple[int, Changes]) -> None:
    """Write what a run was started with, and at which step what was other when it was taken up.

    Args:
        path: the run directory.
        what: settings and data, JSON values.
        device: what it runs on.
        new: whether it starts here.
        other: the step, and what is other from there on.
    """
    step, changes = other
    before = [] if new else read_run(path).get("changes", [])
    versions = {"miniclip": version("miniclip"), "torch": torch.__version__, "device": str(device)}
    changed = [*before, *([{"step": step, **changes}] if changes else [])]
    write_json(path / CONFIG, {"format": FORMAT, **what, "versions": versions, "changes": changed})


def read_run(path: str | Path) -> dict[str, Any]:
    """Read what a run was started with: `train`, `model`, `data`, `about`.

    Raises:
        FileNotFoundError: there is no run.
        CheckpointError: the file is no run's configuration.
    """
    path = Path(path) / CONFIG
    if not path.is_file():
        raise FileNotFoundError(
            f"{path.parent}: no run there ({CONFIG} not found); expected a directory that `miniclip train` made"
        )
    settings = read_json(path)
    if settings.get("format") != FORMAT:
        raise CheckpointError(
            f"{path}: found format {settings.get('format')!r}, expected {FORMAT!r}: not a run's directory"
        )
    return settings


def fingerprint(data: ImageCaptionDataset | None) -> dict[str, Any] | None:
    """What tells whether data are the same: the counts, and a digest of the captions in their order."""
    if data is None:
        return None
    digest = hashlib.sha256()
    captions = 0
    for group in data.captions:
        captions += len(group)
        digest.update("\n".join(group).encode("utf-8", "surrogatepass") + b"\0")
    return {"pictures": len(data), "captions": captions, "sha256": digest.hexdigest()[:16]}


def sweep(path: Path) -> None:
    """Take away what a kill in the middle of a write has left: the temporary files of `write_atomically`."""
    for folder in (path, path / LAST, path / BEST, path / state.KEPT):
        for file in folder.glob(".*"):
            if TEMPORARY.fullmatch(file.name) and file.is_file():
                file.unlink(missing_ok=True)


def require_same_everywhere(found: dict[str, Any]) -> None:
    """Check that every rank has the data that rank 0 has.

    Raises:
        ValueError: this one has not; it says what differs.
    """
    for part, expected in distributed.on_main(lambda: found).items():
        if found[part] != expected:
            raise ValueError(
                f"rank {distributed.rank()} has {part} data {describe(found[part])}, rank 0 {describe(expected)}: "
                "every rank needs all of the data, the same on each machine"
            )
