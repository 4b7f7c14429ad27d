"""Embeddings of all images or captions of a dataset, computed once into a file, and read from it by index.

Frozen towers, teachers and starting models embed each image and each caption once, from the preprocessed image without
augmentation. The file is a float32 .npy, which is memory-mapped. Its name holds a digest of all that the embeddings
depend on: weights, preprocessing, tokenizer and data. So embeddings of other weights or other data are never read. A
killed process continues from its last finished chunk.

Letters: N images or captions, n of a chunk, E embedding.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import logging
from collections.abc import Generator, Sequence
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from miniclip.data.cache.format import tokenizer_checksum
from miniclip.data.cache.reading import CachedDataset
from miniclip.data.dataset import ImageCaptionDataset, ImageFiles, image_of, name_of
from miniclip.data.given import original
from miniclip.data.options import LoaderOptions
from miniclip.data.shapes import Shapes
from miniclip.data.sources.selection import open_image_source
from miniclip.embedding.images import DatasetImages
from miniclip.embedding.outputs import npy_header
from miniclip.embedding.partial import SUFFIX, Partial, open_partial
from miniclip.errors import DataError, UnreadableError
from miniclip.finetuning.lora import plain_state
from miniclip.inference.fingerprint import add_weights, image_fingerprint
from miniclip.inference.images import embed_batch
from miniclip.inference.model import CLIPModel
from miniclip.inference.texts import embed_texts
from miniclip.runs.structure import evaluation_mode
from miniclip.runtime import distributed

Side = Literal["image", "text"]

CHUNK = 1024  # images or captions between two writes
BATCH = {"image": 32, "text": 256}  # those of `encode_image` and `encode_text`

Embedded = Generator[Tensor, None, None]

logger = logging.getLogger(__name__)


class EmbeddingTable:
    """Embeddings of the images or the captions of a dataset by one model, not normalised.

    Args:
        folder: folder of the file.
        side: "image" or "text".
        model: embeds in float32, in evaluation mode; it is not kept once the file is complete.
        data: images with captions.
        options: of the training loader, whose pixels are embedded.
    """

    def __init__(
        self, folder: Path, side: Side, model: CLIPModel, data: ImageCaptionDataset, options: LoaderOptions
    ) -> None:
        self.folder, self.side, self.data = folder, side, data
        self.options = dataclasses.replace(options, source=None, device=None)  # pixels, of which none are kept
        self._model: CLIPModel | None = model

    @functools.cached_property
    def rows(self) -> Tensor:
        """Embeddings (N, E) float32 on the CPU, memory-mapped. All ranks must read it first together.

        Rows of images that could not be read are NaN, if the options skip them.

        Raises:
            DataError: an image cannot be read, or the file has another shape.
        """
        assert self._model is not None
        path, count = distributed.on_main(self._path), self._count()
        if not distributed.on_main(path.exists):
            with evaluation_mode(self._model), torch.no_grad():
                self._compute(self._model, path, count)
        embed_dim, self._model = self._model.config.embed_dim, None
        rows = np.load(path, mmap_mode="c")  # torch needs a writable map
        if rows.shape != (count, embed_dim) or rows.dtype != np.float32:
            found = f"{rows.dtype} {rows.shape}"
            raise DataError(f"{path}: found {found}, expected float32 ({count}, {embed_dim}): delete the file")
        return torch.from_numpy(rows)

    def _count(self) -> int:
        return len(self.data) if self.side == "image" else sum(map(len, self.data.captions))

    def _path(self) -> Path:
        """Return the path of the file; its name holds a digest of weights, preprocessing and data."""
        model = self._model
        assert model is not None
        tower, weights = (model.image, model.text)[self.side == "text"], hashlib.sha256()
        if self.side == "image":
            weights.update(image_fingerprint(model).encode())
            data = f"{image_identity(self.data)} {self.options.reduced_decoding}"
        else:
            assert model.tokenizer is not None
            weights.update(f"{model.config.text} {tokenizer_checksum(model.tokenizer)}".encode())
            add_weights(weights, plain_state(model.text))
            data = caption_identity(self.data)
        dtype = next(tower.parameters()).dtype
        facts = (weights.hexdigest(), repr(tower), str(dtype), model.config.embed_dim, data, self._count())
        return self.folder / f"{self.side}-{hashlib.sha256(repr(facts).encode()).hexdigest()[:24]}.npy"

    def _compute(self, model: CLIPModel, path: Path, count: int) -> None:
        """Embed the items that an interrupted run has not finished, in chunks; each rank embeds its rows of a chunk."""
        with ExitStack() as stack:
            settings = {"table": path.stem, "count": count}
            partial = distributed.on_main(lambda: None)
            if distributed.is_main():
                path.parent.mkdir(parents=True, exist_ok=True)
                partial = stack.enter_context(open_partial(path.with_name(path.name + SUFFIX), settings, True))
            start = distributed.on_main(lambda: partial.items if partial else 0)
            logger.info("embedding %s of %s %ss once, into %s", f"{count - start:,}", f"{count:,}", self.side, path)
            chunks = [range(first, min(first + CHUNK, count)) for first in range(start, count, CHUNK)]
            parts = [chunk[distributed.rank_slice(len(chunk))] for chunk in chunks]
            embed = embedded_images if self.side == "image" else embedded_captions
            with closing(embed(model, self.data, self.options, parts)) as embedded:
                for rows in embedded:
                    vectors = distributed.all_gather(rows.contiguous()).cpu()
                    if partial:
                        _append(partial, vectors)
            distributed.on_main(lambda: _publish(partial, path, model.config.embed_dim))


def _append(partial: Partial, vectors: Tensor) -> None:
    partial.add(vectors.numpy(), [""] * len(vectors), len(vectors), "", {})


def _publish(partial: Partial | None, path: Path, embed_dim: int) -> None:
    assert partial is not None
    partial.publish_vectors(npy_header(partial.rows, embed_dim, "float32"), path)
    partial.remove()


def embedded_images(
    model: CLIPModel, data: ImageCaptionDataset, options: LoaderOptions, parts: Sequence[range]
) -> Embedded:
    """Yield the embeddings (n, E) of each part's images, from the pixels that the training loader reads.

    Raises:
        UnreadableError: an image cannot be read, and the options do not skip it; else its row is NaN.
        ValueError: an embedding is not finite.
    """
    batches = [part[start : start + BATCH["image"]] for part in parts for start in range(0, len(part), BATCH["image"])]
    with closing(open_image_source(data, model.preprocess, options).batches(map(list, batches))) as source:
        for part in parts:
            rows = torch.full((len(part), model.config.embed_dim), torch.nan, device=model.device)
            for start in range(0, len(part), BATCH["image"]):
                batch = part[start : start + BATCH["image"]]
                pixels, failed = next(source)
                for index, reason in failed.items():
                    if options.on_error == "raise":
                        raise UnreadableError(name_of(data, index), reason)
                readable = [start + place for place, index in enumerate(batch) if index not in failed]
                if readable:
                    rows[readable] = _finite(embed_batch(model, model.preprocess, pixels), "images")
            yield rows


def embedded_captions(
    model: CLIPModel, data: ImageCaptionDataset, options: LoaderOptions, parts: Sequence[range]
) -> Embedded:
    """Yield the embeddings (n, E) of each part's captions, in the order of the dataset.

    Raises:
        ValueError: an embedding is not finite.
    """
    texts = [caption for group in data.captions for caption in group]
    for part in parts:
        block = texts[part.start : part.stop]
        yield _finite(embed_texts(model, model.tokenizer, block, BATCH["text"]), "captions")


def _finite(rows: Tensor, name: str) -> Tensor:
    if not rows.isfinite().all():
        raise ValueError(f"the model's embeddings of {name} have values that are not finite; check its weights")
    return rows.float()


def image_identity(data: ImageCaptionDataset) -> str:
    """Return a digest that changes if an image changes.

    Files count by name, size and time of change, caches by their checksums, Shapes by its settings. The images of any
    other dataset are read, and count by their pixels.
    """
    digest, images, parts = hashlib.sha256(), DatasetImages(data), dict[int, int]()
    for index, identity in enumerate(images.identities()):
        part, row = original(images.data, index)
        if id(part) not in parts:
            parts[id(part)] = len(parts)
            digest.update(_settings(part).encode())
        digest.update(f"{parts[id(part)]} {row} {identity}".encode("utf-8", "surrogatepass") + b"\0")
        if not _is_known(part):
            digest.update(_content(part, row))
    return digest.hexdigest()


def _content(data: ImageCaptionDataset, index: int) -> bytes:
    try:
        image = image_of(data, index).convert("RGB")
    except (DataError, OSError):
        return b"unreadable"
    return f"{image.size}".encode() + image.tobytes()


def _settings(data: ImageCaptionDataset) -> str:
    """Return the checksums of a cache, or the settings of Shapes."""
    return repr(data.index) if isinstance(data, CachedDataset) else repr(data) if type(data) is Shapes else ""


def _is_known(data: ImageCaptionDataset) -> bool:
    if isinstance(data, ImageFiles):
        return type(data).image is ImageFiles.image
    return isinstance(data, CachedDataset) or type(data) is Shapes


def caption_identity(data: ImageCaptionDataset) -> str:
    """Return a digest of all captions in order."""
    digest = hashlib.sha256()
    for group in data.captions:
        digest.update(json.dumps(list(group)).encode() + b"\n")
    return digest.hexdigest()
