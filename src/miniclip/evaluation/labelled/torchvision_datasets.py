"""Datasets of torchvision by name, as they are on disk; nothing is downloaded."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from miniclip.errors import DataError
from miniclip.evaluation.labelled.splits import require_split, require_whole
from miniclip.utils.checks import did_you_mean

# torchvision's names of a split, in the order in which they are tried
OWN_NAMES = {"train": ("train", "trainval", "train-standard"), "val": ("val", "valid")}


class TorchvisionImages(Sequence[Any]):
    """A split of a dataset of torchvision.

    Args:
        name: a class of `torchvision.datasets`, such as "CIFAR10".
        root: its folder.
        split: "train", "val" or "test"; "val" and "all" take all images of a dataset without splits.

    Attributes:
        class_names: torchvision's names, with "_" read as a space.
        about: name, folder and split.

    Raises:
        DataError: the dataset is not in the folder, lacks the split, or has no names of classes.
        FileNotFoundError: the folder does not exist.
    """

    def __init__(self, name: str, root: str | Path, split: str) -> None:
        self.root, self.about = Path(root), repr((name, str(root), split))
        if not self.root.is_dir():
            raise FileNotFoundError(f"torchvision:{name}: the folder {root} does not exist; expected the dataset's")
        self.dataset = _construct(name, _class_of(name), self.root, split)
        self.class_names = _class_names(name, self.dataset)

    @property
    def source_files(self) -> list[Path]:
        """All files in the folder, for a fingerprint."""
        return sorted(path for path in self.root.rglob("*") if path.is_file())

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: Any) -> Any:
        """Return an image and its class, as torchvision gives them."""
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        return self.dataset[index]


def _class_of(name: str) -> Any:
    from torchvision import datasets

    kinds = [kind for kind in datasets.__all__ if "root" in inspect.signature(getattr(datasets, kind)).parameters]
    if name not in kinds:
        raise DataError(f"torchvision:{name}: torchvision has no such dataset in a folder{did_you_mean(name, kinds)}")
    return getattr(datasets, name)


def _construct(name: str, kind: Any, root: Path, split: str) -> Any:
    parameters = inspect.signature(kind).parameters
    options: dict[str, Any] = {"download": False} if "download" in parameters else {}
    if "train" in parameters:
        require_split(f"torchvision:{name}", ("test", "train"), split)
        return _open(name, kind, root, {**options, "train": split == "train"})
    if "split" not in parameters:
        require_whole(f"torchvision:{name}", split, "split it in Python, with torch.utils.data.Subset")
        return _open(name, kind, root, options)
    refused = ""
    for own_name in OWN_NAMES.get(split, (split,)):
        try:
            return _open(name, kind, root, {**options, "split": own_name})
        except ValueError as error:
            if isinstance(error, DataError):
                raise
            refused = refused or " ".join(str(error).split())
    raise DataError(f"torchvision:{name}: has no split {split!r}: {refused}")


def _open(name: str, kind: Any, root: Path, options: Mapping[str, Any]) -> Any:
    try:
        return kind(root=str(root), **options)
    except ImportError as error:
        raise ImportError(
            f"torchvision:{name}: needs {error.name}: pip install {error.name}", name=error.name
        ) from error
    except (RuntimeError, FileNotFoundError) as error:
        advice = (
            f"download it once with torchvision.datasets.{name}({str(root)!r}, download=True)"
            if "download" in options
            else "see torchvision's page of the dataset for its files"
        )
        raise DataError(f"torchvision:{name}: is not complete in {root}; {advice}") from error


def _class_names(name: str, dataset: Any) -> list[str]:
    names = getattr(dataset, "classes", getattr(dataset, "categories", None))
    if not isinstance(names, list | tuple) or not all(isinstance(each, str) for each in names) or not names:
        raise DataError(
            f"torchvision:{name}: torchvision has no certain names of its classes; evaluate it in Python, with "
            f"zero_shot(model, torchvision.datasets.{name}(…), class_names=[…])"
        )
    return [each.replace("_", " ") for each in names]
