"""Folders of images with text files beside them."""

import warnings

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from miniclip.data import Captions, open_data
from miniclip.errors import DataError


def write_image(root, name, text=None):
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (4, 3)).save(path)
    if text is not None:
        path.with_suffix(".txt").write_text(text, encoding="utf-8")


def names(data, root):
    return [path.relative_to(root).as_posix() for path in data.paths]


def test_reads_nested_images_with_one_caption_a_line(tmp_path):
    write_image(tmp_path, "b.PNG", "one\n\n two \n")
    write_image(tmp_path, "deep/er/a b.jpg", "three")
    (tmp_path / "README.txt").write_text("not a caption")
    (tmp_path / ".hidden").mkdir()
    write_image(tmp_path, ".hidden/c.jpg", "no")
    write_image(tmp_path, "._b.jpg")
    data = Captions.from_folder(tmp_path)
    assert names(data, tmp_path) == ["b.PNG", "deep/er/a b.jpg"]
    assert data.captions == [["one", "two"], ["three"]]
    assert data[1][0].size == (4, 3)
    assert open_data(tmp_path, "all").captions == data.captions


def test_links_to_folders_are_followed_once(tmp_path):
    write_image(tmp_path / "elsewhere", "a.jpg", "one")
    (tmp_path / "dataset").mkdir()
    (tmp_path / "dataset" / "link").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "back").symlink_to(tmp_path / "dataset")
    assert names(Captions.from_folder(tmp_path / "dataset"), tmp_path / "dataset") == ["link/a.jpg"]


def test_text_file_may_keep_the_image_suffix(tmp_path):
    write_image(tmp_path, "a.jpg")
    (tmp_path / "a.jpg.txt").write_text("one")
    assert Captions.from_folder(tmp_path).captions == [["one"]]


@settings(max_examples=25)
@given(
    captions=st.lists(
        st.text(st.characters(codec="utf-8", categories=["L", "N", "P", "S", "Zs"])).map(str.strip).filter(bool),
        min_size=1,
    )
)
def test_roundtrip(tmp_path_factory, captions):
    root = tmp_path_factory.mktemp("any")
    write_image(root, "a.jpg", "\n".join(captions))
    assert Captions.from_folder(root).captions == [captions]


def test_folders_named_after_splits_are_the_split(tmp_path):
    for name in ("train/a.jpg", "train/x/b.jpg", "validation/a.jpg", "test/a.jpg"):
        write_image(tmp_path, name, name)
    assert names(Captions.from_folder(tmp_path, split="train"), tmp_path) == ["train/a.jpg", "train/x/b.jpg"]
    assert names(open_data(tmp_path, "val"), tmp_path) == ["validation/a.jpg"]
    write_image(tmp_path, "other/a.jpg", "one")  # not all folders are splits: the names do not count
    assert len(Captions.from_folder(tmp_path, split="val")) == 1
    assert "drawn" in Captions.from_folder(tmp_path, split="val").about


def test_image_without_text_raises_or_is_skipped(tmp_path):
    for name in "abcd":
        write_image(tmp_path, f"{name}.jpg", name)
    write_image(tmp_path, "e.jpg")
    write_image(tmp_path, "f.jpg", " \n")
    with pytest.raises(DataError, match=r"e\.jpg: has no e\.txt beside it"):
        Captions.from_folder(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        data = Captions.from_folder(tmp_path, on_error="skip", max_skip_fraction=0.4)
    assert names(data, tmp_path) == ["a.jpg", "b.jpg", "c.jpg", "d.jpg"]
    assert len(data.skip_log) == 2


def test_empty_and_missing_folders_raise(tmp_path):
    with pytest.raises(DataError, match="holds no images"):
        Captions.from_folder(tmp_path)
    write_image(tmp_path, "a.jpg")
    with pytest.raises(DataError, match=r"1 images and no text files.*dog\.txt"):
        Captions.from_folder(tmp_path)
    with pytest.raises(FileNotFoundError, match="does not exist"):
        Captions.from_folder(tmp_path / "no")
    with pytest.raises(FileNotFoundError, match="a file"):
        Captions.from_folder(tmp_path / "a.jpg")
