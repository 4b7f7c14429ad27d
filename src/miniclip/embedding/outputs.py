"""Files of finished embeddings, .npy, .parquet and .safetensors, and the names of their rows.

Letters: N rows, E embedding.

A .parquet file holds the names itself. Beside the other two, a list of the N names is in `out.npy.names.json`, named
after the whole file: `out.safetensors` has its own. Vectors are copied from a memory map, so that the memory does not
depend on N.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterable
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from safetensors.torch import save_file

from miniclip.embedding.partial import HEADER_BYTES, Partial
from miniclip.utils.atomic import write_atomically
from miniclip.utils.checks import did_you_mean
from miniclip.utils.option_names import option

SUFFIXES = (".npy", ".parquet", ".safetensors")
GROUP_ROWS = 1 << 14  # rows in a row group of a parquet file
ESCAPED = "backslashreplace"  # bytes in a file name that are not UTF-8; JSON has the same escape, "\udce9"
TENSOR = "embeddings"  # name of the tensor in a .safetensors file


def require_output(path: Path, overwrite: bool) -> None:
    """Check the path of an output before anything is computed.

    Raises:
        ValueError: the suffix is unknown.
        FileExistsError: the file exists, or a part of the path is a file.
        ImportError: the format needs a library that is not installed.
    """
    if path.suffix.lower() not in SUFFIXES:
        hint = did_you_mean(path.suffix or path.name, SUFFIXES)
        raise ValueError(f"{path}: the suffix chooses the format, and {path.suffix or 'none'!r} is unknown{hint}")
    if path.is_dir():
        raise FileExistsError(f"{path}: is a folder; expected the name of a file")
    if path.exists() and not overwrite:
        raise FileExistsError(
            f"{path}: exists already; choose another name, or replace it: {option('overwrite', True)}"
        )
    place = next(place for place in path.absolute().parents if place.exists())
    if not place.is_dir():
        raise FileExistsError(f"{place}: is a file; expected a folder for {path.name}")
    if path.suffix.lower() == ".parquet":
        _pyarrow()


def names_path(path: Path) -> Path | None:
    """Return the path of the names beside an output; None if the output holds them."""
    return None if path.suffix.lower() == ".parquet" else path.with_name(path.name + ".names.json")


def write_output(partial: Partial, path: Path, settings: dict[str, Any]) -> None:
    """Write finished embeddings to their files; the main file comes last, so that its names are always beside it.

    Args:
        partial: the embeddings.
        path: the main file.
        settings: of the run, which become the metadata of formats that have some.
    """
    dtype, embed_dim = settings["dtype"], settings["embed_dim"]
    about = {key: str(value).lower() for key, value in settings.items() if key != "source"}
    path.unlink(missing_ok=True)
    names = names_path(path)
    if names is not None:
        write_atomically(names, lambda temporary: _write_list(temporary, partial.names()))
    if path.suffix.lower() == ".npy":
        partial.publish_vectors(npy_header(partial.rows, embed_dim, dtype), path)
    elif path.suffix.lower() == ".parquet":
        write_atomically(path, lambda file: _write_parquet(file, partial.vectors(dtype, embed_dim), partial, about))
    else:
        vectors = partial.vectors(dtype, embed_dim)
        write_atomically(path, lambda file: save_file({TENSOR: torch.from_numpy(vectors)}, file, metadata=about))


def npy_header(rows: int, embed_dim: int, dtype: str) -> bytes:
    """Return the header of a .npy file of a matrix (rows, E) in `HEADER_BYTES`."""
    buffer = io.BytesIO()
    description = {
        "descr": np.lib.format.dtype_to_descr(np.dtype(dtype)),
        "fortran_order": False,
        "shape": (rows, embed_dim),
    }
    np.lib.format.write_array_header_1_0(buffer, description)
    header = buffer.getvalue()
    if len(header) != HEADER_BYTES:
        raise RuntimeError(f"numpy writes a header of {len(header)} bytes; expected {HEADER_BYTES}")
    return header


def write_skipped(path: Path, skipped: dict[str, str]) -> Path | None:
    """Write names and reasons of skipped items beside an output, and return the path; without any, remove the list."""
    target = path.with_name(path.name + ".skipped.json")
    if not skipped:
        target.unlink(missing_ok=True)
        return None
    content = json.dumps(skipped, indent=0, ensure_ascii=False) + "\n"
    write_atomically(target, lambda temporary: temporary.write_bytes(content.encode("utf-8", ESCAPED)))
    return target


def _write_list(path: Path, names: Iterable[str]) -> None:
    """Write strings as a JSON list, one a line."""
    with path.open("w", encoding="utf-8", errors=ESCAPED) as file:
        start = "["
        for name in names:
            file.write(f"{start}\n{json.dumps(name, ensure_ascii=False)}")
            start = ","
        file.write("[]\n" if start == "[" else "\n]\n")


def _write_parquet(path: Path, vectors: npt.NDArray[Any], partial: Partial, about: dict[str, str]) -> None:
    arrow, parquet = _pyarrow()
    column, embed_dim = "text" if about["kind"] == "texts" else "name", vectors.shape[1]
    vector = arrow.list_(arrow.from_numpy_dtype(vectors.dtype), embed_dim)
    schema = arrow.schema([(column, arrow.string()), ("embedding", vector)], metadata=about)
    names = partial.names()
    with parquet.ParquetWriter(path, schema, compression={column: "zstd", "embedding": "none"}) as writer:
        for start in range(0, len(vectors), GROUP_ROWS):
            rows = vectors[start : start + GROUP_ROWS]
            texts = [name.encode("utf-8", "backslashreplace").decode() for name in islice(names, len(rows))]
            values = arrow.FixedSizeListArray.from_arrays(arrow.array(rows.reshape(-1)), embed_dim)
            writer.write_table(arrow.table([arrow.array(texts, arrow.string()), values], schema=schema))


def _pyarrow() -> tuple[Any, Any]:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError:
        raise ModuleNotFoundError(
            'writing parquet needs pyarrow: pip install "miniclip[parquet]"', name="pyarrow"
        ) from None
    return pyarrow, parquet
