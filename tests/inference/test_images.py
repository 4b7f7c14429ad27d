"""Images are read ahead of the model: in order, by any number of threads, few at a time, and no thread stays."""

import threading
import time
import warnings
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from PIL import Image

from miniclip.errors import DataError
from miniclip.inference import images
from miniclip.inference.images import ImageReader, read_pixels
from miniclip.inference.model import CLIPModel

COUNT = 23


@pytest.fixture(scope="module")
def paths(tmp_path_factory):
    folder = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    for i in range(COUNT):
        array = rng.integers(0, 256, (20 + i, 60 - i, 3), dtype=np.uint8)
        Image.fromarray(array).save(folder / f"{i:02d}.{'png' if i % 3 else 'jpg'}")
    return sorted(folder.iterdir())


@pytest.fixture
def model(toy_config) -> CLIPModel:
    return CLIPModel(toy_config).initialise().eval()


@pytest.fixture(autouse=True)
def no_thread_is_left():
    before = set(threading.enumerate())
    yield
    assert set(threading.enumerate()) <= before


def with_bad(paths, tmp_path, places):
    """The paths, with some files that are not images and some that do not exist."""
    mixed = list(paths)
    for place in places:
        mixed[place] = tmp_path / f"bad{place}.jpg"
        if place % 2:
            mixed[place].write_bytes(b"no picture")
    return mixed


@pytest.mark.parametrize("batch_size", [1, 4, 23, 64])
@pytest.mark.parametrize("num_workers", [1, 3, 40, None])
def test_any_number_of_threads_gives_identical_results(model, paths, num_workers, batch_size):
    expected = model.encode_image(paths, batch_size=batch_size, num_workers=0)
    assert torch.equal(model.encode_image(paths, batch_size=batch_size, num_workers=num_workers), expected)
    pixels = torch.stack([read_pixels(path, model.preprocess) for path in paths])
    ready = model.encode_image(model.preprocess.normalise(pixels), batch_size=batch_size)
    assert torch.equal(expected, ready)


def test_slow_images_keep_their_position(model, paths, monkeypatch):
    expected = model.encode_image(paths, num_workers=0)
    chance = np.random.default_rng(0)

    def late(item, preprocess):
        time.sleep(float(chance.random()) / 100)
        return read_pixels(item, preprocess)

    monkeypatch.setattr(images, "read_pixels", late)
    assert torch.equal(model.encode_image(paths, num_workers=8), expected)


@pytest.mark.parametrize(("num_workers", "most"), [(0, 1), (1, 2), (5, 2)])
def test_two_batches_at_most_are_in_memory(model, paths, monkeypatch, num_workers, most):
    """Counts of a thousand images that are read but not embedded, and of open files."""
    batch_size, lock = 4, threading.Lock()
    begun = embedded = opened = worst = worst_open = 0

    def counted(item, preprocess):
        nonlocal begun, opened, worst, worst_open
        with lock:
            begun, opened = begun + 1, opened + 1
            worst, worst_open = max(worst, begun - embedded), max(worst_open, opened)
        try:
            return read_pixels(item, preprocess)
        finally:
            with lock:
                opened -= 1

    forward = type(model.image).forward

    def slow(self, pixels, *options):
        nonlocal embedded
        rows = forward(self, pixels, *options)
        with lock:
            embedded += len(pixels)
        return rows

    monkeypatch.setattr(images, "read_pixels", counted)
    monkeypatch.setattr(type(model.image), "forward", slow)
    many = (paths * 50)[:1000]
    assert len(model.encode_image(many, batch_size=batch_size, num_workers=num_workers)) == 1000
    assert worst <= most * batch_size
    assert worst_open <= max(num_workers, 1)


def test_the_next_batch_is_read_while_the_model_works(model, paths, monkeypatch):
    read, waited = [threading.Event() for _ in paths], []

    def noted(item, preprocess):
        read[paths.index(item)].set()
        return read_pixels(item, preprocess)

    forward = type(model.image).forward

    def watched(self, pixels, *options):
        following = min(len(waited) * 5 + 5 + 4, COUNT - 1)
        waited.append(read[following].wait(timeout=30))  # its next batch, which is read ahead
        return forward(self, pixels, *options)

    monkeypatch.setattr(images, "read_pixels", noted)
    monkeypatch.setattr(type(model.image), "forward", watched)
    model.encode_image(paths, batch_size=5, num_workers=2)
    assert waited == [True] * 5


@pytest.mark.parametrize("num_workers", [0, 3])
def test_bad_image_is_raised_in_order_and_the_rest_is_not_read(model, paths, tmp_path, num_workers, monkeypatch):
    begun = []

    def noted(item, preprocess):
        begun.append(item)
        return read_pixels(item, preprocess)

    monkeypatch.setattr(images, "read_pixels", noted)
    mixed = with_bad(paths, tmp_path, [5, 6, 9]) * 50
    with pytest.raises(DataError, match=r"bad5\.jpg: cannot be read"):
        model.encode_image(mixed, batch_size=4, num_workers=num_workers)
    assert len(begun) <= 12
    with pytest.raises(FileNotFoundError, match=r"bad6\.jpg"):
        model.encode_image(mixed[6:], batch_size=4, num_workers=num_workers)


