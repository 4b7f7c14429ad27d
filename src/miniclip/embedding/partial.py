"""Unfinished embeddings on disk, `OUT.partial/`: they survive Ctrl-C and a kill at any moment.

A chunk appends its vectors to `vectors`, its names to `names.jsonl`, flushes both, then appends a line to
`journal.jsonl` with the sizes and checksums. Bytes after those of the journal's last valid line were not finished, and
the next chunk overwrites them. Letters: n rows of a chunk, E embedding.
"""

from __future__ import annotations

import json
import os
import shutil
import zlib
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from miniclip.utils.atomic import write_atomically
from miniclip.utils.lock import lock_directory
from miniclip.utils.option_names import option

SUFFIX = ".partial"
SETTINGS, VECTORS, NAMES, JOURNAL = "settings.json", "vectors", "names.jsonl", "journal.jsonl"
HEADER_BYTES = 128  # header of a .npy file of a matrix, so that `vectors` can become one without a copy
FORMAT = "miniclip embeddings 1"
BLOCK = 1 << 20  # bytes that a checksum reads at a time


@dataclass
class Chunk:
    """One line of the journal.

    Attributes:
        items: images or texts of the source, skipped ones included.
        rows: n, embeddings.
        digest: of the items' identities.
        vector_bytes: size of the embeddings.
        name_bytes: size of the names.
        checksum: CRC-32 of the embeddings, then of the names.
        skipped: name and reason of each image that was left out.
    """

    items: int
    rows: int
    digest: str
    vector_bytes: int
    name_bytes: int
    checksum: int
    skipped: dict[str, str] = field(default_factory=dict)


