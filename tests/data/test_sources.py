"""Sources of pixels agree, read ahead across epochs, leave no process behind and never hang."""

import multiprocessing
import os
import signal
import subprocess
import sys
import warnings
from itertools import chain

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from miniclip.config import preset
from miniclip.data import CacheOptions, Captions, Shapes, build_cache
from miniclip.data.loader import ImageCaptionLoader
from miniclip.data.options import LoaderOptions
from miniclip.data.preprocess import Preprocess
from miniclip.data.sources.cached import CachedImages, prefetch
from miniclip.data.sources.captions import CaptionTable, caption_keys
from miniclip.data.sources.memory import InMemoryImages
from miniclip.data.sources.workers import StreamedImages, worker_deaths_explained
from miniclip.errors import DataError
from miniclip.runtime import distributed
from miniclip.tokenizer import Tokenizer

PREPROCESS = Preprocess(preset("bert_vit_tiny").replace_image(image_size=16))
COUNT = 23
TOKENIZER = Tokenizer.train(["a caption of one image or of another"], 540)


@pytest.fixture(scope="module")
def data():
    return Shapes("train", COUNT, image_size=16)


@pytest.fixture(scope="module")
def sources(data, tmp_path_factory):
    """Dataset and num_workers of the three sources: memory, streamed in this process, cached."""
    out = tmp_path_factory.mktemp("caches") / "out"
    cached = build_cache(data, out, PREPROCESS, options=CacheOptions(num_workers=0))
    return [data, data, cached], [None, 0, None]


def make(data, num_workers=None, **options):
    options = LoaderOptions(**{"batch_size": 4, **options, "num_workers": num_workers})
    return ImageCaptionLoader(data, TOKENIZER, PREPROCESS, options)


def equal(batch, other):
    return all(torch.equal(a, b) for a, b in zip(batch, other, strict=True))


def files(folder, count=20, bad=()):
    data = Shapes("train", count, image_size=16)
    for i in range(count):
        data[i][0].save(folder / f"{i}.png")
    for i in bad:
        (folder / f"{i}.png").write_bytes(b"not an image")
    return Captions([folder / f"{i}.png" for i in range(count)], data.captions)


def test_each_dataset_has_its_source(sources):
    kinds = [type(make(data, num_workers).source) for data, num_workers in zip(*sources, strict=True)]
    assert kinds == [InMemoryImages, StreamedImages, CachedImages]


@given(
    batch=st.integers(1, 30),
    seed=st.integers(0, 9),
    epoch=st.integers(0, 9),
    ranks=st.integers(1, 4),
    data=st.data(),
)
def test_ranks_and_sources_give_the_same_epoch(sources, batch, seed, epoch, ranks, data):
    """For every source, the rows of all ranks together are the epoch of one process, each image once."""
    ranks = min(ranks, batch)
    whole = list(make(sources[0][0], batch_size=batch, seed=seed).epoch(epoch))
    start = data.draw(st.integers(0, len(whole)))
    source = data.draw(st.sampled_from(range(3)))
    parts = [[] for _ in whole]
    for rank in range(ranks):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(distributed, "world_size", lambda: ranks)
            patch.setattr(distributed, "rank", lambda rank=rank: rank)
            loader = make(sources[0][source], sources[1][source], batch_size=batch, seed=seed)
            for number, part in enumerate(loader.epoch(epoch, start=start), start):
                parts[number].append(part)
            loader.close()
    for number, expected in enumerate(whole[start:], start):
        assert torch.equal(torch.cat([part.indices for part in parts[number]]), expected.indices)
        assert torch.equal(torch.cat([part.rows for part in parts[number]]), expected.rows)
        assert torch.equal(torch.cat([part.pixels for part in parts[number]]), expected.pixels)
    indices = torch.cat([batch.indices for batch in whole]).tolist()
    assert len(set(indices)) == len(indices) == COUNT // min(batch, COUNT) * min(batch, COUNT)


def test_consecutive_epochs_equal_single_ones(sources):
    for data, num_workers in zip(*sources, strict=True):
        loader = make(data, num_workers)
        for epoch in (0, 1, 2, 1, 7):  # the next, an earlier and a later one
            fresh = make(data, num_workers)
            assert all(equal(a, b) for a, b in zip(loader.epoch(epoch), fresh.epoch(epoch), strict=True))
            fresh.close()
        loader.close()


