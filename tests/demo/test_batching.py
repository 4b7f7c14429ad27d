"""Queue of the page: order of arrival, one batch for all that wait, and a limit."""

import threading
from concurrent.futures import CancelledError

import pytest
import torch

pytest.importorskip("fastapi", reason="needs the extra demo")

from miniclip.demo.batching import BusyError, Encoder


class Held:
    """Context in which the encoder's thread waits in the answer of a first request."""

    def __init__(self, encoder):
        self.encoder, self.entered, self.release = encoder, threading.Event(), threading.Event()

    def __enter__(self):
        self.encoder.submit(lambda *_: self.entered.set() or self.release.wait(30))
        assert self.entered.wait(30)

    def __exit__(self, *_):
        self.release.set()


@pytest.fixture
def encoder(demo_model):
    encoder = Encoder(demo_model, waiting=40, most=64)
    yield encoder
    encoder.close()


def test_waiting_requests_share_a_batch_and_are_answered_in_order(encoder, demo_model, monkeypatch):
    batches = {"texts": [], "images": []}
    encode_text, encode_image = demo_model.encode_text, demo_model.encode_image
    monkeypatch.setattr(
        demo_model, "encode_text", lambda x, **o: batches["texts"].append(len(x)) or encode_text(x, **o)
    )
    monkeypatch.setattr(
        demo_model, "encode_image", lambda x, **o: batches["images"].append(len(x)) or encode_image(x, **o)
    )
    pixels = torch.randint(256, (4, 3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    texts = [f"a {color} circle" for color in ("red", "blue", "green", "red")]
    answered = []
    with Held(encoder):
        futures = []
        for number in range(4):

            def answer(rows, images, number=number):
                answered.append(number)
                return rows, images

            futures.append(encoder.submit(answer, [texts[number], "a dog"], [pixels[number]] * number))
    results = [future.result(30) for future in futures]
    assert answered == [0, 1, 2, 3]
    assert batches == {"texts": [4], "images": [6]}  # equal texts once: red, a dog, blue, green
    for number, (rows, images) in enumerate(results):
        torch.testing.assert_close(rows, encode_text([texts[number], "a dog"]).cpu(), atol=1e-5, rtol=0)
        assert images.shape == (number, 16)
        if number:
            expected = encode_image(pixels[number : number + 1]).cpu().expand(number, -1)
            torch.testing.assert_close(images, expected, atol=1e-5, rtol=0)


def test_error_of_one_request_does_not_reach_the_others(encoder):
    with Held(encoder):
        good = encoder.submit(lambda rows, _: rows.shape, ["a dog"])
        wrong = encoder.submit(lambda rows, _: rows, [7])  # not a string
        late = encoder.submit(lambda *_: 1 / 0, ["a dog"])
        last = encoder.submit(lambda rows, _: rows.shape, ["a cat"])
    assert good.result(30) == last.result(30) == (1, 16)
    with pytest.raises(TypeError):
        wrong.result(30)
    with pytest.raises(ZeroDivisionError):
        late.result(30)


def test_full_queue_refuses(demo_model):
    encoder = Encoder(demo_model, waiting=2)
    with Held(encoder):
        waiting = [encoder.submit(lambda *_: "answered") for _ in range(2)]
        with pytest.raises(BusyError, match="try again"):
            encoder.submit(lambda *_: None)
    assert [future.result(30) for future in waiting] == ["answered"] * 2
    encoder.close()


def test_close_cancels_what_waits(demo_model):
    encoder = Encoder(demo_model)
    held = Held(encoder)
    with held:
        waiting = encoder.submit(lambda *_: None)
        closing = threading.Thread(target=encoder.close)
        closing.start()
        with pytest.raises(CancelledError):
            waiting.result(30)
    closing.join(30)
    with pytest.raises(BusyError, match="stopping"):
        encoder.submit(lambda *_: None)
