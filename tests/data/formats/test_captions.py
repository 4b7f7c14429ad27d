"""Captions from lists of paths and captions."""

import pickle
from pathlib import Path

import pytest
from PIL import Image

from miniclip.data import Captions, ImageCaptionDataset

NAMES = ["b.jpg", "a.jpg", "c.jpg"]


def write_images(folder: Path, names: list[str], size: tuple[int, int] = (4, 3)) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        Image.new("RGB", size, (200, 30, 30)).save(folder / name)


def test_indexing(tmp_path):
    write_images(tmp_path, NAMES)
    data = Captions([tmp_path / name for name in NAMES], [["one"], ["two"], ["three", "four"]])
    pairs: ImageCaptionDataset = data
    assert len(pairs) == 3
    assert data[-1][1] == data[2][1] == ["three", "four"]
    assert [captions for _, captions in data] == data.captions
    for index in (3, -4):
        with pytest.raises(IndexError, match="3 images"):
            data[index]
    assert repr(data) == "Captions(3 images, 4 captions)"


def test_can_be_pickled(tmp_path):
    write_images(tmp_path, ["a.jpg"])
    data = pickle.loads(pickle.dumps(Captions([tmp_path / "a.jpg"], [["one"]])))
    assert data[0][1] == ["one"]


def test_returned_captions_are_a_copy(tmp_path):
    write_images(tmp_path, ["a.jpg"])
    data = Captions([tmp_path / "a.jpg"], [["one"]])
    data[0][1].append("two")
    assert data.captions == [["one"]]


def test_invalid_arguments_raise():
    with pytest.raises(ValueError, match="1 paths but 2"):
        Captions([Path("a.jpg")], [["one"], ["two"]])
    with pytest.raises(TypeError, match=r"\['one'\]"):
        Captions([Path("a.jpg")], ["one"])
    with pytest.raises(ValueError, match=r"a\.jpg has no caption"):
        Captions([Path("a.jpg")], [[]])