class Partial:
    """The folder of unfinished embeddings. Use `open_partial`.

    Attributes:
        folder: its path.
        chunks: the finished chunks, in order.
    """

    def __init__(self, folder: Path, files: dict[str, IO[bytes]]) -> None:
        self.folder, self._files = folder, files
        self._ends = {VECTORS: HEADER_BYTES, NAMES: 0, JOURNAL: 0}
        self.chunks: list[Chunk] = []
        self._read_journal()

    @property
    def items(self) -> int:
        """Items of the source that are finished."""
        return sum(chunk.items for chunk in self.chunks)

    @property
    def rows(self) -> int:
        """Embeddings that are finished."""
        return sum(chunk.rows for chunk in self.chunks)

    def add(
        self, vectors: npt.NDArray[Any], names: list[str], items: int, digest: str, skipped: Mapping[str, str]
    ) -> None:
        """Append a chunk: vectors (n, E), the n names, and the number and the digest of the items it comes from."""
        encoded = "".join(json.dumps(name, ensure_ascii=False) + "\n" for name in names).encode(
            "utf-8", "surrogatepass"
        )
        content = np.ascontiguousarray(vectors).tobytes()
        checksum = zlib.crc32(encoded, zlib.crc32(content))
        chunk = Chunk(items, len(names), digest, len(content), len(encoded), checksum, dict(skipped))
        self._append(VECTORS, content)
        self._append(NAMES, encoded)
        line = json.dumps(asdict(chunk)).encode() + b"\n"
        self._append(JOURNAL, line)
        self._advance(chunk, len(line))

    def names(self) -> Iterator[str]:
        """Yield the names of all finished rows."""
        file = self._files[NAMES]
        file.seek(0)
        for _ in range(self.rows):
            yield json.loads(file.readline().decode("utf-8", "surrogatepass"))

    def vectors(self, dtype: str, embed_dim: int) -> npt.NDArray[Any]:
        """Return a memory map of all finished embeddings: (rows, E)."""
        shape = (self.rows, embed_dim)
        if not self.rows:
            return np.zeros(shape, dtype)
        return np.memmap(self.folder / VECTORS, dtype, "c", HEADER_BYTES, shape)  # torch needs a writable map

    def publish_vectors(self, header: bytes, target: Path) -> None:
        """Write a header of `HEADER_BYTES` before the vectors, and move the file to its target."""
        file = self._files[VECTORS]
        file.seek(0)
        file.write(header)
        file.truncate(self._ends[VECTORS])
        _sync(file)
        (self.folder / VECTORS).replace(target)

    def clear(self) -> None:
        """Forget all chunks."""
        self.chunks.clear()
        self._ends = {VECTORS: HEADER_BYTES, NAMES: 0, JOURNAL: 0}
        self._files[JOURNAL].truncate(0)

    def remove(self) -> None:
        """Delete the folder."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _append(self, name: str, content: bytes) -> None:
        file = self._files[name]
        file.seek(self._ends[name])
        file.write(content)
        file.truncate()
        _sync(file)

    def _advance(self, chunk: Chunk, line_bytes: int) -> None:
        self.chunks.append(chunk)
        for name, count in ((VECTORS, chunk.vector_bytes), (NAMES, chunk.name_bytes), (JOURNAL, line_bytes)):
            self._ends[name] += count

    def _read_journal(self) -> None:
        """Keep the chunks up to the first whose line or content is damaged."""
        journal = self._files[JOURNAL]
        journal.seek(0)
        for line in journal.readlines():
            try:
                chunk = Chunk(**json.loads(line))
                intact = line.endswith(b"\n") and self._checksum(chunk) == chunk.checksum
            except (ValueError, TypeError):
                return
            if not intact:
                return
            self._advance(chunk, len(line))

    def _checksum(self, chunk: Chunk) -> int:
        checksum = 0
        for name, size in ((VECTORS, chunk.vector_bytes), (NAMES, chunk.name_bytes)):
            self._files[name].seek(self._ends[name])
            while size > 0 and (content := self._files[name].read(min(size, BLOCK))):
                checksum, size = zlib.crc32(content, checksum), size - len(content)
        return checksum


@contextmanager
def open_partial(folder: Path, settings: dict[str, Any], overwrite: bool) -> Iterator[Partial]:
    """Context with the unfinished embeddings of a folder, which is made if it is missing, and locked.

    Args:
        folder: `OUT.partial`.
        settings: JSON values that an earlier run must have had too.
        overwrite: start over instead of raising ValueError.

    Raises:
        ValueError: the folder has other settings, or is not one of this kind.
        BlockingIOError: another process is writing there.
    """
    if folder.exists() and not folder.is_dir():
        raise FileExistsError(f"{folder}: is a file; unfinished embeddings need a folder there: remove it")
    with ExitStack() as stack:
        stack.enter_context(lock_directory(folder))
        _claim(folder, {"format": FORMAT, **settings}, overwrite)
        files: dict[str, IO[bytes]] = {}
        for name in (VECTORS, NAMES, JOURNAL):
            (folder / name).touch()
            files[name] = stack.enter_context((folder / name).open("r+b"))
        yield Partial(folder, files)


def _claim(folder: Path, settings: dict[str, Any], overwrite: bool) -> None:
    """Write the settings of a new folder, or check those of an existing one."""
    path = folder / SETTINGS
    others = [file.name for file in folder.iterdir() if file.name not in (SETTINGS, VECTORS, NAMES, JOURNAL)]
    others = [name for name in others if not name.startswith(f".{SETTINGS}.")]
    if others:
        raise FileExistsError(f"{folder}: holds other files ({sorted(others)[0]}); choose another output, or move them")
    if path.exists():
        try:
            earlier = json.loads(path.read_text(encoding="utf-8"))
        except ValueError:
            earlier = {}
        differing = [key for key, value in settings.items() if earlier.get(key) != value]
        if not differing:
            return
        journal = folder / JOURNAL
        if not overwrite and journal.exists() and journal.stat().st_size:
            named = "; ".join(f"{key} {earlier.get(key)!r}, now {settings[key]!r}" for key in differing[:3])
            raise ValueError(f"{folder}: was begun with another {differing[0]} ({named}); {start_over()}")
    for name in (JOURNAL, VECTORS, NAMES):
        (folder / name).unlink(missing_ok=True)
    content = json.dumps(settings, indent=2) + "\n"
    write_atomically(path, lambda temporary: temporary.write_text(content, encoding="utf-8"))


def start_over() -> str:
    """Return the advice of a message about another earlier run."""
    return f"start over with {option('overwrite', True)}, or choose another output"


def _sync(file: IO[bytes]) -> None:
    file.flush()
    os.fsync(file.fileno())