@pytest.mark.parametrize("num_workers", [0, 3])
@pytest.mark.parametrize("batch_size", [1, 4, 64])
def test_bad_images_are_skipped_by_name(model, paths, tmp_path, num_workers, batch_size):
    bad = [0, 5, 6, 12, 13, 14, 15, 22]  # a whole batch of 4 too
    mixed = with_bad(paths, tmp_path, bad)
    expected = model.encode_image(paths)
    with pytest.warns(UserWarning, match="8 of 23 images cannot be read, and their rows are NaN") as caught:
        rows = model.encode_image(mixed, batch_size=batch_size, num_workers=num_workers, on_error="skip")
    assert len(caught) == 1
    assert caught[0].filename == __file__
    message = str(caught[0].message)
    assert all(f"bad{place}.jpg: " in message for place in bad)
    assert message.index("bad5.jpg: cannot be read") < message.index("bad6.jpg: ")
    good = [place for place in range(COUNT) if place not in bad]
    assert rows.shape == expected.shape
    assert rows[bad].isnan().all()
    torch.testing.assert_close(rows[good], expected[good], rtol=0, atol=1e-6)


def test_a_warning_names_ten(model, tmp_path):
    with pytest.warns(UserWarning, match=r"absent9\.jpg: no such .*file; and 15 more$") as caught:
        rows = model.encode_image([tmp_path / f"absent{i}.jpg" for i in range(25)], on_error="skip")
    assert "absent10" not in str(caught[0].message)
    assert rows.shape == (25, model.config.embed_dim)
    assert rows.isnan().all()


def test_images_without_a_file_are_named_by_index(model, paths, tmp_path):
    (tmp_path / "cut.png").write_bytes(paths[1].read_bytes()[:-200])
    pictures = [Image.open(paths[0]), Image.open(tmp_path / "cut.png")]
    with pytest.warns(UserWarning, match="1 of 2 images .*: image 1: .*truncated"):
        rows = model.encode_image(pictures, on_error="skip")
    assert rows.isnan().all(dim=1).tolist() == [False, True]
    for picture in pictures:
        picture.close()


def test_no_warning_without_bad_images(model, paths):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert not model.encode_image(paths, on_error="skip").isnan().any()


@pytest.mark.parametrize("on_error", ["raise", "skip"])
def test_wrong_types_are_never_skipped(model, paths, on_error):
    with pytest.raises(TypeError, match="expected a path, a PIL image"):
        model.encode_image([paths[0], None, paths[1]], on_error=on_error)


def test_options_out_of_their_range(model, paths):
    for options in ({"num_workers": -1}, {"on_error": "ignore"}, {"batch_size": 0}):
        with pytest.raises(ValueError, match=next(iter(options))):
            model.encode_image(paths, **options)


@pytest.mark.parametrize("kind", [KeyboardInterrupt, RuntimeError])
def test_an_interruption_ends_the_threads_and_what_has_not_begun_is_dropped(model, paths, monkeypatch, kind):
    begun = []

    def noted(item, preprocess):
        begun.append(item)
        return read_pixels(item, preprocess)

    def interrupted(*_):
        raise kind("now")

    monkeypatch.setattr(images, "read_pixels", noted)
    monkeypatch.setattr(type(model.image), "forward", interrupted)
    with pytest.raises(kind):
        model.encode_image(paths * 50, batch_size=4, num_workers=2)
    count = len(begun)
    assert count <= 8
    time.sleep(0.05)
    assert len(begun) == count


class Lazy(Sequence):
    """Images of a dataset, opened on access; a slice would open them too early."""

    def __init__(self, paths):
        self.paths, self.asked = paths, []

    def __len__(self):
        return len(self.paths)

    def __getitem__(self, index):
        assert isinstance(index, int)
        self.asked.append(index)
        return Image.open(self.paths[index])


@pytest.mark.parametrize("num_workers", [0, 3])
def test_a_sequence_is_asked_once_for_each(model, paths, num_workers):
    lazy = Lazy(paths)
    rows = model.encode_image(lazy, batch_size=5, num_workers=num_workers)
    assert sorted(lazy.asked) == list(range(COUNT))
    exact = torch.stack([model.preprocess(Image.open(path)) for path in paths])
    assert torch.equal(rows, model.encode_image(exact, batch_size=5))


def test_pinned_memory_is_for_gpus_only(model, paths, monkeypatch):
    asked, empty = [], torch.empty

    def noted(*size, pin_memory=False, **options):
        asked.append(pin_memory)
        return empty(*size, **options)

    monkeypatch.setattr(torch, "empty", noted)
    for pinned in (True, False):
        (read,) = ImageReader(paths, model.preprocess, 64, pinned=pinned).batches()
        assert asked.pop() is pinned
        assert read.indices == list(range(COUNT))
        assert read.pixels.shape == (COUNT, 3, 16, 16)
