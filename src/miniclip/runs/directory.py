"""Run directory: its name, its protection against overwriting, and `config.json`."""

from __future__ import annotations

import contextlib
import hashlib
import os
from itertools import count
from pathlib import Path
from typing import Any

import torch

from miniclip.checkpoints.native import read_json, write_json
from miniclip.data.dataset import ImageCaptionDataset, name_of
from miniclip.data.given import as_dataset
from miniclip.data.replay import Replay
from miniclip.errors import CheckpointError
from miniclip.finetuning.adapters import FOLDER
from miniclip.runs import history, state
from miniclip.runs.changes import Changes, describe_data
from miniclip.runtime import distributed
from miniclip.utils.atomic import TEMPORARY, write_atomically
from miniclip.utils.formatting import format_command, short
from miniclip.version import __version__

CONFIG = "config.json"
LAST, BEST, CURVE = "last", "best", "learning_curve.png"
FORMAT = "miniclip run 1"
PARTS = {"train": dict, "model": dict, "data": dict, "about": dict, "changes": list}
LOGS = {".log", ".out", ".err"}  # suffixes of files that may be in the directory of a new run: outputs of a scheduler


def next_run_dir(name: str | Path) -> Path:
    """Return `name`, or the first of `name-2`, `name-3`, … that does not exist."""
    path = Path(name)
    numbered = (path.with_name(f"{path.name}-{number}") for number in count(2))
    return path if not path.exists() else next(other for other in numbered if not other.exists())


def choose_directory(path: str | Path | None, is_new: bool) -> Path:
    """Return a run's directory, None meaning the next free `runs/clip`; a new run must not overwrite anything."""
    path = next_run_dir("runs/clip") if path is None else Path(path)
    if is_new:
        require_free(path)
    return path


def require_free(path: Path, data_folder: Path | None = None) -> None:
    """Check that a new run can be written to a directory. Nothing stays there.

    Args:
        path: the directory, which need not exist.
        data_folder: folder of the dataset; plots in it or below could be taken for images.

    Raises:
        FileExistsError: the directory holds a run or other files, is in the dataset's folder, or the path is a file.
        OSError: the directory cannot be written.
    """
    require_no_run(path)
    names = [file.name for file in path.iterdir()] if _exists(path) and not _is_unstarted(path) else []
    others = sorted(name for name in names if name[0] != "." and Path(name).suffix not in LOGS)
    if others:
        some = ", ".join(others[:3]) + (", …" if len(others) > 3 else "")
        raise FileExistsError(
            f"{path}: holds {len(others)} other file{'s' * (len(others) > 1)} ({some}); a run needs a new or an empty "
            "directory, so that it overwrites nothing: choose another name"
        )
    if data_folder is not None and path.resolve().is_relative_to(data_folder.resolve()):
        raise FileExistsError(
            f"{path}: is in the folder of the dataset, {data_folder}, where the plots of the run could be taken for "
            "images: choose a run directory outside of it"
        )
    require_writable(path)


def require_writable(path: Path) -> None:
    """Check that files can be written in a directory, by writing one. Nothing stays there.

    Raises:
        OSError: a directory cannot be made, or a file in it cannot be written.
    """
    new = [folder for folder in (path, *path.parents) if not os.path.lexists(folder)]  # innermost first
    try:
        path.mkdir(parents=True, exist_ok=True)
        probe = path / ".probe"
        write_atomically(probe, lambda temporary: temporary.write_bytes(b"0"))
        probe.unlink(missing_ok=True)  # another rank may have removed it
    except OSError as error:
        reason = error.strerror or str(error)
        raise type(error)(f"{path}: a run cannot be written there ({reason}); choose another run directory") from None
    finally:
        for folder in new:
            with contextlib.suppress(OSError):  # another process may have written into it
                folder.rmdir()


def require_no_run(path: Path) -> None:
    """Check that a directory holds no run.

    Raises:
        FileExistsError: the directory holds a run, or the path is a file.
    """
    if not _exists(path):
        return
    if not path.is_dir():
        raise FileExistsError(f"{path} is a file; a run needs a directory: choose another name")
    for name in (state.FILE, BEST, LAST, history.FILE):
        if (path / name).exists() and (name in (state.FILE, BEST) or not _is_unstarted(path)):
            raise FileExistsError(
                f"{path} already holds a run ({name}): resume it with "
                f"`{format_command('miniclip', 'train', '--resume', path)}` or Trainer.resume, or choose another run "
                "directory"
            )


def _exists(path: Path) -> bool:
    """Return whether a path exists; False for a name that the file system does not allow."""
    return os.path.lexists(path) and path.exists()


def _is_unstarted(path: Path) -> bool:
    """Return whether a run was killed here before its first state, so that nothing can be resumed or lost."""
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
    """Return the identity of a dataset: its counts, and a digest of captions and file names in order.

    Folders do not count, so that a dataset may be moved. Replayed images have their number and share too.
    """
    if data is None:
        return None
    data, digest = as_dataset(data), hashlib.sha256()
    has_names = hasattr(data, "name")
    for index, group in enumerate(data.captions):
        name = Path(name_of(data, index)).name if has_names else ""
        digest.update("\n".join([name, *group]).encode("utf-8", "surrogatepass") + b"\0")
    identity = {"images": len(data), "captions": sum(map(len, data.captions)), "sha256": digest.hexdigest()[:16]}
    return identity | ({"old": len(data.old), "share": data.share} if isinstance(data, Replay) else {})


def remove_temporary_files(path: Path) -> None:
    """Delete the temporary files that `write_atomically` left when the process was killed."""
    checkpoints = [path / name for name in (LAST, BEST)]
    for folder in (path, *checkpoints, *(checkpoint / FOLDER for checkpoint in checkpoints), path / state.STATES):
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
