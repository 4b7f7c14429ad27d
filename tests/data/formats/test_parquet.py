"""Parquet files: paths or stored images, one file or shards."""

import io
import pickle

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from miniclip.data import Captions
from tests.data.formats.helpers import CAPTION, error_of, names, skipped


@pytest.fixture
def write(folder):
    pa = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    def write(name: str, row_group_size: int = 2, **columns):
        path = folder / name
        parquet.write_table(pa.table(columns), path, row_group_size=row_group_size)
        return path

    return write


def encode_image(value: int) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (8, 8), (value, value, value)).save(file, "PNG")
    return file.getvalue()


@settings(max_examples=25)
@given(rows=st.lists(st.tuples(st.sampled_from("abcd"), st.lists(CAPTION, min_size=1)), min_size=1))
def test_roundtrip(folder, rows):
    pa = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    table = pa.table({"image": [f"{name}.jpg" for name, _ in rows], "caption": [texts for _, texts in rows]})
    parquet.write_table(table, folder / "any.parquet")
    data = Captions.from_parquet(folder / "any.parquet")
    expected: dict[str, list[str]] = {}
    for name, texts in rows:
        expected.setdefault(f"{name}.jpg", []).extend(texts)
    assert dict(zip(names(data), data.captions, strict=True)) == expected


def test_stored_images_as_bytes_or_structs(write):
    images = [encode_image(value) for value in (0, 50, 100, 150, 200)]
    captions = ["one", "two", "three", "four", "five"]
    as_bytes = Captions.from_parquet(write("b.parquet", image=images, caption=captions))
    structs = [{"bytes": image, "path": None} for image in images]
    as_structs = Captions.from_parquet(write("s.parquet", image=structs, caption=captions))
    for data in (as_bytes, as_structs, pickle.loads(pickle.dumps(as_structs))):
        assert data.captions == [[caption] for caption in captions]
        for index in (4, 0, 2, 1, 3, -1):
            assert data[index][0].getpixel((0, 0)) == ((index % 5) * 50,) * 3
    assert data.name(3).endswith("s.parquet, row 3")
    assert data.encoded(1) == images[1]


def test_rows_of_one_stored_image_are_grouped(write):
    image = encode_image(9)
    path = write("n.parquet", image=[image] * 3, text=["one", "two", "three"], image_id=[7, 7, 8])
    assert Captions.from_parquet(path).captions == [["one", "two"], ["three"]]


def test_struct_with_path_or_without_image(write, folder):
    structs = [{"bytes": None, "path": "a.jpg"}, {"bytes": None, "path": None}, {"bytes": None, "path": "no.jpg"}]
    data = Captions.from_parquet(write("p.parquet", image=structs, caption=["one", "two", "three"]))
    assert data[0][0].size == (4, 3)
    assert "row 1: holds no image" in error_of(data.__getitem__, 1)
    assert "no.jpg" in error_of(data.__getitem__, 2)


def test_numbers_and_nan_captions(write):
    path = write("m.parquet", image=["a.jpg", "b.jpg", "c.jpg"], caption=[1.5, 2.0, float("nan")])
    assert "row 2: c.jpg: has no caption" in error_of(Captions.from_parquet, path)
    assert skipped(Captions.from_parquet, path).captions == [["1.5"], ["2.0"]]


def test_missing_parquet_column_raises(write):
    path = write("c.parquet", bild=["a.jpg"], caption=["one"])
    assert "found the columns 'bild', 'caption'" in error_of(Captions.from_parquet, path)
    assert Captions.from_parquet(path, image="bild").captions == [["one"]]


def test_damaged_file_raises(write):
    path = write("d.parquet", image=["a.jpg"], caption=["one"])
    path.write_bytes(path.read_bytes()[:-20])
    assert "cannot be read as parquet" in error_of(Captions.from_parquet, path)
    path.write_bytes(b"")
    assert "cannot be read as parquet" in error_of(Captions.from_parquet, path)


def test_split_from_shard_names(write, folder):
    for name, first in (("train-00000-of-00002", 0), ("train-00001-of-00002", 2), ("validation-00000-of-00001", 4)):
        (folder / "hub").mkdir(exist_ok=True)
        images = [encode_image(value) for value in (4 if first == 4 else 0, first + 1)]
        write(f"hub/{name}.parquet", image=images, caption=[f"{first}", f"{first + 1}"], image_id=[0, 1 + first])
    train = Captions.from_parquet(folder / "hub", split="train")
    assert train.captions == [
        ["0", "2"],
        ["1"],
        ["3"],
    ]  # image 0 of both train shards is the same, that of validation another
    assert Captions.from_parquet(folder / "hub", split="val").captions == [["4"], ["5"]]
    assert "and 2 more files" in train.about
