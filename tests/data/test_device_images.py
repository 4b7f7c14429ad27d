"""Images kept on a device: the batches of the source behind them, each image read once."""

import warnings
from itertools import chain

import pytest
import torch

from miniclip.data.loader import ImageCaptionLoader
from miniclip.data.options import LoaderOptions
from miniclip.data.sources import selection
from miniclip.data.sources.device import DeviceImages, fits
from miniclip.errors import DataError
from tests.data.test_sources import COUNT, PREPROCESS, TOKENIZER, data, equal, sources  # noqa: F401 - fixtures

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]
EPOCHS = 4


@pytest.fixture(autouse=True)
def _any_device_keeps_images(monkeypatch):
    monkeypatch.setattr(selection, "fits", lambda *_: True)


def loader(source, workers, device=None, **options):
    options = LoaderOptions(4, num_workers=workers, device=device and torch.device(device), **options)
    return ImageCaptionLoader(source, TOKENIZER, PREPROCESS, options)


def batches(made, start=0):
    try:
        epochs = [made.epoch(epoch, start if epoch == 0 else 0) for epoch in range(EPOCHS)]
        return [batch._replace(pixels=batch.pixels.cpu()) for batch in chain(*epochs)]
    finally:
        made.close()


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("kind", [0, 1, 2], ids=["memory", "streamed", "cached"])
def test_batches_are_those_of_the_source(sources, kind, device):  # noqa: F811
    source, workers = sources[0][kind], sources[1][kind]
    kept = loader(source, workers, device)
    assert kept.source.pixels.device.type == device
    for start in (0, 2):  # the second stream finds the images of the first
        for batch, other in zip(batches(kept, start), batches(loader(source, workers), start), strict=True):
            assert equal(batch, other)


def test_each_image_is_read_once(data):  # noqa: F811
    read = []

    class Counted(type(data)):
        def __getitem__(self, index):
            read.append(index)
            return super().__getitem__(index)

    batches(loader(Counted("train", COUNT, image_size=16), 0, "cpu"))
    assert sorted(read) == list(range(COUNT)), "the last batch of an epoch is dropped, so later epochs read it"


def test_images_that_cannot_be_read_are_left_out_each_time(data):  # noqa: F811
    class Broken(type(data)):
        def __getitem__(self, index):
            if index in {3, 17}:
                raise DataError("not an image")
            return super().__getitem__(index)

    broken, options = Broken("train", COUNT, image_size=16), {"on_error": "skip", "max_skip_fraction": 0.5}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        kept, plain = (batches(loader(broken, 0, device, **options)) for device in ("cpu", None))
    assert all(map(equal, kept, plain))
    assert {3, 17}.isdisjoint(torch.cat([batch.indices for batch in kept]).tolist())


def test_an_end_of_the_indices_is_an_end_of_the_batches(sources):  # noqa: F811
    source = loader(sources[0][1], 0).source
    kept = DeviceImages(source, COUNT, PREPROCESS, torch.device("cpu"))
    lists = [[1, 2], [2, 1], [5]]
    for _ in range(2):
        actual = [images.pixels for images in kept.batches(iter(lists))]
        assert all(map(torch.equal, actual, [images.pixels for images in source.batches(iter(lists))]))
        assert len(actual) == len(lists)
    assert list(kept.batches(iter([]))) == []


def test_a_cpu_keeps_none_and_a_gpu_up_to_an_eighth_of_its_free_memory(monkeypatch):
    assert not fits(1, PREPROCESS, torch.device("cpu"))
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (8 * 10 * 3 * 16**2, 1 << 40))
    assert fits(10, PREPROCESS, torch.device("cuda"))
    assert not fits(11, PREPROCESS, torch.device("cuda"))