def test_interleaved_epochs_are_not_mixed_up(data):
    loader = make(data, 0)
    for first, second in zip(loader.epoch(0), loader.epoch(1), strict=True):
        assert not torch.equal(first.indices, second.indices)
        for batch in (first, second):
            assert torch.equal(batch.pixels[0], PREPROCESS.pixels(data[int(batch.indices[0])][0]))


def test_workers_live_across_epochs_and_end_at_close(data):
    loader = make(data, 2)
    alive = []
    for epoch in range(3):
        for _ in loader.epoch(epoch):
            alive.append({child.pid for child in multiprocessing.active_children()})
    assert len(alive[0]) == 2
    assert all(pids == alive[0] for pids in alive)
    loader.close()
    assert not multiprocessing.active_children()
    assert next(loader.epoch(1)).pixels.shape == (4, 3, 16, 16)  # usable after close
    loader.close()


def test_a_killed_worker_is_an_error(data):
    loader = make(data, 1)
    batches = loader.epoch(0)
    next(batches)
    (worker,) = multiprocessing.active_children()
    os.kill(worker.pid, signal.SIGKILL)
    with (
        pytest.raises(ChildProcessError, match=r"decodes images was killed.*out of memory.*fewer workers"),
        worker_deaths_explained(),
    ):
        list(chain(batches, *map(loader.epoch, range(1, 1000))))
    assert not multiprocessing.active_children()


def test_a_thread_that_lost_its_worker_is_explained_too():
    """With a GPU, a thread reads from the workers and pins the batches."""
    with pytest.raises(ChildProcessError, match="decodes images was killed"), worker_deaths_explained():
        raise RuntimeError("Pin memory thread exited unexpectedly")


class Faulty(Captions):
    def image(self, index, at_least=None):
        raise KeyError("a mistake in the user's own class")


@pytest.mark.parametrize("num_workers", [0, 1])
def test_an_error_in_a_users_class_is_raised_and_leaves_no_process(tmp_path, num_workers):
    data = files(tmp_path, 4)
    with pytest.raises(KeyError, match="user's own class"):
        list(make(Faulty(data.paths, data.captions), num_workers).epoch(0))
    assert not multiprocessing.active_children()


@pytest.mark.parametrize("num_workers", [None, 0, 2])
def test_a_skipped_image_shortens_its_batch(tmp_path, num_workers):
    bad = {3, 11}
    whole = list(make(files(tmp_path)).epoch(2))
    data = files(tmp_path, bad=bad)
    with warnings.catch_warnings(record=True, action="always") as warned:
        loader = make(data, num_workers, on_error="skip", max_skip_fraction=0.1)
        batches = list(loader.epoch(2))
    messages = [str(w.message) for w in warned if "skipped" in str(w.message)]
    assert len(messages) == 2
    assert all("png: cannot be read" in line for line in messages)
    for batch, complete in zip(batches, whole, strict=True):
        readable = torch.tensor([i not in bad for i in complete.indices.tolist()])
        assert torch.equal(batch.indices, complete.indices[readable])
        assert torch.equal(batch.rows, complete.rows[readable])
        assert torch.equal(batch.pixels, complete.pixels[readable])
        assert torch.equal(batch.tokens, complete.tokens[readable][:, : batch.tokens.shape[1]])
    assert {name.rpartition(os.sep)[2] for name in loader.skip_log.reasons} == {"3.png", "11.png"}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        list(loader.epoch(3))  # each image is reported once
    loader.close()


@pytest.mark.parametrize("num_workers", [None, 0, 1])
def test_more_than_max_skip_fraction_is_an_error(tmp_path, num_workers):
    data = files(tmp_path, bad={3, 11})

    def run():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            list(make(data, num_workers, on_error="skip").epoch(0))

    with pytest.raises(DataError, match=r"2 of 20 cannot be used, more than 5.0%"):
        run()
    assert not multiprocessing.active_children()


def test_a_file_deleted_during_an_epoch_is_skipped(tmp_path):
    loader = make(files(tmp_path), 0, on_error="skip", max_skip_fraction=0.5)
    batches = loader.epoch(0)
    next(batches)
    order = torch.cat([b.indices for b in make(files(tmp_path)).epoch(0)]).tolist()
    (tmp_path / f"{order[4]}.png").unlink()
    with pytest.warns(UserWarning, match="no such file"):
        assert next(batches).indices.tolist() == order[5:8]


def test_a_batch_without_readable_images_is_an_error(tmp_path):
    with (
        pytest.warns(UserWarning, match="skipped"),
        pytest.raises(DataError, match="none of the 1 images of a batch"),
    ):
        list(make(files(tmp_path, 3, bad=[1]), 0, batch_size=1, on_error="skip", max_skip_fraction=1.0).epoch(0))


