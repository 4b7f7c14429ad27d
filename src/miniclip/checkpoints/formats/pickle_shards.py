"""Sharded pickles: the `.bin` files that a `pytorch_model.bin.index.json` names, read as one."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from miniclip.checkpoints.formats.pickles import read_pickled
from miniclip.checkpoints.formats.safetensors import check_shards, read_index, shard_names
from miniclip.errors import CheckpointError
from miniclip.utils.formatting import one_line


def read_shards(path: Path) -> dict[str, Tensor]:
    """Read the tensors of all the files that an index names.

    Raises:
        CheckpointError: the index or a file is damaged or missing, would run code, or does not fit the others.
    """
    weight_map, _ = read_index(path)
    shards = {}
    for name in shard_names(path, weight_map, ".bin"):
        try:
            shards[name] = read_pickled(path.with_name(name)).tensors
        except OSError as error:
            reason = one_line(str(error).removeprefix(f"{path.with_name(name)}: "))
            raise CheckpointError(
                f"{path}: {name} is named in it, but cannot be read ({reason}); download it too"
            ) from None
    check_shards(path, weight_map, shards)
    return {key: shards[name][key] for key, name in weight_map.items()}
