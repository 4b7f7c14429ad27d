"""Answers of the page: search, uploads, labels, explanations. Letters: N texts, M images, E embedding."""

from __future__ import annotations

import base64
import copy
import io
import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar

from PIL import Image
from torch import Tensor

from miniclip.config import ImageConfig
from miniclip.demo.batching import BusyError, Encoder
from miniclip.demo.gallery import Gallery, Shown
from miniclip.demo.limits import Limits, read_upload
from miniclip.demo.thumbnails import Thumbnails, as_jpeg
from miniclip.demo.uploads import Uploads
from miniclip.explanation import explain, heat_layer
from miniclip.inference.model import CLIPModel
from miniclip.inference.zero_shot import TEMPLATES, class_embeddings, class_probabilities, fill
from miniclip.search.filters import Filter
from miniclip.search.queries import Term, direction, parse
from miniclip.search.snapshot import Item

SIDES = (320, 1280)  # longest side of a thumbnail and of the large view, in pixels
EXPLAINED_SIDE = 448  # pixels of an explanation
Answer = dict[str, Any]
T = TypeVar("T")


class MissingError(LookupError):
    """An image that the index or the uploads lack."""


@dataclass(frozen=True)
class ImageKey:
    """An image of the index by its item's number, or an uploaded one by its name."""

    item: int | None = None
    upload: str | None = None


@dataclass(frozen=True)
class Search:
    """A search: the sum of a text expression and an image, either of which may be missing."""

    text: str = ""
    image: ImageKey | None = None
    count: int = 60
    where: Filter | None = None
    threshold: float | None = None


@dataclass(frozen=True)
class About:
    """Description of the page: the model's name, example queries, and the prompt of labels."""

    model: str
    examples: Sequence[str] = ()
    template: str = TEMPLATES[0]