def test_prefetch_reads_ahead_up_to_its_count():
    done = []
    results = prefetch(iter(range(10)), lambda i: done.append(i) or i * i, count=2)
    assert next(results) == 0
    assert max(done) <= 2
    assert list(results) == [i * i for i in range(1, 10)]


def test_prefetch_raises_errors_in_order():
    results = prefetch(iter([1, 0, 2]), lambda i: 1 / i)
    assert next(results) == 1
    with pytest.raises(ZeroDivisionError):
        next(results)


def test_waiting_is_timed(data):
    loader = make(data, 0)
    list(loader.epoch(0))
    assert loader.wait_seconds > 0


def test_all_sources_reduce_jpegs_alike(tmp_path):
    shapes = Shapes("train", 4)
    for i, side in enumerate((63, 64, 200, 500)):
        shapes[i][0].resize((side, side + 5)).save(tmp_path / f"{i}.jpg")
    data = Captions([tmp_path / f"{i}.jpg" for i in range(4)], shapes.captions)
    whole, in_memory = (InMemoryImages(data, PREPROCESS, reduced=reduced).pixels for reduced in (False, True))
    (streamed,) = StreamedImages(data, PREPROCESS, 0, reduced=True).batches([range(4)])
    assert torch.equal(streamed.pixels, in_memory)
    exact = torch.stack([PREPROCESS.pixels(data[i][0]) for i in range(4)])
    assert torch.equal(whole, exact)  # bit for bit
    difference = (whole.int() - in_memory.int()).abs().flatten(1)
    assert difference[0].max() <= 2  # from 64 px on, four times the model's, reduced by 2
    assert all(difference.any(dim=1)[1:])
    assert difference.float().mean() < 3


def test_an_overridden_image_method_is_used(tmp_path):
    class Grey(Captions):
        def image(self, index, at_least=None):
            return super().image(index, at_least).convert("L").convert("RGB")

    shapes = Shapes("train", 1)
    shapes[0][0].resize((30, 40)).save(tmp_path / "0.jpg")  # too small to be reduced
    data = Grey([tmp_path / "0.jpg"], shapes.captions)
    (pixels,) = InMemoryImages(data, PREPROCESS, reduced=True).pixels
    assert torch.equal(pixels[0], pixels[1])
    assert torch.equal(pixels, PREPROCESS.pixels(data[0][0]))


KILLED = """
import os, signal, threading
from miniclip.config import preset
from miniclip.data import Shapes
from miniclip.data.preprocess import Preprocess
from miniclip.data.sources.workers import StreamedImages

class Stuck(Shapes):
    def __getitem__(self, index):
        if index > 1:
            threading.Event().wait(60)  # as on a network disk that hangs
        return super().__getitem__(index)

if __name__ == "__main__":
    preprocess = Preprocess(preset("bert_vit_tiny").replace_image(image_size=16))
    batches = StreamedImages(Stuck("train", 9, image_size=16), preprocess, 2).batches([[i] for i in range(9)])
    next(batches)
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_workers_end_when_the_trainer_is_killed(tmp_path):
    script = tmp_path / "trainer.py"
    script.write_text(KILLED)
    # The workers hold the pipe of the trainer's output open, so it ends when the last of them has ended.
    trainer = subprocess.run([sys.executable, str(script)], capture_output=True, timeout=50)
    assert trainer.returncode == -signal.SIGKILL, trainer.stderr


class WordLengths:
    """Tokenizer of another project: the lengths of the words, then zeros, without an end token."""

    vocab_size = 600

    def __init__(self, end_id):
        self.end_id = end_id

    def __call__(self, texts, context_length=77, pad=False):
        rows = [[len(word) for word in text.split()] for text in texts]
        return torch.tensor([row + [0] * (max(map(len, rows)) - len(row)) for row in rows])


@pytest.mark.parametrize("end_id", [None, 599])
def test_captions_without_an_end_token_are_whole(end_id):
    data, tokenizer = Captions(["a.png", "b.png"], [["one red dog"], ["one of five captions"]]), WordLengths(end_id)
    table = CaptionTable(data, tokenizer, LoaderOptions(2, context_length=16))
    _, tokens = table.pair(torch.empty(0), torch.tensor([0, 1]), torch.zeros(2, dtype=torch.int64))
    assert tokens.tolist() == [[3, 3, 3, 0], [3, 2, 4, 8]]
    assert len(caption_keys(tokens, tokenizer).unique()) == 2
