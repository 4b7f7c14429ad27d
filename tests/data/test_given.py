"""Datasets that a user gives: torch's Subset and ConcatDataset, and captions that are not lists of strings."""

import re

import pytest
import torch
from PIL import Image
from torch.utils.data import ChainDataset, ConcatDataset, Subset, random_split

import miniclip
from miniclip.config import preset
from miniclip.data import CachedDataset, CacheOptions, Captions, Shapes, build_cache, contact_sheet, inspect
from miniclip.data.cache.reading import require_pixels
from miniclip.data.given import as_dataset
from miniclip.data.loader import ImageCaptionLoader
from miniclip.data.options import LoaderOptions
from miniclip.data.preprocess import Preprocess
from miniclip.data.skipping import SkipLog
from miniclip.data.subset import readable_subset

SMALL = Preprocess(preset("bert_vit_tiny").replace_image(image_size=32))


class Images:
    """A user's own dataset."""

    def __init__(self, captions, size=None):
        self.captions = captions
        self.size = len(captions) if size is None else size

    def __len__(self):
        return self.size

    def __getitem__(self, index):
        return Image.new("RGB", (8, 8), (index, 0, 0)), self.captions[index]


@pytest.fixture(scope="module")
def model():
    tokenizer = miniclip.Tokenizer.train(["image 0 1 2 3 4 5"] * 9, 520)
    return miniclip.load("bert_vit_tiny", pretrained=False, tokenizer=tokenizer)


@pytest.fixture
def fit(model, tmp_path):
    config = miniclip.TrainConfig(epochs=1, batch_size=2, precision="float32")

    def fit(train_data, val_data=None):
        trainer = miniclip.Trainer(
            model, train_data, val_data, config=config, run_dir=tmp_path / "run", callbacks=[], device="cpu"
        )
        trainer.fit()
        return trainer

    return fit


@pytest.fixture(scope="module")
def finished(model, tmp_path_factory):
    """Directory of a finished run on two images, which tests only read."""
    run = tmp_path_factory.mktemp("finished") / "run"
    config = miniclip.TrainConfig(epochs=1, batch_size=2, precision="float32")
    miniclip.Trainer(model, named(2), config=config, run_dir=run, callbacks=[], device="cpu").fit()
    return run


def named(count: int, first: int = 0) -> Images:
    return Images([[f"image {first + k}"] for k in range(count)])


class TestTorchDatasets:
    def test_trainer_takes_parts_of_random_split(self, fit):
        data = named(8)
        train, val = random_split(data, [6, 2], generator=torch.Generator().manual_seed(0))
        trainer = fit(train, val)
        assert trainer.train_data.captions == [[f"image {index}"] for index in train.indices]
        assert len(trainer.val_data) == 2
        assert len(trainer.history.steps) == 3
        resumed = miniclip.Trainer.resume(trainer.run_dir, train, val, callbacks=[], device="cpu")
        assert resumed.step == 3

    @pytest.mark.parametrize("indices", [[4, 0, -1], torch.tensor([4, 0, 5])], ids=["list", "tensor"])
    def test_subset_of_a_subset(self, indices):
        data = as_dataset(Subset(Subset(named(8), range(1, 7)), indices))
        assert data.captions == [["image 5"], ["image 1"], ["image 6"]]
        assert [data[k][0].getpixel((0, 0))[0] for k in range(3)] == [5, 1, 6]
        assert [data[k][1] for k in range(3)] == data.captions

    def test_concatenation(self):
        data = as_dataset(ConcatDataset([named(2), Subset(named(9), [7]), named(3, first=10)]))
        assert data.captions == [["image 0"], ["image 1"], ["image 7"], ["image 10"], ["image 11"], ["image 12"]]
        assert [data[k][1] for k in range(-6, 0)] == data.captions
        assert data.name(2) == "image 7"
        with pytest.raises(IndexError):
            data[6]

    @pytest.mark.parametrize("index", [4, -5])
    def test_subset_with_an_index_out_of_range_raises(self, fit, index):
        with pytest.raises(IndexError, match=f"index {index} is out of range for 4 images"):
            fit(Subset(named(4), [0, index]))

    def test_every_entry_point_takes_a_subset(self, model, tmp_path):
        data = Subset(named(4), [3, 1])
        assert set(miniclip.evaluation.retrieval(model, data)) == {"image_to_text", "text_to_image"}
        assert inspect(data).images == 2
        contact_sheet(data, tmp_path / "sheet.png")
        cached = build_cache(data, tmp_path / "cache", SMALL)
        assert cached.captions == [["image 3"], ["image 1"]]
        loader = ImageCaptionLoader(data, model.tokenizer, model.preprocess, LoaderOptions(batch_size=2))
        assert len(next(loader.epoch(0)).pixels) == 2

    def test_part_of_a_cache_of_other_pixels_raises(self, model, tmp_path):
        build_cache(named(4), tmp_path, SMALL)
        for part in (Subset(CachedDataset(tmp_path), [0]), ConcatDataset([CachedDataset(tmp_path)])):
            with pytest.raises(ValueError, match="built for another model"):
                require_pixels(as_dataset(part), model)
            with pytest.raises(ValueError, match="built for another model"):
                ImageCaptionLoader(part, model.tokenizer, model.preprocess, LoaderOptions(batch_size=1))

    @pytest.mark.parametrize("data", [[("image", ["a"])], ChainDataset([]), {"captions": []}, "photos", Shapes])
    def test_other_objects_raise(self, data, fit):
        with pytest.raises(TypeError, match=r"expected an object with len\(data\)|captions is a"):
            fit(data)


