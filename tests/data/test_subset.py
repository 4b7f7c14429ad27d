"""Subset of a dataset without the images that cannot be read."""

import pytest
from PIL import Image

from miniclip import DataError
from miniclip.data import Captions
from miniclip.data.skipping import SkipLog
from miniclip.data.subset import readable_subset


@pytest.fixture
def data(tmp_path):
    paths = [tmp_path / f"{number}.png" for number in range(6)]
    for number, path in enumerate(paths):
        Image.new("RGB", (4, 4), (40 * number, 0, 0)).save(path)
    return Captions(paths, [[f"image {number}"] for number in range(6)])


def test_returns_the_dataset_if_all_images_are_readable(data):
    assert readable_subset(data, SkipLog("skip")) is data


def test_remaining_images_keep_captions_and_names(data):
    data.paths[1].write_bytes(b"")
    data.paths[4].unlink()
    skip_log = SkipLog("skip", max_skip_fraction=0.5)
    with pytest.warns(UserWarning, match=r"(1|4)\.png: cannot be read"):
        subset = readable_subset(data, skip_log)
    assert list(skip_log.reasons) == [str(data.paths[1]), str(data.paths[4])]
    assert len(subset) == 4
    for position, number in enumerate([0, 2, 3, 5]):
        image, captions = subset[position]
        assert image.getpixel((0, 0)) == (40 * number, 0, 0)
        assert captions == subset.captions[position] == [f"image {number}"]
        assert subset.name(position) == str(data.paths[number])
    with pytest.raises(IndexError):
        subset[4]


def test_raises_on_error_or_above_the_limit(data):
    data.paths[1].write_bytes(b"")
    with pytest.raises(DataError, match=r"1\.png: cannot be read as an image: the file is empty"):
        readable_subset(data, SkipLog("raise"))
    with pytest.warns(UserWarning, match="skipped"), pytest.raises(DataError, match="1 of 6 cannot be used"):
        readable_subset(data, SkipLog("skip", max_skip_fraction=0.1))


def test_trainer_evaluates_readable_images(data, tmp_path):
    import miniclip

    tokenizer = miniclip.Tokenizer.train(["image 0 1 2 3 4 5"] * 9, 520)
    model = miniclip.load("bert_vit_tiny", pretrained=False, tokenizer=tokenizer)
    (tmp_path / "broken").mkdir()
    broken = Captions([*data.paths, tmp_path / "broken"], [*data.captions, ["a folder"]])
    config = miniclip.TrainConfig(epochs=1, batch_size=3, precision="float32", on_error="skip", max_skip_fraction=0.2)
    with pytest.warns(UserWarning, match=r"broken: cannot be read as an image.* \(skipped\)"):
        trainer = miniclip.Trainer(
            model, data, broken, config=config, run_dir=tmp_path / "run", callbacks=[], device="cpu"
        )
    assert len(trainer.fit().evaluations) == 1
    assert len(trainer.val_data) == 6
