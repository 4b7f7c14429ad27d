"""Where pixels come from: the same of each source, work done ahead over epochs, nothing left behind, no hang."""

import multiprocessing
import os
import signal
import warnings
from itertools import chain

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from miniclip.config import preset
from miniclip.data import Captions, Shapes, pack
from miniclip.data.loader import ImageCaptionLoader
from miniclip.data.sources import CachedImages, InMemoryImages, StreamedImages, ahead, deaths_named, open_image_source
from miniclip.data.transforms import Preprocess
from miniclip.errors import DataError
from miniclip.runtime import distributed
from miniclip.tokenizer import Tokenizer

PREPROCESS = Preprocess(preset("bert_vit_tiny").replace_image(image_size=16))
COUNT = 23
TOKENIZER = Tokenizer.train(["a caption of one picture or of another"], 540)


class Numbered(Shapes):
    """Pictures that are quickly made: the index is in the colour."""

    def __init__(self):
        super().__init__("train", COUNT, image_size=16)


@pytest.fixture(scope="module")
def data():
    return Numbered()


@pytest.fixture(scope="module")
def sources(data, tmp_path_factory):
    """The three of one set: kept, streamed in this process, packed."""
    packed = pack(data, tmp_path_factory.mktemp("packs") / "out", PREPROCESS, num_workers=0)
    return [data, data, packed], [None, 0, None]


def make(data, num_workers=None, **options):
    return ImageCaptionLoader(
        data, TOKENIZER, PREPROCESS, **{"context_length": 77, "batch_size": 4, **options, "num_workers": num_workers}
    )


def same(one, other):
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def files(folder, count=20, bad=()):
    data = Shapes("train", count, image_size=16)
    for i in range(count):
        data[i][0].save(folder / f"{i}.png")
    for i in bad:
        (folder / f"{i}.png").write_bytes(b"no picture")
    return Captions([folder / f"{i}.png" for i in range(count)], data.captions)


def test_each_set_has_its_source(sources):
    kinds = [type(open_image_source(data, PREPROCESS, num_workers)) for data, num_workers in zip(*sources, strict=True)]
    assert kinds == [InMemoryImages, StreamedImages, CachedImages]


@given(
    batch=st.integers(1, 30),
    seed=st.integers(0, 9),
    epoch=st.integers(0, 9),
    ranks=st.integers(1, 4),
    data=st.data(),
)
def test_ranks_and_sources_see_the_same_epoch_once(sources, batch, seed, epoch, ranks, data):
    """Whatever the source, the rows of all ranks together are the epoch of one process, each picture in it once."""
    ranks = min(ranks, batch)
    whole = list(make(sources[0][0], batch_size=batch, seed=seed).epoch(epoch))
    start = data.draw(st.integers(0, len(whole)))
    which = data.draw(st.sampled_from(range(3)))
    seen = [[] for _ in whole]
    for rank in range(ranks):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(distributed, "world_size", lambda: ranks)
            patch.setattr(distributed, "rank", lambda rank=rank: rank)
            loader = make(sources[0][which], sources[1][which], batch_size=batch, seed=seed)
            for number, mine in enumerate(loader.epoch(epoch, start=start), start):
                seen[number].append(mine)
            loader.close()
    for number, expected in enumerate(whole[start:], start):
        parts = seen[number]
        assert torch.equal(torch.cat([part.indices for part in parts]), expected.indices)
        assert torch.equal(torch.cat([part.rows for part in parts]), expected.rows)
        assert torch.equal(torch.cat([part.pixels for part in parts]), expected.pixels)
    shown = torch.cat([b.indices for b in whole]).tolist()
    assert len(set(shown)) == len(shown) == COUNT // min(batch, COUNT) * min(batch, COUNT)


def test_epochs_one_after_the_other_are_those_asked_for_singly(sources):
    for data, num_workers in zip(*sources, strict=True):
        loader = make(data, num_workers)
        for epoch in (0, 1, 2, 1, 7):  # going on, back, and ahead
            fresh = make(data, num_workers)
            assert all(same(a, b) for a, b in zip(loader.epoch(epoch), fresh.epoch(epoch), strict=True))
            fresh.close()
        loader.close()


def test_two_epochs_at_once_are_not_mixed_up(data):
    loader = make(data, 0)
    for one, other in zip(loader.epoch(0), loader.epoch(1), strict=True):
        assert not torch.equal(one.indices, other.indices)
        assert torch.equal(one.pixels[0], PREPROCESS.pixels(data[int(one.indices[0])][0]))
        assert torch.equal(other.pixels[0], PREPROCESS.pixels(data[int(other.indices[0])][0]))


def test_workers_live_from_epoch_to_epoch_and_end_on_closing(data):
    loader = make(data, 2)
    alive = []
    for epoch in range(3):
        for _ in loader.epoch(epoch):
            alive.append({child.pid for child in multiprocessing.active_children()})
    assert len(alive[0]) == 2
    assert all(pids == alive[0] for pids in alive)
    loader.close()
    assert not multiprocessing.active_children()
    assert next(loader.epoch(1)).pixels.shape == (4, 3, 16, 16)  # and it can be used again
    loader.close()


def test_a_worker_that_is_killed_is_an_error_and_no_hang(data):
    loader = make(data, 1)
    batches = loader.epoch(0)
    next(batches)
    (worker,) = multiprocessing.active_children()
    os.kill(worker.pid, signal.SIGKILL)
    with (
        pytest.raises(ChildProcessError, match=r"decodes pictures died.*out of memory.*fewer workers"),
        deaths_named(),
    ):
        list(chain(batches, *map(loader.epoch, range(1, 1000))))
    assert not multiprocessing.active_children()


