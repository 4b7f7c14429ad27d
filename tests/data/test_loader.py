"""Batches of the loader: every image once per epoch, captions drawn by seed, epoch and index, one-line errors."""

from collections import Counter

import pytest
import torch

from miniclip.config import preset
from miniclip.data import Captions, Shapes
from miniclip.data.loader import ImageCaptionLoader
from miniclip.data.options import LoaderOptions
from miniclip.data.preprocess import Preprocess
from miniclip.data.sources import selection
from miniclip.data.sources.memory import InMemoryImages
from miniclip.data.sources.workers import StreamedImages
from miniclip.errors import DataError
from miniclip.tokenizer import Tokenizer

PREPROCESS = Preprocess(preset("bert_vit_tiny"))


@pytest.fixture(scope="module")
def data():
    return Shapes("train", 22, image_size=64)


@pytest.fixture(scope="module")
def tokenizer(data):
    return Tokenizer.train([caption for captions in data.captions for caption in captions], 600)


def make(data, tokenizer, **options):
    return ImageCaptionLoader(data, tokenizer, PREPROCESS, LoaderOptions(**{"batch_size": 4, **options}))


def equal(batch, other):
    return all(torch.equal(a, b) for a, b in zip(batch, other, strict=True))


def captions_of(batch, tokenizer):
    return [tokenizer.decode(row.tolist()) for row in batch.tokens]


def test_images_and_captions_of_a_batch_match(data, tokenizer):
    for batch in make(data, tokenizer).epoch(0):
        assert batch.pixels.shape == (4, 3, 64, 64)
        assert batch.pixels.dtype == torch.uint8
        for i, pixels, caption in zip(batch.indices, batch.pixels, captions_of(batch, tokenizer), strict=True):
            image, captions = data[int(i)]
            assert torch.equal(pixels, PREPROCESS.pixels(image))
            assert caption in [tokenizer.normalize(c) for c in captions]


def test_an_epoch_has_no_image_twice_and_drops_the_last_batch(data, tokenizer):
    loader = make(data, tokenizer)
    assert loader.steps == 5
    epochs = [torch.cat([batch.indices for batch in loader.epoch(n)]).tolist() for n in range(12)]
    assert all(len(set(epoch)) == len(epoch) == 20 for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 12
    assert {i for epoch in epochs for i in epoch} == set(range(22))


def test_captions_are_drawn_evenly(data, tokenizer):
    loader = make(data, tokenizer, batch_size=22)
    counts = Counter()
    for epoch in range(100):
        for batch in loader.epoch(epoch):
            counts.update(captions_of(batch, tokenizer))
    assert set(counts) == {tokenizer.normalize(caption) for captions in data.captions for caption in captions}
    assert max(counts.values()) < 45
    assert min(counts.values()) > 5


def test_a_caption_depends_only_on_seed_epoch_and_index(data, tokenizer):
    def drawn(epoch, **options):
        batches = make(data, tokenizer, **options).epoch(epoch)
        return {int(i): c for b in batches for i, c in zip(b.indices, captions_of(b, tokenizer), strict=True)}

    large, small = drawn(3, batch_size=22), drawn(3, batch_size=5)
    assert small.items() <= large.items()
    assert drawn(4, batch_size=22) != large
    assert drawn(3, batch_size=22, seed=1) != large


def test_an_epoch_can_start_in_the_middle(data, tokenizer):
    loader = make(data, tokenizer)
    whole, rest = list(loader.epoch(2)), list(loader.epoch(2, start=3))
    assert len(rest) == 2
    assert all(equal(a, b) for a, b in zip(whole[3:], rest, strict=True))


def test_token_rows_are_as_long_as_the_longest_caption(data, tokenizer):
    for batch in make(data, tokenizer).epoch(0):
        ends = (batch.tokens == tokenizer.end_id).int()
        assert (ends.sum(dim=1) == 1).all()
        assert int(ends.argmax(dim=1).max()) == batch.tokens.shape[1] - 1


def test_padded_token_rows_are_as_long_as_the_context(data, tokenizer):
    short, padded = make(data, tokenizer), make(data, tokenizer, pad=True)
    for batch, full in zip(short.epoch(0), padded.epoch(0), strict=True):
        assert full.tokens.shape == (4, 77)
        assert batch.tokens.shape[1] < 77
        assert torch.equal(full.tokens[:, : batch.tokens.shape[1]], batch.tokens)
        assert not full.tokens[:, batch.tokens.shape[1] :].any()


def test_a_dataset_smaller_than_a_batch_is_one_batch(data, tokenizer):
    (batch,) = make(data, tokenizer, batch_size=100).epoch(0)
    assert len(batch.indices) == 22


@pytest.mark.parametrize("num_workers", [0, 2])
def test_workers_change_nothing(data, tokenizer, num_workers):
    in_memory, streamed = make(data, tokenizer), make(data, tokenizer, num_workers=num_workers)
    assert isinstance(in_memory.source, InMemoryImages)
    assert isinstance(streamed.source, StreamedImages)
    assert all(equal(a, b) for a, b in zip(in_memory.epoch(1), streamed.epoch(1), strict=True))


def test_a_large_dataset_is_streamed(data, tokenizer, monkeypatch):
    monkeypatch.setattr(selection, "MAX_IN_MEMORY_BYTES", 22 * 3 * 64 * 64 - 1)
    assert isinstance(make(data, tokenizer).source, StreamedImages)
    monkeypatch.setattr(selection, "MAX_IN_MEMORY_BYTES", 22 * 3 * 64 * 64)
    assert isinstance(make(data, tokenizer).source, InMemoryImages)


@pytest.mark.parametrize("num_workers", [None, 0, 1])
def test_an_unreadable_image_is_an_error_of_one_line(tmp_path, data, tokenizer, num_workers):
    for name in "abc":
        data[0][0].save(tmp_path / f"{name}.jpg")
    path = tmp_path / "b.jpg"
    path.write_bytes(path.read_bytes()[:400])
    captions = Captions([tmp_path / f"{name}.jpg" for name in "abc"], [["a shape"]] * 3)
    with pytest.raises(DataError) as error:
        list(make(captions, tokenizer, batch_size=3, num_workers=num_workers).epoch(0))
    assert "b.jpg" in str(error.value)
    assert "\n" not in str(error.value)


def test_an_empty_dataset_is_refused(tokenizer):
    with pytest.raises(ValueError, match="empty"):
        make(Captions([], []), tokenizer)
