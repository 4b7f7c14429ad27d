"""Labelled datasets by a spec, as on the command line."""

from __future__ import annotations

import urllib.parse
from pathlib import Path
from typing import Any, get_args

from miniclip.data.formats.files import expand, is_pattern
from miniclip.data.formats.folder import holds_images
from miniclip.data.formats.multifile import find_parquet
from miniclip.data.formats.saved import is_saved
from miniclip.data.opening import spec_name, split_query
from miniclip.errors import DataError
from miniclip.evaluation.labelled.folders import ClassFolders, split_folders
from miniclip.evaluation.labelled.shape_classes import Attribute, ShapeClasses
from miniclip.evaluation.labelled.splits import require_split, require_whole
from miniclip.evaluation.labelled.tables import LabelledTable, open_parquet, open_saved
from miniclip.evaluation.labelled.torchvision_datasets import TorchvisionImages
from miniclip.utils.checks import did_you_mean

TORCHVISION = "torchvision:"
EXPECTED = (
    "expected 'shapes', a folder with a folder per class, parquet files or a folder of save_to_disk with class labels, "
    "or torchvision:NAME?root=FOLDER"
)


def open_labelled(spec: str, split: Any = "val") -> dict[str, Any]:
    """Open labelled datasets by a spec. Nothing is downloaded.

    Args:
        spec: "shapes" for both "shapes:color" and "shapes:shape"; a folder with a folder per class, with or without
            folders train, val and test above them; a parquet file, a pattern or a folder of them, or a folder of
            `save_to_disk`, with a column of class labels; or a dataset of torchvision: "torchvision:CIFAR10?root=data".
            Columns stand after a question mark: "data.parquet?image=img&label=fine_label".
        split: "train", "val" or "test"; "val" and "all" take all images of a dataset without splits.

    Returns:
        Name of the classes to dataset.

    Raises:
        DataError: the dataset does not exist, lacks the split, or its classes are not certain.
        ValueError: the part after the question mark is wrong, or the spec is a URL.
        ImportError: the format needs an extra that is not installed.
    """
    if spec == "shapes":
        return {attribute: ShapeClasses(attribute, split) for attribute in get_args(Attribute)}
    if spec.startswith("shapes:"):
        return {spec[7:]: ShapeClasses(spec[7:], split)}  # type: ignore[arg-type]
    if "://" in spec:
        raise ValueError(f"{spec}: data are read from disk; download them, and give their path")
    path, query = split_query(spec)
    if spec.startswith(TORCHVISION):
        return _open_torchvision(spec, str(path).removeprefix(TORCHVISION), query, split)
    columns = _parse(spec, query, ("image", "label"))
    table = _open_table(path, columns, split)
    if table is not None:
        return {spec_name(spec): table}
    if columns:
        raise ValueError(f"{spec}: the folder has no tables, so that ?{query} chooses nothing; remove it")
    return {path.name or path.resolve().name: _open_folder(path, split)}


def _parse(spec: str, query: str, keys: tuple[str, ...]) -> dict[str, str]:
    """Return the values after the question mark of a spec.

    Raises:
        ValueError: a key is unknown, or occurs twice, or has no value.
    """
    values = urllib.parse.parse_qs(query, keep_blank_values=True)
    for key, found in values.items():
        if key not in keys:
            raise ValueError(f"{spec}: unknown {key!r} after ?{did_you_mean(key, keys)}")
        if len(found) > 1 or not found[0]:
            raise ValueError(f"{spec}: found {key}={f' and {key}='.join(found)}; expected one value")
    return {key: found[0] for key, found in values.items()}


def _open_torchvision(spec: str, name: str, query: str, split: str) -> dict[str, Any]:
    root = _parse(spec, query, ("root",)).get("root")
    if root is None:
        raise ValueError(f"{spec}: expected the folder of the dataset, as in {TORCHVISION}{name}?root=data")
    return {name: TorchvisionImages(name, Path(root).expanduser(), split)}


def _open_table(path: Path, columns: dict[str, str], split: str) -> LabelledTable | None:
    """Open parquet files or a saved dataset; None for a folder without them."""
    image, label = columns.get("image"), columns.get("label")
    if path.is_dir():
        if is_saved(path):
            return open_saved(str(path), path, split, image, label)
        files = find_parquet(path)
        if files and holds_images(path):
            raise DataError(f"{path}: holds parquet files and images; give the files, as in {files[0]}")
        return open_parquet(str(path), files, split, image, label) if files else None
    files = [path] if path.is_file() else expand(str(path)) if is_pattern(str(path)) else []
    if not files:
        raise DataError(f"{path}: does not exist; {EXPECTED}")
    other = next((file for file in files if file.suffix.lower() != ".parquet"), None)
    if other is not None:
        raise DataError(f"{other}: not a folder; {EXPECTED}")
    return open_parquet(str(path), files, split, image, label)


def _open_folder(root: Path, split: str) -> ClassFolders:
    splits = split_folders(root)
    if splits:
        require_split(str(root), splits, split)
        return ClassFolders(splits[split])
    require_whole(
        str(root),
        split,
        f"put the images of each split into a folder above those of the classes, as in {root.name}/train/cat/1.jpg",
    )
    return ClassFolders(root)