NOT_LISTS = {
    "string": (["image one", "image two"], TypeError, "image 0 (Images.captions[0]): the captions are the string"),
    "one string": ([["a"], "b"], TypeError, "image 1 (Images.captions[1]): the captions are the string 'b'"),
    "bytes": ([["a"], b"b"], TypeError, "image 1 (Images.captions[1]): the captions are a bytes"),
    "dictionary": ([["a"], {"en": "b"}], TypeError, "the captions are a dict"),
    "none": ([["a"], None], TypeError, "the captions are a NoneType"),
    "empty": ([["a"], []], ValueError, "image 1 (Images.captions[1]) has no caption"),
    "numbers": ([["a"], [7]], TypeError, "the caption '7' is a int"),
    "nested": ([["a"], [["b"]]], TypeError, "is a list"),
    "string of all": ("ab", TypeError, "Images.captions is a str"),
    "dictionary of all": ({0: ["a"], 1: ["b"]}, TypeError, "Images.captions is a dict"),
}


@pytest.mark.parametrize(("captions", "error", "message"), NOT_LISTS.values(), ids=NOT_LISTS)
def test_captions_that_are_not_lists_of_strings_raise(captions, error, message, model, fit, finished, tmp_path):
    data = Images(captions)
    calls = {
        "train": lambda: fit(data),
        "validate": lambda: fit(named(2), data),
        "resume": lambda: miniclip.Trainer.resume(finished, data, device="cpu"),
        "retrieval": lambda: miniclip.evaluation.retrieval(model, data),
        "subset": lambda: as_dataset(Subset(data, [0])),
        "inspect": lambda: inspect(data),
        "sheet": lambda: contact_sheet(data, tmp_path / "sheet.png"),
        "cache": lambda: build_cache(data, tmp_path / "cache", SMALL),
        "loader": lambda: ImageCaptionLoader(data, model.tokenizer, model.preprocess, LoaderOptions(batch_size=2)),
    }
    for call in calls.values():
        with pytest.raises(error, match=re.escape(message)):
            call()


def test_number_of_captions_must_be_that_of_the_images():
    with pytest.raises(ValueError, match=r"Images has 3 images, and Images\.captions has 2 lists of captions"):
        as_dataset(Images([["a"], ["b"]], size=3))


def test_series_of_captions_raises():
    pandas = pytest.importorskip("pandas")
    with pytest.raises(TypeError, match="captions is a Series"):
        as_dataset(Images(pandas.Series([["a"], ["b"]], index=[7, 8])))


def test_arguments_of_captions():
    with pytest.raises(TypeError, match="one path; give a list"):
        Captions("ab", [["a"], ["b"]])
    with pytest.raises(TypeError, match="give a list with the list of captions"):
        Captions(["a.jpg", "b.jpg"], "ab")
    with pytest.raises(ValueError, match="splits is 'train'"):
        Captions(["a.jpg"] * 5, [["a"]] * 5, splits="train")
    with pytest.raises(TypeError, match=r"a\.jpg: the caption '7' is a int"):
        Captions(["a.jpg"], [[7]])


class TestEqualNames:
    """Images of two datasets may have the same names; each is counted."""

    @pytest.fixture
    def data(self, tmp_path):
        class Named(Captions):
            def name(self, index: int) -> str:
                return "frame"

        paths = [tmp_path / f"{number}.png" for number in range(6)]
        for number, path in enumerate(paths):
            Image.new("RGB", (8, 8), (number // 2, 0, 0)).save(path)
        for path in paths[:3]:
            path.write_bytes(b"")
        return Named(paths, [["a"]] * 6, splits=["train", "val"] * 3)

    def test_skipped_images_are_counted(self, data, model, tmp_path):
        skip_log = SkipLog("skip", 1.0)
        with pytest.warns(UserWarning, match="frame"):
            assert len(readable_subset(data, skip_log)) == 3
        assert list(skip_log.reasons) == [f"frame (image {index})" for index in range(3)]
        options = LoaderOptions(batch_size=6, on_error="skip", max_skip_fraction=0.4, num_workers=0)
        loader = ImageCaptionLoader(data, model.tokenizer, model.preprocess, options)
        with pytest.warns(UserWarning, match="frame"), pytest.raises(miniclip.DataError, match="3 of 6"):
            next(loader.epoch(0))
        cache_options = CacheOptions(on_error="skip", max_skip_fraction=0.4, num_workers=0)
        with pytest.warns(UserWarning, match="frame"), pytest.raises(miniclip.DataError, match="3 of 6"):
            build_cache(data, tmp_path / "cache", SMALL, options=cache_options)

    def test_inspection_counts_each(self, data):
        report = inspect(data)
        assert len(report.unreadable) == 3
        assert report.split_leaks == [["frame (image 4) (train)", "frame (image 5) (val)"]]
