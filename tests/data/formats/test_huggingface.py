"""Datasets of Hugging Face's datasets library."""

import io
import pickle
import struct

import pytest
from PIL import Image

from miniclip.data import Captions, open_data
from miniclip.errors import DataError

OFFSETS = struct.pack("<3i", 0, 3, 6)  # offsets of the texts "dog" and "cat"


def png(value: int) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (4, 3), (value,) * 3).save(file, "PNG")
    return file.getvalue()


class Table:
    """Minimal stand-in for a Dataset."""

    def __init__(self, **columns):
        self.columns = columns
        self.column_names = list(columns)

    def __len__(self):
        return len(next(iter(self.columns.values())))

    def __getitem__(self, key):
        if isinstance(key, str):
            if key == "image":
                raise AssertionError("images were read for the captions")
            return self.columns[key]
        return {name: column[key] for name, column in self.columns.items()}


def test_captions_are_read_without_images():
    data = Captions.from_huggingface(Table(image=[png(0), png(9)], text=["one", ["two", "three"]]))
    assert data.captions == [["one"], ["two", "three"]]
    assert data[1][0].getpixel((0, 0)) == (9, 9, 9)
    assert data.encoded(0) == png(0)
    assert data.name(1) == "row 1"


def test_image_types(tmp_path):
    (tmp_path / "a.png").write_bytes(png(1))
    forms = [
        {"bytes": png(1), "path": None},
        {"bytes": None, "path": str(tmp_path / "a.png")},
        Image.new("RGB", (4, 3), (1, 1, 1)),
    ]
    data = Captions.from_huggingface(Table(image=forms, caption=["a", "b", "c"]))
    assert [image.getpixel((0, 0)) for image, _ in data] == [(1, 1, 1)] * 3
    broken = Captions.from_huggingface(Table(image=[None, str(tmp_path / "no.png")], caption=["a", "b"]))
    with pytest.raises(DataError, match="row 0: 'image' is a NoneType"):
        broken[0]
    with pytest.raises(DataError, match=r"row 1: .*no\.png cannot be read"):
        broken[1]


def test_rows_of_one_image_are_grouped():
    data = Captions.from_huggingface(Table(image=[png(0)] * 3, image_id=[7, 8, 7], caption=["one", "two", "three"]))
    assert data.captions == [["one", "three"], ["two"]]


def test_other_types_raise():
    with pytest.raises(
        TypeError, match=r"several splits \(train, test\); pass one of them, such as dataset\['train'\]"
    ):
        Captions.from_huggingface({"train": Table(image=[], caption=[]), "test": Table(image=[], caption=[])})
    with pytest.raises(TypeError, match="without streaming"):
        Captions.from_huggingface(iter([]))
    with pytest.raises(DataError, match="found the columns 'image', 'x'"):
        Captions.from_huggingface(Table(image=[png(0)], x=["one"]))


@pytest.fixture(scope="module")
def dataset():
    datasets = pytest.importorskip("datasets")
    columns = {
        "image": [{"bytes": png(k), "path": None} for k in range(30)],
        "caption": [[f"{k}", "x"] for k in range(30)],
    }
    features = datasets.Features({"image": datasets.Image(), "caption": datasets.List(datasets.Value("string"))})
    return datasets.Dataset.from_dict(columns, features=features)


