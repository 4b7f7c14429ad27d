"""Encoder of the page: one thread answers the waiting requests in their order, and encodes them in batches.

The model is used by this thread only. Letters: N texts, M images, E embedding.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from torch import Tensor

from miniclip.inference.model import CLIPModel

T = TypeVar("T")


class BusyError(RuntimeError):
    """A queue that is full."""


@dataclass(frozen=True)
class Request:
    """A request that waits for the model.

    Attributes:
        texts: N strings to encode.
        images: M images (3, S, S) of uint8 to encode, as `read_pixels` returns them.
        answer: function of the embeddings (N, E) and (M, E), float32 unit vectors on the CPU, that returns the answer.
        future: receives the answer, or the error.
    """

    texts: Sequence[str]
    images: Sequence[Tensor]
    answer: Callable[[Tensor, Tensor], Any]
    future: Future[Any] = field(default_factory=Future)


class Encoder:
    """Queue of requests, and the thread that answers them in the order of arrival.

    The thread takes all requests that wait, encodes their texts in one batch and their images in another, and answers
    them one by one. A request that arrives meanwhile belongs to the next batch.

    Args:
        model: a model.
        waiting: requests that wait at most.
        most: requests of a batch at most.
    """

    def __init__(self, model: CLIPModel, waiting: int = 64, most: int = 32) -> None:
        self.model, self.most = model, most
        self._queue: queue.Queue[Request | None] = queue.Queue(waiting)
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="miniclip-encoder", daemon=True)
        self._thread.start()

    @property
    def waiting(self) -> int:
        """Number of requests in the queue."""
        return self._queue.qsize()

    def submit(
        self, answer: Callable[[Tensor, Tensor], T], texts: Sequence[str] = (), images: Sequence[Tensor] = ()
    ) -> Future[T]:
        """Add a request to the queue; its arguments are those of `Request`.

        Raises:
            BusyError: the queue is full, or closed.
        """
        request = Request(texts, images, answer)
        if self._closing.is_set():
            raise BusyError("the server is stopping")
        try:
            self._queue.put_nowait(request)
        except queue.Full:
            raise BusyError("too many requests wait for the model; try again in a second") from None
        return request.future

    def close(self) -> None:
        """End the thread after its current batch; requests that still wait are cancelled."""
        self._closing.set()
        for request in self._take():
            request.future.cancel()
        self._queue.put(None)
        self._thread.join()

    def _run(self) -> None:
        while (first := self._queue.get()) is not None:
            batch = [first, *self._take(self.most - 1)]
            # a request whose caller has gone away is not answered
            self._answer([request for request in batch if request.future.set_running_or_notify_cancel()])
            if self._closing.is_set():
                return

    def _take(self, most: int | None = None) -> list[Request]:
        """Take the requests that wait, at most a number of them, from the queue."""
        requests: list[Request] = []
        while most is None or len(requests) < most:
            try:
                request = self._queue.get_nowait()
            except queue.Empty:
                break
            if request is not None:
                requests.append(request)
        return requests

    def _answer(self, batch: Sequence[Request]) -> None:
        try:
            texts, images = encode(self.model, batch)
        except Exception as error:
            if len(batch) == 1:
                batch[0].future.set_exception(error)
            else:  # the other requests do not fail with the one that cannot be encoded
                for request in batch:
                    self._answer([request])
            return
        position = 0
        for request in batch:
            rows = torch.stack([texts[text] for text in request.texts]) if request.texts else _none(self.model)
            count = len(request.images)
            try:
                request.future.set_result(request.answer(rows, images[position : position + count]))
            except Exception as error:
                request.future.set_exception(error)
            position += count


def encode(model: CLIPModel, batch: Sequence[Request]) -> tuple[dict[str, Tensor], Tensor]:
    """Encode the texts and the images of a batch; equal texts are encoded once.

    Returns:
        Each text's embedding (E,), and all images' embeddings (M, E), in order: float32 unit vectors on the CPU.
    """
    unique = list(dict.fromkeys(text for request in batch for text in request.texts))
    images = [image for request in batch for image in request.images]
    texts = model.encode_text(unique).cpu() if unique else _none(model)
    rows = model.encode_image(torch.stack(images), num_workers=0).cpu() if images else _none(model)
    return dict(zip(unique, texts, strict=True)), rows


def _none(model: CLIPModel) -> Tensor:
    return torch.zeros(0, model.config.embed_dim, dtype=torch.float32, device="cpu")
