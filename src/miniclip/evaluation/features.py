"""Image features of a dataset, computed once for all tasks, and kept in memory or on disk.

Features are the image tower's output before its projection. The embeddings follow from them, so one file serves
retrieval, zero-shot classification and probes. Letters: N images, D width of the tower, E embedding.
"""

from __future__ import annotations

import copy
import dataclasses
import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from miniclip.checkpoints.names import unwrap
from miniclip.data.shapes import Shapes
from miniclip.evaluation.labelled.folders import ClassFolders
from miniclip.evaluation.labelled.images import LabelledImages
from miniclip.evaluation.labelled.shape_classes import ShapeClasses
from miniclip.evaluation.labelled.tables import LabelledTable
from miniclip.evaluation.labelled.torchvision_datasets import TorchvisionImages
from miniclip.evaluation.retrieval import LazyImages
from miniclip.inference.fingerprint import image_fingerprint
from miniclip.losses.reference import l2_normalize
from miniclip.models.other import OtherImageTower
from miniclip.utils.atomic import write_atomically


def image_features(model: Any, images: Any, *, progress: bool = False) -> Tensor:
    """Image features before the projection: (N, D), not normalized; the embeddings of a tower of another kind.

    Args:
        model: a CLIPModel or `CachedEncoder`.
        images: in any form that `model.encode_image` takes.
        progress: show a progress bar.
    """
    if isinstance(model, CachedEncoder):
        return model.features(images, progress)
    return without_projection(model).encode_image(images, normalize=False, progress=progress)  # type: ignore[no-any-return]


def without_projection(model: Any) -> Any:
    """Return a model that shares all weights, whose image tower ends before the projection."""
    model = unwrap(model)  # the parts of a wrapper's copy are those of the module in it
    tower = unwrap(model.image)
    if isinstance(tower, OtherImageTower):
        return model
    model, tower = copy.copy(model), copy.copy(tower)
    tower._modules = tower._modules | {"projection": nn.Identity()}
    model._modules = model._modules | {"image": tower}
    model.config = dataclasses.replace(model.config, embed_dim=model.config.image.width)
    return model


class CachedEncoder:
    """A model that computes the features of a dataset once.

    With a folder, those of file-based and synthetic datasets are kept there. A file's name is made of the fingerprints
    of the model (weights and preprocessing of its image tower) and of the data (paths, sizes and times of change). The
    labels of class folders are part of it too. Other datasets, such as labelled ones of your own, and all of them
    without a folder, are kept in memory as long as this object. Their images and labels must not change meanwhile.
    Images without a dataset, such as a list, are encoded each time.

    Args:
        model: a CLIPModel.
        folder: folder of the files, made if it is missing; None: memory only.
    """

    def __init__(self, model: Any, folder: str | Path | None = None) -> None:
        self.model, self.folder = model, None if folder is None else Path(folder)
        self._fingerprint = "" if folder is None else f"{image_fingerprint(model)}-{_precision(model)}"
        self._memory: list[tuple[Any, Any, dict[str, Tensor]]] = []  # dataset, class names, tensors

    def __getattr__(self, name: str) -> Any:
        return getattr(self.model, name)

    def features(self, images: Any, progress: bool = False) -> Tensor:
        """Image features (N, D), computed only if they are neither in memory nor in the folder."""
        key = None if self.folder is None else data_fingerprint(images)
        path = None if self.folder is None or key is None else self.folder / f"{self._fingerprint}-{key}.safetensors"
        tensors = self._remembered(images) if path is None else _read_features(path, len(images))
        if tensors is None:
            tensors = {"features": image_features(self.model, images, progress=progress).cpu()}
            if isinstance(images, LabelledImages):
                tensors["labels"] = images.labels
            self._keep(images, tensors, path)
        elif isinstance(images, LabelledImages):
            images.labels = tensors["labels"]
        return tensors["features"].to(self.model.device)

    @torch.no_grad()
    def encode_image(self, images: Any, *, normalize: bool = True, progress: bool = False) -> Tensor:
        """As `CLIPModel.encode_image`: (N, E) float32."""
        return project(self.model, self.features(images, progress), normalize=normalize)

    def _remembered(self, images: Any) -> dict[str, Tensor] | None:
        names = getattr(images, "class_names", None)
        return next((kept for data, of, kept in self._memory if data is _dataset_of(images) and of == names), None)

    def _keep(self, images: Any, tensors: dict[str, Tensor], path: Path | None) -> None:
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(path, lambda temporary: save_file(tensors, temporary))
        elif (data := _dataset_of(images)) is not None:
            self._memory.append((data, getattr(images, "class_names", None), tensors))


def require_finite(rows: Tensor, name: str) -> None:
    """Raise ValueError if a row of embeddings or features (N, D) has a number that is NaN or infinite."""
    broken = int((~rows.isfinite().all(dim=1)).sum())
    if broken:
        raise ValueError(f"{broken} of {len(rows)} {name} are NaN or infinite; the model cannot be scored")


@torch.no_grad()
def project(model: Any, features: Tensor, *, normalize: bool = True) -> Tensor:
    """Return the embeddings (N, E) float32 of image features (N, D)."""
    projection = nn.Identity() if isinstance(model.image, OtherImageTower) else model.image.projection
    weight = next(projection.parameters(), None)
    embeddings = projection(features if weight is None else features.to(weight.dtype)).float()
    return l2_normalize(embeddings) if normalize else embeddings


def _precision(model: Any) -> str:
    return str(next(model.image.parameters()).dtype).removeprefix("torch.")


def _dataset_of(images: Any) -> Any:
    """Return the dataset of labelled or captioned images; None for other images."""
    return images.data if isinstance(images, LabelledImages | LazyImages) else None


def _read_features(path: Path, count: int) -> dict[str, Tensor] | None:
    """Return the tensors of a file of features; None if it is missing, damaged or not of `count` images."""
    try:
        tensors: dict[str, Tensor] = load_file(path) if path.is_file() else {}
    except (SafetensorError, OSError):
        return None
    return tensors if "features" in tensors and all(len(rows) == count for rows in tensors.values()) else None


def data_fingerprint(images: Any) -> str | None:
    """Return a digest of a dataset's files and labels, or of a synthetic dataset's settings; None for other data."""
    data = getattr(images, "data", images)
    labelled = isinstance(images, LabelledImages)
    if isinstance(data, Shapes | ShapeClasses):
        facts: Any = repr(data)
    elif isinstance(data, LabelledTable | TorchvisionImages):
        facts = (_file_facts(data.source_files), data.about)
    elif type(data) is ClassFolders:
        facts = (_file_facts(data.paths), [label for _, label in data.samples])
    else:
        paths = None if labelled else getattr(data, "paths", None)  # labels of other data can change without a file
        if not paths or not all(isinstance(path, Path) for path in paths):
            return None
        facts = _file_facts(paths)
    names = images.class_names if labelled else None
    return hashlib.sha256(repr((facts, names)).encode("utf-8", "surrogatepass")).hexdigest()[:24]


def _file_facts(paths: Sequence[Path]) -> list[tuple[str, int, int]]:
    """Return path, size and time of change of each file."""
    return [(str(path.resolve()), (stat := path.stat()).st_size, stat.st_mtime_ns) for path in paths]