class Service:
    """Model, index, queue and caches of one page. Its methods may be called from any thread.

    Args:
        model: a model with a tokenizer.
        gallery: images of an index.
        about: description of the page.
        limits: limits of requests.
    """

    def __init__(self, model: CLIPModel, gallery: Gallery, about: About, limits: Limits | None = None) -> None:
        self.model, self.gallery, self.description, self.limits = model, gallery, about, limits or Limits()
        self.encoder = Encoder(model, self.limits.waiting)
        self.thumbnails = Thumbnails(gallery.read, self.limits.cache_bytes)
        self.uploads = Uploads(self.limits.uploads)
        self._decoders = ThreadPoolExecutor(2, thread_name_prefix="miniclip-uploads")
        self._free = threading.BoundedSemaphore(self.limits.uploading)
        self._scale = model.log_scale.detach().exp().cpu()

    def about(self) -> Answer:
        """Return the description of the page."""
        about = self.description
        return {
            "model": about.model,
            "images": len(self.gallery),
            "examples": list(about.examples),
            "template": about.template,
            "explains": isinstance(self.model.config.image, ImageConfig),  # else there are no patches for a heat map
            "limits": {"upload_bytes": self.limits.upload_bytes, "hits": self.limits.hits},
        }

    def search(self, search: Search) -> Future[Answer]:
        """Return the future hits; without a text and an image, a sample of the index.

        Raises:
            ValueError: the expression or a filter is wrong.
            MissingError: the image does not exist.
            BusyError: too many requests wait.
        """
        start = time.monotonic()
        # files are not opened: the expression comes from another person
        terms = parse(search.text, files=False).terms if search.text.strip() else ()
        image = None if search.image is None else self._embedding(search.image)

        def answer(texts: Tensor, _: Tensor) -> Answer:
            if not terms and image is None:
                hits = self.gallery.sample(search.count, search.where)
            else:
                vector = self._query(terms, texts, image)
                hits = self.gallery.search(vector, search.count, search.where, search.threshold)
            return {
                "hits": [as_json(shown) for shown in hits],
                "total": len(self.gallery),
                "texts": [term.text for term in terms if term.weight > 0],
                "milliseconds": max(1, round(1000 * (time.monotonic() - start))),
            }

        return self.encoder.submit(answer, [str(term.text) for term in terms])

    def upload(self, content: bytes) -> Future[Answer]:
        """Decode and encode an uploaded image; its future name is valid in other requests.

        The future raises DataError if the image cannot be read or is above a limit.

        Raises:
            BusyError: too many uploads wait.
        """
        done: Future[Answer] = Future()
        if not self._free.acquire(blocking=False):
            raise BusyError("too many uploads wait; try again in a second")
        done.add_done_callback(lambda _: self._free.release())

        def keep(_: Tensor, images: Tensor) -> Answer:
            return {"upload": self.uploads.add(images[0])}

        def decode() -> None:
            try:
                pixels = read_upload(content, self.model.preprocess, self.limits)
                self.encoder.submit(keep, images=[pixels]).add_done_callback(pass_on)
            except Exception as error:
                done.set_exception(error)

        def pass_on(result: Future[Answer]) -> None:
            if result.cancelled():
                done.cancel()
            elif (error := result.exception()) is not None:
                done.set_exception(error)
            else:
                done.set_result(result.result())

        self._decoders.submit(decode)
        return done

    def labels(self, image: ImageKey, labels: Sequence[str], template: str) -> Future[Answer]:
        """Return the future probabilities of labels for an image, as `model.classify` does.

        Raises:
            ValueError: a label or the template is wrong.
            MissingError: the image does not exist.
            BusyError: too many requests wait.
        """
        names = list(dict.fromkeys(label.strip() for label in labels if label.strip()))
        if not 1 <= len(names) <= self.limits.labels:
            raise ValueError(f"labels: found {len(names)}, expected 1 to {self.limits.labels}")
        prompts, embedding = fill(template, names), self._embedding(image)

        def answer(texts: Tensor, _: Tensor) -> Answer:
            classes = class_embeddings(lambda _: texts, names, template)
            return {"labels": names, "probabilities": class_probabilities(embedding, classes, self._scale).tolist()}

        return self.encoder.submit(answer, prompts)

    def explain(self, item: int, text: str) -> Future[Answer]:
        """Return the future explanation of the similarity of an image of the index and a text.

        The future raises ValueError for an empty text, and DataError if the image cannot be read.
        """
        indexed = self._item(item)

        def answer(_: Tensor, __: Tensor) -> Answer:
            image = self.gallery.read(indexed)
            explanation = explain(self.model, image, text)
            view = copy.copy(self.model.preprocess)  # the same part of the image, in more pixels
            view.size = max(view.size, EXPLAINED_SIDE)
            shown = Image.fromarray(view.pixels(image).permute(1, 2, 0).numpy())
            return {
                "image": data_url(as_jpeg(shown, view.size), "jpeg"),
                "heat": data_url(as_png(heat_layer(explanation, view.size)), "png"),
                "words": [{"text": word.text, "relevance": word.relevance} for word in explanation.words],
                "similarity": explanation.similarity,
                "without_top": explanation.similarity_without_top,
            }

        return self.encoder.submit(answer)

    def thumbnail(self, item: int, side: int) -> Future[bytes]:
        """Return the future JPEG file of an image of the index.

        Raises:
            ValueError: the side is not one of `SIDES`.
            MissingError: the image does not exist.
            BusyError: too many images wait.
        """
        if side not in SIDES:
            raise ValueError(f"side {side}: expected {' or '.join(map(str, SIDES))}")
        indexed = self._item(item)
        if self.thumbnails.pending >= self.limits.decoding:
            raise BusyError("too many images wait; try again in a second")
        return self.thumbnails.get(indexed, side)

    def close(self) -> None:
        """End all threads; requests that wait are cancelled."""
        self._decoders.shutdown(wait=True, cancel_futures=True)
        self.encoder.close()
        self.thumbnails.close()

    def _query(self, terms: Sequence[Term], texts: Tensor, image: Tensor | None) -> Tensor:
        """Return the unit vector (E,) of a query."""
        weights = texts.new_tensor([term.weight for term in terms])
        vector = weights @ texts if terms else texts.new_zeros(self.model.config.embed_dim)
        vector = vector if image is None else vector + image
        largest = max([abs(term.weight) for term in terms] + [0 if image is None else 1])
        return direction(vector, largest)

    def _embedding(self, key: ImageKey) -> Tensor:
        """Return the embedding (E,) of an image.

        Raises:
            MissingError: it does not exist.
            ValueError: the key names no image, or two.
        """
        if (key.item is None) == (key.upload is None):
            raise ValueError("image: expected an item or an upload")
        if key.item is not None:
            return self._found(key.item, self.gallery.embedding(key.item))
        embedding = self.uploads.get(str(key.upload))
        if embedding is None:
            raise MissingError("the uploaded image is not kept any more; upload it again")
        return embedding

    def _item(self, number: int) -> Item:
        return self._found(number, self.gallery.item(number))

    @staticmethod
    def _found(number: int, value: T | None) -> T:
        if value is None:
            raise MissingError(f"image {number}: the index has no such image; search again")
        return value


def as_json(shown: Shown) -> Answer:
    """Return an image as the page takes it."""
    item = shown.item
    return {
        "id": item.id,
        "name": item.name.encode("utf-8", "replace").decode(),  # the names of files need not be UTF-8
        "version": item.sha256[:12],
        "width": item.width,
        "height": item.height,
        "score": None if shown.score is None else round(shown.score, 6),
    }


def as_png(image: Image.Image) -> bytes:
    """Encode an image as PNG."""
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def data_url(content: bytes, kind: str) -> str:
    """Return an image file as a URL that contains it."""
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"
