"""Image features of a dataset, computed once and kept on disk for all tasks.

Features are the image tower's output before its projection. The embeddings follow from them, so one file serves
retrieval, zero-shot classification and probes. Letters: N images, D width of the tower, E embedding.
"""

from __future__ import annotations

import copy
import dataclasses
import hashlib
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from miniclip.data.shapes import Shapes
from miniclip.evaluation.labelled import LabelledImages
from miniclip.evaluation.shape_classes import ShapeClasses
from miniclip.inference.fingerprint import image_fingerprint
from miniclip.losses.reference import l2_normalize
from miniclip.utils.atomic import write_atomically


def image_features(model: Any, images: Any, *, progress: bool = False) -> Tensor:
    """Image features before the projection: (N, D), not normalized.

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
    tower = copy.copy(model.image)
    tower._modules = tower._modules | {"projection": nn.Identity()}
    headless = copy.copy(model)
    headless._modules = headless._modules | {"image": tower}
    headless.config = dataclasses.replace(model.config, embed_dim=model.config.image.width)
    return headless


class CachedEncoder:
    """A model that keeps the features of file-based and synthetic datasets in a folder.

    A file's name is made of the fingerprints of the model (weights and preprocessing of its image tower) and of the
    data (paths, sizes and times of change). Data without a fingerprint, such as images in memory, is encoded each time.

    Args:
        model: a CLIPModel.
        folder: folder of the files; made if it is missing.
    """

    def __init__(self, model: Any, folder: str | Path) -> None:
        self.model, self.folder = model, Path(folder)
        self._fingerprint = image_fingerprint(model)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.model, name)

    def features(self, images: Any, progress: bool = False) -> Tensor:
        """Image features (N, D), from the folder if they are in it."""
        key = data_fingerprint(images)
        if key is None:
            return image_features(self.model, images, progress=progress)
        path = self.folder / f"{self._fingerprint}-{key}.safetensors"
        tensors = _read_features(path, len(images))
        if tensors is None:
            features = image_features(self.model, images, progress=progress)
            tensors = {"features": features.cpu()}
            if isinstance(images, LabelledImages):
                tensors["labels"] = images.labels
            self.folder.mkdir(parents=True, exist_ok=True)
            write_atomically(path, lambda temporary: save_file(tensors, temporary))
            return features
        if isinstance(images, LabelledImages):
            images.labels = tensors["labels"]
        return tensors["features"].to(self.model.device)

    @torch.no_grad()
    def encode_image(self, images: Any, *, normalize: bool = True, progress: bool = False) -> Tensor:
        """As `CLIPModel.encode_image`: (N, E) float32."""
        projection = self.model.image.projection
        weight = next(projection.parameters(), None)
        features = self.features(images, progress)
        embeddings = projection(features if weight is None else features.to(weight.dtype)).float()
        return l2_normalize(embeddings) if normalize else embeddings


def _read_features(path: Path, count: int) -> dict[str, Tensor] | None:
    """Return the tensors of a file of features; None if it is missing, damaged or not of `count` images."""
    try:
        tensors: dict[str, Tensor] = load_file(path) if path.is_file() else {}
    except (SafetensorError, OSError):
        return None
    return tensors if "features" in tensors and all(len(rows) == count for rows in tensors.values()) else None


def data_fingerprint(images: Any) -> str | None:
    """Return a digest of a dataset's files, or of a synthetic dataset's settings; None for other data."""
    data = getattr(images, "data", images)
    if isinstance(data, Shapes | ShapeClasses):
        facts: Any = repr(data)
    else:
        paths = getattr(data, "paths", None)
        if not paths or not all(isinstance(path, Path) for path in paths):
            return None
        facts = [(str(path.resolve()), (stat := path.stat()).st_size, stat.st_mtime_ns) for path in paths]
    labelled = images.class_names if isinstance(images, LabelledImages) else None
    return hashlib.sha256(repr((facts, labelled)).encode("utf-8", "surrogatepass")).hexdigest()[:24]
