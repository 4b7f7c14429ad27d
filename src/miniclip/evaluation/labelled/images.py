"""Images of a labelled dataset: pairs of image and class, of torchvision, Hugging Face or your own.

Letters: N images, C classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Integral
from typing import Any

import numpy as np
import torch
from torch import Tensor

from miniclip.errors import UnreadableError
from miniclip.utils.items import TEXTS, listed


class LabelledImages(Sequence[Any]):
    """Images of a labelled dataset. Reading an image also notes its class, so the data is read once.

    Args:
        data: `data[i]` is `(image, class)`: a dataset of torchvision, `ClassFolders`, `ShapeClasses`, or your own. A
            dataset of Hugging Face with one ClassLabel and one image column is taken too. A class is an index into the
            class names, or a class name.
        class_names: C different names; None: `data.class_names`, `data.classes`, or the names of the ClassLabel.

    Attributes:
        class_names: the C names.
        templates: prompt templates of the dataset, or None.
        labels: (N,) int64, a copy; -1 for images that have not been read yet.

    Raises:
        ValueError: the data are empty, or the class names are missing or not unique.
        TypeError: the class names have no order, as in a set or a dict.
    """

    def __init__(self, data: Any, class_names: Sequence[str] | None = None) -> None:
        columns = _huggingface_columns(data)
        if class_names is None:
            class_names = columns[2] if columns else getattr(data, "class_names", getattr(data, "classes", None))
        self.class_names = checked_class_names(class_names)
        if not len(data):
            raise ValueError("the dataset has no images; expected at least one")
        self.data, self._columns = data, columns and columns[:2]
        self.templates: Any = getattr(data, "templates", None)
        self._labels = np.full(len(data), -1, dtype=np.int64)  # threads set them, with and without inference mode

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: Any) -> Any:
        """Return an image, or a list of images for a slice.

        Raises:
            DataError: the item is not a pair, or its class is unknown.
        """
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        item = self.data[index]
        if self._columns:
            item = tuple(item[column] for column in self._columns)
        if not isinstance(item, tuple | list) or len(item) != 2:
            raise UnreadableError(f"image {index}", f"found a {type(item).__name__}, expected a pair (image, class)")
        self._labels[index] = self._class_index(index, item[1])
        return item[0]

    @property
    def labels(self) -> Tensor:
        """Class indices (N,) of the images that have been read."""
        return torch.from_numpy(self._labels.copy())

    @labels.setter
    def labels(self, labels: Tensor) -> None:
        self._labels = labels.cpu().numpy().copy()

    def _class_index(self, index: int, label: Any) -> int:
        if isinstance(label, Tensor) and label.numel() == 1:
            label = label.item()
        if isinstance(label, str) and label in self.class_names:
            return self.class_names.index(label)
        is_integer = isinstance(label, Integral) and label is not True and label is not False
        if is_integer and 0 <= int(label) < len(self.class_names):
            return int(label)
        raise UnreadableError(
            f"image {index}",
            f"its class is {label!r}; expected one of the {len(self.class_names)} class names, or an index in "
            f"0..{len(self.class_names) - 1}",
        )


def as_labelled(data: Any, class_names: Sequence[str] | None = None) -> LabelledImages:
    """Return a dataset as `LabelledImages`, with other class names if they are given."""
    if not isinstance(data, LabelledImages):
        return LabelledImages(data, class_names)
    return data if class_names is None else LabelledImages(data.data, class_names)


def checked_class_names(names: Any, argument: str = "class_names") -> list[str]:
    """Return class names as a list.

    Args:
        names: the class names.
        argument: name of the argument, for error messages.

    Raises:
        ValueError: the list is empty, a name is not a text or is empty, or two are equal.
        TypeError: the names have no order, as in a set or a dict.
    """
    texts: list[str] = [] if isinstance(names, str) or names is None else [*listed(names, argument, TEXTS)]
    if not texts:
        raise ValueError(f"{argument}: found {names!r}, expected a list of at least one name")
    for index, name in enumerate(texts):
        if not isinstance(name, str) or not name.strip():
            raise ValueError(f"{argument}: name {index} is {name!r}; expected a text that describes the class")
    duplicate = next((name for index, name in enumerate(texts) if texts.index(name) < index), None)
    if duplicate is not None:
        raise ValueError(
            f"{argument}: {duplicate!r} stands for two classes, {texts.index(duplicate)} and "
            f"{len(texts) - 1 - texts[::-1].index(duplicate)}; each class needs a name of its own"
        )
    return texts


def _huggingface_columns(data: Any) -> tuple[str, str, list[str]] | None:
    """Return image column, label column and class names of a Hugging Face dataset; None for other datasets."""
    features = getattr(data, "features", None)
    if not isinstance(features, dict):
        return None
    kinds = {name: type(feature).__name__ for name, feature in features.items()}
    images = [name for name, kind in kinds.items() if kind == "Image"]
    labels = [name for name, kind in kinds.items() if kind == "ClassLabel"]
    if len(images) != 1 or len(labels) != 1:
        raise ValueError(
            f"the dataset has {len(images)} image and {len(labels)} ClassLabel columns; expected one of each: use "
            "select_columns"
        )
    return images[0], labels[0], list(features[labels[0]].names)