class TestLibrary:
    def test_reads_without_decoding(self, dataset, monkeypatch):
        datasets = pytest.importorskip("datasets")
        monkeypatch.setattr(datasets.Image, "decode_example", None)  # a decode would fail
        data = Captions.from_huggingface(dataset)
        assert data.captions[7] == ["7", "x"]
        assert data[7][0].getpixel((0, 0)) == (7, 7, 7)
        assert pickle.loads(pickle.dumps(data))[8][0].getpixel((0, 0)) == (8, 8, 8)
        assert len(Captions.from_huggingface(dataset, split="train")) == 24
        picked = Captions.from_huggingface(dataset.select([5, 3]))
        assert [image.getpixel((0, 0))[0] for image, _ in picked] == [5, 3]

    def test_several_splits_and_streams_raise(self, dataset):
        datasets = pytest.importorskip("datasets")
        with pytest.raises(TypeError, match="several splits"):
            Captions.from_huggingface(datasets.DatasetDict(train=dataset))
        with pytest.raises(TypeError, match="without streaming"):
            Captions.from_huggingface(dataset.to_iterable_dataset())

    @pytest.mark.parametrize(
        ("damage", "words"),
        [
            (lambda content: content[:-8], "ends with"),
            (lambda content: content[: len(content) // 2], "not a complete Arrow file"),
            (lambda content: b"ARROW1\0\0" + content, "begins with b'ARRO'"),
            (lambda content: b"", "begins with b''"),
            (lambda content: content.replace(OFFSETS, struct.pack("<3i", 0, 1 << 30, 6)), "damaged"),
            (lambda content: content.replace(OFFSETS, struct.pack("<3i", 0, -9, 6)), "damaged"),
        ],
        ids=["end", "half", "start", "empty", "offset", "negative"],
    )
    def test_damaged_file_of_save_to_disk(self, tmp_path, damage, words):
        """Without a check, pyarrow ends the process at a wrong offset."""
        datasets = pytest.importorskip("datasets")
        rows = {"image": [{"bytes": png(1), "path": None}] * 2, "caption": ["dog", "cat"]}
        datasets.Dataset.from_dict(rows).save_to_disk(tmp_path / "one")
        (file,) = (tmp_path / "one").glob("*.arrow")
        content = file.read_bytes()
        file.write_bytes(damage(content))
        assert file.read_bytes() != content
        with pytest.raises(DataError, match=words) as caught:
            open_data(tmp_path / "one", "all")
        assert str(caught.value).startswith(f"{file}: ")

    def test_opens_save_to_disk(self, dataset, tmp_path):
        datasets = pytest.importorskip("datasets")
        dataset.save_to_disk(tmp_path / "one")
        assert len(open_data(tmp_path / "one", "val")) == 3
        both = datasets.DatasetDict(train=dataset.select(range(20)), validation=dataset.select(range(20, 30)))
        both.save_to_disk(tmp_path / "both")
        data = open_data(tmp_path / "both", "val")
        assert data.captions[0] == ["20", "x"]
        assert data[0][0].getpixel((0, 0)) == (20, 20, 20)

    def test_opens_to_parquet(self, dataset, tmp_path):
        (tmp_path / "data").mkdir()
        dataset.to_parquet(tmp_path / "data" / "test-00000-of-00001.parquet")
        data = open_data(tmp_path, "all")
        assert data.captions[29] == ["29", "x"]
        assert data[29][0].getpixel((0, 0)) == (29, 29, 29)
        assert [len(open_data(tmp_path, split)) for split in ("train", "val", "test")] == [24, 3, 3]


class TestTransforms:
    def test_transform_that_needs_all_columns(self, dataset):
        def invert(rows):
            images = [image.point(lambda value: 255 - value) for image in rows["image"]]
            return {"image": images, "caption": [texts[:1] for texts in rows["caption"]]}

        data = Captions.from_huggingface(dataset.with_transform(invert))
        assert data.captions == [[f"{k}"] for k in range(30)]
        assert [data[k][0].getpixel((0, 0))[0] for k in (0, 7)] == [255, 248]

    def test_transform_of_some_columns(self, dataset):
        def invert(rows):
            return {"image": [image.point(lambda value: 255 - value) for image in rows["image"]]}

        for options in ({}, {"columns": ["image"]}, {"columns": ["image"], "output_all_columns": True}):
            data = Captions.from_huggingface(dataset.with_transform(invert, **options))
            assert data.captions[7] == ["7", "x"]
            assert data[7][0].getpixel((0, 0)) == (248, 248, 248)

    def test_transform_to_other_columns_raises_with_advice(self, dataset):
        transformed = dataset.with_transform(lambda rows: {"pixel_values": [0 for _ in rows["image"]]})
        with pytest.raises(DataError, match=r"cannot be read .*; if a transform .*, pass dataset\.with_format\(None\)"):
            Captions.from_huggingface(transformed)
        assert len(Captions.from_huggingface(transformed.with_format(None))) == 30

    @pytest.mark.parametrize("format_", ["torch", "numpy", "pandas", "arrow"])
    def test_formats_change_nothing(self, dataset, format_):
        if format_ == "pandas":
            pytest.importorskip("pandas")
        data = Captions.from_huggingface(dataset.with_format(format_))
        assert data.captions[7] == ["7", "x"]
        assert data[7][0].getpixel((0, 0)) == (7, 7, 7)

    def test_image_modes_that_png_does_not_have(self):
        images = [Image.new("CMYK", (4, 3), (0, 0, 0, 0)), Image.new("F", (4, 3), 255)]
        data = Captions.from_huggingface(Table(image=images, caption=["a", "b"]))
        assert [data[row][0].getpixel((0, 0)) for row in (0, 1)] == [(255, 255, 255)] * 2
