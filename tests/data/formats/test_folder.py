"""A folder of pictures with text files beside them."""

import warnings

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from miniclip.data import Captions, open_data
from miniclip.errors import DataError


def put(root, name, text=None):
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (4, 3)).save(path)
    if text is not None:
        path.with_suffix(".txt").write_text(text, encoding="utf-8")


def names(data, root):
    return [path.relative_to(root).as_posix() for path in data.paths]


def test_pictures_below_with_a_caption_a_line(tmp_path):
    put(tmp_path, "b.PNG", "one\n\n two \n")
    put(tmp_path, "deep/er/a b.jpg", "three")
    (tmp_path / "README.txt").write_text("nothing of a picture")
    (tmp_path / ".hidden").mkdir()
    put(tmp_path, ".hidden/c.jpg", "no")
    put(tmp_path, "._b.jpg")
    data = Captions.from_folder(tmp_path)
    assert names(data, tmp_path) == ["b.PNG", "deep/er/a b.jpg"]
    assert data.captions == [["one", "two"], ["three"]]
    assert data[1][0].size == (4, 3)
    assert open_data(tmp_path, "all").captions == data.captions


def test_links_to_folders_are_followed_once(tmp_path):
    put(tmp_path / "elsewhere", "a.jpg", "one")
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "link").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "back").symlink_to(tmp_path / "set")
    assert names(Captions.from_folder(tmp_path / "set"), tmp_path / "set") == ["link/a.jpg"]


def test_a_text_file_may_keep_the_pictures_ending(tmp_path):
    put(tmp_path, "a.jpg")
    (tmp_path / "a.jpg.txt").write_text("one")
    assert Captions.from_folder(tmp_path).captions == [["one"]]


@settings(max_examples=25)
@given(
    captions=st.lists(
        st.text(st.characters(codec="utf-8", categories=["L", "N", "P", "S", "Zs"])).map(str.strip).filter(bool),
        min_size=1,
    )
)
def test_what_is_written_comes_back(tmp_path_factory, captions):
    root = tmp_path_factory.mktemp("any")
    put(root, "a.jpg", "\n".join(captions))
    assert Captions.from_folder(root).captions == [captions]


def test_folders_called_by_splits_are_the_split(tmp_path):
    for name in ("train/a.jpg", "train/x/b.jpg", "validation/a.jpg", "test/a.jpg"):
        put(tmp_path, name, name)
    assert names(Captions.from_folder(tmp_path, split="train"), tmp_path) == ["train/a.jpg", "train/x/b.jpg"]
    assert names(open_data(tmp_path, "val"), tmp_path) == ["validation/a.jpg"]
    put(tmp_path, "other/a.jpg", "one")  # not all: then they are folders like others
    assert len(Captions.from_folder(tmp_path, split="val")) == 1
    assert "drawn" in Captions.from_folder(tmp_path, split="val").about


def test_a_picture_without_text(tmp_path):
    for name in "abcd":
        put(tmp_path, f"{name}.jpg", name)
    put(tmp_path, "e.jpg")
    put(tmp_path, "f.jpg", " \n")
    with pytest.raises(DataError, match=r"e\.jpg: has no e\.txt beside it"):
        Captions.from_folder(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        data = Captions.from_folder(tmp_path, on_error="skip", max_skip_fraction=0.4)
    assert names(data, tmp_path) == ["a.jpg", "b.jpg", "c.jpg", "d.jpg"]
    assert len(data.skip_log) == 2


def test_no_pictures_no_texts_no_folder(tmp_path):
    with pytest.raises(DataError, match="holds no pictures"):
        Captions.from_folder(tmp_path)
    put(tmp_path, "a.jpg")
    with pytest.raises(DataError, match=r"1 pictures and no text files.*dog\.txt"):
        Captions.from_folder(tmp_path)
    with pytest.raises(FileNotFoundError, match="nothing there"):
        Captions.from_folder(tmp_path / "no")
    with pytest.raises(FileNotFoundError, match="a file"):
        Captions.from_folder(tmp_path / "a.jpg")
