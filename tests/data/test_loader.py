"""The loader: every picture once an epoch, one caption each, by seed, epoch and index alone; errors in one line."""

from collections import Counter

import pytest
import torch

from miniclip.config import preset
from miniclip.data import Captions, Shapes
from miniclip.data import sources as module
from miniclip.data.loader import ImageCaptionLoader
from miniclip.data.sources import InMemoryImages, StreamedImages
from miniclip.data.transforms import Preprocess
from miniclip.errors import DataError
from miniclip.tokenizer import Tokenizer

PREPROCESS = Preprocess(preset("bert_vit_tiny"))


@pytest.fixture(scope="module")
def data():
    return Shapes("train", 22, image_size=64)


@pytest.fixture(scope="module")
def tokenizer(data):
    return Tokenizer.train([caption for group in data.captions for caption in group], 600)


def make(data, tokenizer, **options):
    return ImageCaptionLoader(data, tokenizer, PREPROCESS, context_length=77, **{"batch_size": 4, **options})


def same(one, other):
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def captions_of(batch, tokenizer):
    return [tokenizer.decode(row.tolist()) for row in batch.tokens]


def test_a_batch_is_matching_pictures_and_captions(data, tokenizer):
    for batch in make(data, tokenizer).epoch(0):
        assert batch.pixels.shape == (4, 3, 64, 64)
        assert batch.pixels.dtype == torch.uint8
        for i, pixels, caption in zip(batch.indices, batch.pixels, captions_of(batch, tokenizer), strict=True):
            picture, captions = data[int(i)]
            assert torch.equal(pixels, PREPROCESS.pixels(picture))
            assert caption in [tokenizer.normalize(c) for c in captions]


def test_an_epoch_shows_no_picture_twice_and_leaves_out_the_rest(data, tokenizer):
    loader = make(data, tokenizer)
    assert loader.steps == 5
    epochs = [torch.cat([batch.indices for batch in loader.epoch(n)]).tolist() for n in range(12)]
    assert all(len(set(epoch)) == len(epoch) == 20 for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 12
    assert {i for epoch in epochs for i in epoch} == set(range(22))


def test_all_captions_get_their_turn_evenly(data, tokenizer):
    loader = make(data, tokenizer, batch_size=22)
    seen = Counter()
    for epoch in range(100):
        for batch in loader.epoch(epoch):
            seen.update(captions_of(batch, tokenizer))
    wanted = {tokenizer.normalize(caption) for group in data.captions for caption in group}
    assert set(seen) == wanted
    assert max(seen.values()) < 45
    assert min(seen.values()) > 5


def test_a_caption_depends_on_seed_epoch_and_index_alone(data, tokenizer):
    def chosen(epoch, **options):
        batches = make(data, tokenizer, **options).epoch(epoch)
        return {int(i): c for b in batches for i, c in zip(b.indices, captions_of(b, tokenizer), strict=True)}

    one, other = chosen(3, batch_size=22), chosen(3, batch_size=5)
    assert other.items() <= one.items()
    assert chosen(4, batch_size=22) != one
    assert chosen(3, batch_size=22, seed=1) != one


def test_going_on_in_the_middle(data, tokenizer):
    loader = make(data, tokenizer)
    whole, rest = list(loader.epoch(2)), list(loader.epoch(2, start=3))
    assert len(rest) == 2
    assert all(same(a, b) for a, b in zip(whole[3:], rest, strict=True))


def test_tokens_end_with_the_longest_caption(data, tokenizer):
    for batch in make(data, tokenizer).epoch(0):
        ends = (batch.tokens == tokenizer.end_id).int()
        assert (ends.sum(dim=1) == 1).all()
        assert int(ends.argmax(dim=1).max()) == batch.tokens.shape[1] - 1


def test_a_set_smaller_than_a_batch_is_one_batch(data, tokenizer):
    (batch,) = make(data, tokenizer, batch_size=100).epoch(0)
    assert len(batch.indices) == 22


@pytest.mark.parametrize("num_workers", [0, 2])
def test_workers_change_nothing(data, tokenizer, num_workers):
    kept, streamed = make(data, tokenizer), make(data, tokenizer, num_workers=num_workers)
    assert isinstance(kept._pictures, InMemoryImages)
    assert isinstance(streamed._pictures, StreamedImages)
    assert all(same(a, b) for a, b in zip(kept.epoch(1), streamed.epoch(1), strict=True))


def test_a_large_set_is_streamed(data, tokenizer, monkeypatch):
    monkeypatch.setattr(module, "KEEP_BYTES", 22 * 3 * 64 * 64 - 1)
    assert isinstance(make(data, tokenizer)._pictures, StreamedImages)
    monkeypatch.setattr(module, "KEEP_BYTES", 22 * 3 * 64 * 64)
    assert isinstance(make(data, tokenizer)._pictures, InMemoryImages)


@pytest.mark.parametrize("num_workers", [None, 0, 1])
def test_an_unreadable_picture_is_one_line(tmp_path, data, tokenizer, num_workers):
    for name in "abc":
        data[0][0].save(tmp_path / f"{name}.jpg")
    path = tmp_path / "b.jpg"
    path.write_bytes(path.read_bytes()[:400])
    pairs = Captions([tmp_path / f"{name}.jpg" for name in "abc"], [["a shape"]] * 3)
    with pytest.raises(DataError) as error:
        list(make(pairs, tokenizer, batch_size=3, num_workers=num_workers).epoch(0))
    assert "b.jpg" in str(error.value)
    assert "\n" not in str(error.value)


def test_no_pictures(tokenizer):
    with pytest.raises(ValueError, match="empty"):
        make(Captions([], []), tokenizer)


def test_rows_as_long_as_the_context_for_a_tower_that_attends_to_padding(data, tokenizer):
    short, full = make(data, tokenizer), make(data, tokenizer, pad=True)
    for one, other in zip(short.epoch(0), full.epoch(0), strict=True):
        assert other.tokens.shape == (4, 77)
        assert one.tokens.shape[1] < 77
        assert torch.equal(other.tokens[:, : one.tokens.shape[1]], one.tokens)
        assert not other.tokens[:, one.tokens.shape[1] :].any()