class Wrong(Captions):
    def image(self, index, at_least=None):
        raise KeyError("a mistake in the user's own class")


@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_mistake_in_a_users_class_is_raised_and_leaves_no_process(tmp_path, num_workers):
    data = files(tmp_path, 4)
    with pytest.raises(KeyError, match="user's own class"):
        list(make(Wrong(data.paths, data.captions), num_workers).epoch(0))
    assert not multiprocessing.active_children()


@pytest.mark.parametrize("num_workers", [None, 0, 2])
def test_a_bad_picture_leaves_its_pair_out_of_its_batch(tmp_path, num_workers):
    bad = {3, 11}
    whole = list(make(files(tmp_path)).epoch(2))
    data = files(tmp_path, bad=bad)
    rule = {"on_error": "skip", "max_skip_fraction": 0.1}
    with warnings.catch_warnings(record=True, action="always") as warned:
        loader = make(data, num_workers, **rule)
        found = list(loader.epoch(2))
    said = [str(w.message) for w in warned if "left out" in str(w.message)]
    assert len(said) == 2
    assert all("png: cannot be read" in line for line in said)
    for one, all_of_it in zip(found, whole, strict=True):
        kept = torch.tensor([i not in bad for i in all_of_it.indices.tolist()])
        assert torch.equal(one.indices, all_of_it.indices[kept])
        assert torch.equal(one.rows, all_of_it.rows[kept])
        assert torch.equal(one.pixels, all_of_it.pixels[kept])
        width = one.tokens.shape[1]
        assert torch.equal(one.tokens, all_of_it.tokens[kept][:, :width])
    assert {name.rpartition(os.sep)[2] for name in loader.skip_log.reasons} == {"3.png", "11.png"}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        list(loader.epoch(3))  # known by now, and not said again
    loader.close()


@pytest.mark.parametrize("num_workers", [None, 0, 1])
def test_more_than_the_share_ends_the_run(tmp_path, num_workers):
    data = files(tmp_path, bad={3, 11})

    def run():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            list(make(data, num_workers, on_error="skip").epoch(0))

    with pytest.raises(DataError, match=r"2 of 20 cannot be used, more than 5.0%"):
        run()
    assert not multiprocessing.active_children()


def test_a_file_that_vanishes_in_mid_epoch(tmp_path):
    loader = make(files(tmp_path), 0, on_error="skip", max_skip_fraction=0.5)
    batches = loader.epoch(0)
    next(batches)
    order = torch.cat([b.indices for b in make(files(tmp_path)).epoch(0)]).tolist()
    (tmp_path / f"{order[4]}.png").unlink()
    with pytest.warns(UserWarning, match="there is no such file"):
        assert next(batches).indices.tolist() == order[5:8]


def test_nothing_left_of_a_batch(tmp_path):
    with (
        pytest.warns(UserWarning, match="left out"),
        pytest.raises(DataError, match="none of the 1 pictures of a batch"),
    ):
        list(make(files(tmp_path, 3, bad=[1]), 0, batch_size=1, on_error="skip", max_skip_fraction=1.0).epoch(0))


def test_a_thread_works_ahead_and_not_further():
    done = []
    results = ahead(iter(range(10)), lambda i: done.append(i) or i * i, count=2)
    assert next(results) == 0
    assert max(done) <= 2
    assert list(results) == [i * i for i in range(1, 10)]


def test_an_error_of_the_thread_is_raised_in_its_turn():
    results = ahead(iter([1, 0, 2]), lambda i: 1 / i)
    assert next(results) == 1
    with pytest.raises(ZeroDivisionError):
        next(results)


def test_the_time_that_was_waited_is_counted(data):
    loader = make(data, 0)
    list(loader.epoch(0))
    assert loader.waited > 0


def test_jpegs_are_read_the_fast_way_alike_by_all_sources_and_large_ones_reduced(tmp_path):
    shapes = Shapes("train", 4)
    for i, side in enumerate((63, 64, 200, 500)):
        shapes[i][0].resize((side, side + 5)).save(tmp_path / f"{i}.jpg")
    data = Captions([tmp_path / f"{i}.jpg" for i in range(4)], shapes.captions)
    whole, kept = (InMemoryImages(data, PREPROCESS, reduced=reduced).pixels for reduced in (False, True))
    (streamed,) = StreamedImages(data, PREPROCESS, 0, reduced=True).batches([range(4)])
    assert torch.equal(streamed.pixels, kept)
    exact = torch.stack([PREPROCESS.pixels(data[i][0]) for i in range(4)])
    assert torch.equal(whole, exact)  # as Pillow does it, to the bit
    difference = (whole.int() - kept.int()).abs().flatten(1)
    assert difference[0].max() <= 2  # 64 px is four times the model's: from there on reduced by 2, to twice
    assert all(difference.any(dim=1)[1:])
    assert difference.float().mean() < 3


def test_a_set_that_makes_its_pictures_is_asked_for_them(tmp_path):
    class Grey(Captions):
        def image(self, index, at_least=None):
            return super().image(index, at_least).convert("L").convert("RGB")

    shapes = Shapes("train", 1)
    shapes[0][0].resize((30, 40)).save(tmp_path / "0.jpg")  # too small to be reduced
    data = Grey([tmp_path / "0.jpg"], shapes.captions)
    (pixels,) = InMemoryImages(data, PREPROCESS, reduced=True).pixels
    assert torch.equal(pixels[0], pixels[1])
    assert torch.equal(pixels, PREPROCESS.pixels(data[0][0]))
