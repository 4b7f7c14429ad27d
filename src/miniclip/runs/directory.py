"""Run directory: its name, its protection against overwriting, and `config.json`."""

from __future__ import annotations

import hashlib
import os
from itertools import count
from pathlib import Path
from typing import Any

import torch

from miniclip.checkpoints.native import read_json, write_json
from miniclip.data.dataset import ImageCaptionDataset
from miniclip.data.given import as_dataset
from miniclip.errors import CheckpointError
from miniclip.runs import history, state
from miniclip.runs.changes import Changes, describe_data
from miniclip.runtime import distributed
from miniclip.utils.atomic import TEMPORARY
from miniclip.utils.formatting import short
from miniclip.version import __version__

CONFIG = "config.json"
LAST, BEST, CURVE = "last", "best", "learning_curve.png"
FORMAT = "miniclip run 1"
PARTS = {"train": dict, "model": dict, "data": dict, "about": dict, "changes": list}


def next_run_dir(name: str | Path) -> Path:
    """Return `name`, or the first of `name-2`, `name-3`, … that does not exist."""
    path = Path(name)
    numbered = (path.with_name(f"{path.name}-{number}") for number in count(2))
    return path if not path.exists() else next(other for other in numbered if not other.exists())


def require_no_run(path: Path) -> None:
    """Check that a new run may be written to a directory.

    Raises:
        FileExistsError: the directory holds a run, or the path is a file.
    """
    if path.exists() and not path.is_dir():
        raise FileExistsError(f"{path} is a file; a run needs a directory: choose another name")
    for name in (state.FILE, BEST, LAST, history.FILE, CONFIG):
        if (path / name).exists() and (name in (state.FILE, BEST) or not _is_unstarted(path)):
            raise FileExistsError(
                f"{path} already holds a run ({name}): resume it with `miniclip train --resume {path}` or "
                "Trainer.resume, or choose another run directory"
            )


def _is_unstarted(path: Path) -> bool:
    """Return whether a run was killed here before its first state: there is nothing to resume or to lose."""
    metrics = path / history.FILE
    if metrics.exists() and metrics.stat().st_size:
        return False
    try:
        return bool(read_run(path))
    except (FileNotFoundError, CheckpointError):
        return False  # files of another program


def start_run(path: Path, facts: dict[str, Any], device: torch.device, step: int, changes: Changes) -> None:
    """Write `config.json` of a new or changed run, and delete temporary files of a killed one.

    The caller holds the lock on the directory.

    Args:
        path: the run directory.
        facts: settings and data as JSON values: `train`, `model`, `data`, `about`.
        device: the device of the run.
        step: the number of completed steps.
        changes: data and settings that differ from now on; they are appended to the earlier ones.
    """
    is_new = step == 0 and not (path / state.FILE).exists()
    if not is_new:
        remove_temporary_files(path)
    if is_new or changes:
        earlier = [] if is_new else read_run(path)["changes"]
        versions = {"miniclip": __version__, "torch": torch.__version__, "device": str(device)}
        all_changes = [*earlier, {"step": step, **changes}] if changes else earlier
        write_json(path / CONFIG, {"format": FORMAT, **facts, "versions": versions, "changes": all_changes})


def read_run(path: str | Path) -> dict[str, Any]:
    """Read `config.json` of a run: `train`, `model`, `data`, `about`, `changes`.

    Raises:
        FileNotFoundError: the directory holds no run.
        CheckpointError: the file is not the configuration of a run.
    """
    path = Path(path) / CONFIG
    if not os.path.lexists(path):
        raise FileNotFoundError(
            f"{path.parent}: no run there ({CONFIG} not found); expected a directory that `miniclip train` made"
        )
    settings = read_json(path)
    if settings.get("format") != FORMAT:
        raise CheckpointError(
            f"{path}: found format {short(settings.get('format'))}, expected {FORMAT!r}: not a run directory"
        )
    for name, kind in PARTS.items():
        if not isinstance(settings.get(name), kind):
            found = short(settings.get(name))
            raise CheckpointError(f"{path}: found {found} as {name}, expected a JSON {kind.__name__}: use a copy of it")
    return settings


def fingerprint(data: ImageCaptionDataset | None) -> dict[str, Any] | None:
    """Return the identity of a dataset: its counts, and a digest of the captions in order."""
    if data is None:
        return None
    data, digest = as_dataset(data), hashlib.sha256()
    for group in data.captions:
        digest.update("\n".join(group).encode("utf-8", "surrogatepass") + b"\0")
    return {"images": len(data), "captions": sum(map(len, data.captions)), "sha256": digest.hexdigest()[:16]}


def remove_temporary_files(path: Path) -> None:
    """Delete the temporary files that `write_atomically` left when the process was killed."""
    for folder in (path, path / LAST, path / BEST, path / state.STATES):
        for file in folder.glob(".*"):
            if TEMPORARY.fullmatch(file.name) and file.is_file():
                file.unlink(missing_ok=True)


def require_same_data(fingerprints: dict[str, Any]) -> None:
    """Check that every rank has the data of rank 0.

    Raises:
        ValueError: this rank has other data.
    """
    for part, expected in distributed.on_main(lambda: fingerprints).items():
        if fingerprints[part] != expected:
            raise ValueError(
                f"rank {distributed.rank()} has {part} data {describe_data(fingerprints[part])}, rank 0 has "
                f"{describe_data(expected)}: every rank needs all of the data, the same on each machine"
            )
