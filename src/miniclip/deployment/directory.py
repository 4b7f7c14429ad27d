"""Writing of a directory in one step: its files appear when all of them are complete and checked."""

from __future__ import annotations

import re
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from miniclip.deployment import INT8_CHECK
from miniclip.utils.target import require_target

# files of an earlier export, which would be used with the new ones, and the report on them
OURS = re.compile(
    r"(?:visual|textual|vision_model|text_model|model)(?:_\w+)?\.onnx(?:\.data|_data)?|tokenizer(?:_config)?\.json|"
    + re.escape(INT8_CHECK)
)


@contextmanager
def written_directory(path: str | Path, overwrite: bool = False) -> Iterator[Path]:
    """Context that yields a temporary folder; at its end, the files in it are moved to the path.

    An error inside, or Ctrl-C, leaves nothing and changes nothing. A new directory appears by one rename. In a
    directory with files, those of the same names are replaced one by one. Models, tokenizers and the report of int8
    that an earlier export left in the same folders are removed.

    Args:
        path: the directory, which need not exist.
        overwrite: allow a directory with files.

    Raises:
        FileExistsError: the directory has files, or belongs to a run.
        ValueError: the path has the suffix of a file.
    """
    path = require_target(path, overwrite).resolve()
    # a place on the same file system as the target, also if the path is the root of another one
    place = next(place for place in (path, *path.parents) if place.exists())
    made = [parent for parent in path.parents if not parent.exists()]  # the innermost first
    temporary = place / f".{path.name}-{secrets.token_hex(4)}"
    temporary.mkdir()
    try:
        yield temporary
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists():
            _move_files(temporary, path)
        else:
            temporary.rename(path)
    except BaseException:
        for parent in made:
            if parent.is_dir() and not any(parent.iterdir()):
                parent.rmdir()
        raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _move_files(source: Path, target: Path) -> None:
    files = [file.relative_to(source) for file in sorted(source.rglob("*")) if file.is_file()]
    for file in files:
        (target / file).parent.mkdir(parents=True, exist_ok=True)
        (source / file).replace(target / file)
    for folder in {(target / file).parent for file in files}:
        for old in folder.iterdir():
            if OURS.fullmatch(old.name) and old.relative_to(target) not in files:
                old.unlink()
