"""Rows are one image only if that is certain: the same path, or the same name and the same bytes."""

import io
import itertools
import json
import tarfile

import pytest
from PIL import Image

from miniclip.data import Captions, CocoCaptions, Flickr30k, WebDataset, open_data
from miniclip.errors import DataError
from tests.data.formats.helpers import error_of, names, skipped

SPLITS = ("train", "val", "test")


def png(value: int) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (4, 3), (value,) * 3).save(file, "PNG")
    return file.getvalue()


def grey(data, index: int) -> int:
    return data[index][0].getpixel((0, 0))[0]


def write_images(folder, *names: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        Image.new("RGB", (4, 3)).save(folder / name)


@pytest.fixture
def write(tmp_path):
    """Write a parquet file below the test's folder."""
    pa = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    def write(name: str, **columns):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        parquet.write_table(pa.table(columns), path, row_group_size=2)
        return path

    return write


class TestStoredImages:
    @pytest.mark.parametrize("column", ["filename", "image_id"])
    def test_concatenated_datasets_with_the_same_names_raise(self, column, write):
        datasets = pytest.importorskip("datasets")
        parts = [
            datasets.Dataset.from_dict(
                {
                    "image": [{"bytes": png(first + k), "path": f"frame_{k}.png"} for k in range(6)],
                    column: [f"frame_{k}" for k in range(6)],
                    "caption": [f"caption {first + k}" for k in range(6)],
                }
            ).cast_column("image", datasets.Image())
            for first in (0, 100)
        ]
        both = datasets.concatenate_datasets(parts)
        message = error_of(Captions.from_huggingface, both)
        assert "row 6: has the name 'frame_0' of row 0, and another image" in message
        data = Captions.from_huggingface(both.remove_columns(column))  # as the message advises
        assert [grey(data, k) for k in range(12)] == [*range(6), *range(100, 106)]
        path = write("both.parquet")
        both.to_parquet(path)
        assert f"{path}, row 6: has the name 'frame_0' of {path}, row 0" in error_of(Captions.from_parquet, path)

    def test_skipped_rows_leave_the_captions_of_the_first_image(self, write):
        path = write("a.parquet", image=[png(0), png(1), png(9)], image_id=[7, 8, 7], text=["zero", "one", "nine"])
        data = skipped(Captions.from_parquet, path)
        assert data.captions == [["zero"], ["one"]]
        assert list(data.skip_log.reasons) == [f"{path}, row 2"]

    def test_images_that_cannot_be_compared_raise(self, write):
        structs = [{"bytes": png(0), "path": None}, {"bytes": None, "path": None}]
        path = write("a.parquet", image=structs, image_id=[7, 7], text=["zero", "one"])
        assert "row 1: has the name '7' of" in error_of(Captions.from_parquet, path)

    def test_missing_names_are_not_one_name(self, write):
        path = write("a.parquet", image=[png(0), png(1), png(2)], filename=["", None, " "], text=["a", "b", "c"])
        assert Captions.from_parquet(path).captions == [["a"], ["b"], ["c"]]
        path = write("b.parquet", image=[png(0), png(1)], image_id=[float("nan"), float("nan")], text=["a", "b"])
        assert Captions.from_parquet(path).captions == [["a"], ["b"]]

    def test_row_numbers_are_not_names(self):
        datasets = pytest.importorskip("datasets")
        columns = {"image": [png(0), png(1)], "image_id": ["1", None], "caption": ["zero", "one"]}
        assert Captions.from_huggingface(datasets.Dataset.from_dict(columns)).captions == [["zero"], ["one"]]

    def test_names_may_start_again_in_each_split(self, write):
        images, splits = [png(0), png(0), png(1)], ["train", "train", "test"]
        path = write("a.parquet", image=images, image_id=[7, 7, 7], split=splits, text=["a", "b", "c"])
        assert Captions.from_parquet(path).captions == [["a", "b"], ["c"]]
        assert Captions.from_parquet(path, split="test").captions == [["c"]]
        path = write("b.parquet", image=[png(0), png(0)], image_id=[7, 7], split=["train", "test"], text=["a", "b"])
        assert "has the split 'train' in" in error_of(Captions.from_parquet, path)


class TestSeveralParquetFiles:
    @pytest.mark.parametrize("ids", [{}, {"image_id": [0, 1]}], ids=["no names", "the same names"])
    def test_files_of_one_name_in_sibling_folders(self, tmp_path, write, ids):
        for part, first in (("part-0", 0), ("part-1", 100)):
            images, texts = [png(first), png(first + 1)], [f"{first}", f"{first + 1}"]
            write(f"{part}/00000.parquet", image=images, caption=texts, **ids)
        for data in (open_data(tmp_path, "all"), Captions.from_parquet(tmp_path)):
            assert data.captions == [["0"], ["1"], ["100"], ["101"]]
            assert [grey(data, k) for k in range(4)] == [0, 1, 100, 101]

    @pytest.mark.parametrize(
        "files",
        [
            ("en/train-00000-of-00001.parquet", "de/train-00000-of-00002.parquet"),
            ("en/train/0000.parquet", "de/train/0000.parquet"),
            ("en/train.parquet", "de/train.parquet", "de/test.parquet"),
        ],
        ids=["shards", "folders", "files"],
    )
    def test_configurations_raise(self, tmp_path, write, files):
        for name in files:
            write(name, image=[png(0), png(1)], caption=["a", "b"])
        for read in (Captions.from_parquet, open_data, Flickr30k):
            assert "several configurations ('de', 'en')" in error_of(read, tmp_path)
        assert len(Captions.from_parquet(tmp_path / "en")) == 2
        assert len(Captions.from_parquet([tmp_path / name for name in files])) == 2 * len(files)

    def test_configurations_of_a_readme_raise(self, tmp_path, write):
        write("data/small-0.parquet", image=[png(0)], caption=["a"])
        write("data/large-0.parquet", image=[png(1)], caption=["b"])
        card = "---\nconfigs:\n- config_name: {}\n  data_files:\n  - split: train\n    path: data/{}\n"
        other = "- config_name: large\n  data_files: data/large-*\n---\n"
        (tmp_path / "README.md").write_text(card.format("small", "small-*") + other)
        assert "several configurations ('small', 'large')" in error_of(open_data, tmp_path)
        (tmp_path / "README.md").write_text(card.format("both", "*.parquet") + other)
        assert len(open_data(tmp_path, "all")) == 2
        (tmp_path / "README.md").write_text("---\nconfigs: 7\n---\n")
        assert len(open_data(tmp_path, "all")) == 2

    def test_partitions_of_pandas(self, tmp_path):
        pandas = pytest.importorskip("pandas")
        rows = [
            (png(k), f"{k}", split, lang) for k, (split, lang) in enumerate(itertools.product(SPLITS, ("en", "de")))
        ]
        frame = pandas.DataFrame(rows, columns=["image", "caption", "split", "lang"])
        frame.to_parquet(tmp_path / "one", partition_cols=["split"])
        frame.to_parquet(tmp_path / "two", partition_cols=["lang", "split"])
        assert [open_data(tmp_path / "one", split).captions for split in SPLITS] == [
            [["0"], ["1"]],
            [["2"], ["3"]],
            [["4"], ["5"]],
        ]
        assert len(open_data(tmp_path / "two", "all")) == 6

    def test_file_given_twice_is_read_once(self, tmp_path, write):
        path = write("a.parquet", image=[png(0)], caption=["a"])
        again = tmp_path / "x" / ".." / "a.parquet"
        (tmp_path / "x").mkdir()
        assert Captions.from_parquet([path, path, again]).captions == [["a"]]

    def test_list_of_folders(self, tmp_path, write):
        write("a/0.parquet", image=[png(0)], caption=["a"])
        write("b/0.parquet", image=[png(1)], caption=["b"])
        assert Captions.from_parquet([tmp_path / "a", tmp_path / "b"]).captions == [["a"], ["b"]]


class TestPaths:
    def test_spellings_of_one_path_are_one_image(self, tmp_path):
        write_images(tmp_path / "images", "a.jpg")
        spellings = ["images/a.jpg", "./images/a.jpg", "images\\a.jpg", "images//a.jpg", str(tmp_path / "images/a.jpg")]
        (tmp_path / "t.csv").write_text("image,caption\n" + "".join(f"{name},x\n" for name in spellings))
        assert Captions.from_csv(tmp_path / "t.csv").captions == [["x"] * 5]
        lines = [json.dumps({"image": name, "caption": "x"}) for name in reversed(spellings)]
        (tmp_path / "t.jsonl").write_text("\n".join(lines))
        data = Captions.from_jsonl(tmp_path / "t.jsonl")
        assert data.captions == [["x"] * 5]
        assert data[0][0].size == (4, 3)

    def test_one_file_in_two_splits_raises(self, tmp_path):
        write_images(tmp_path / "images", "a.jpg")
        for split in ("train", "val"):
            (tmp_path / split).mkdir()
            (tmp_path / split / "metadata.csv").write_text("file_name,text\n../images/a.jpg,x\n")
        assert "has the split 'train' in" in error_of(open_data, tmp_path)

    def test_equal_names_in_folders_are_different_images(self, tmp_path):
        for split in ("train", "val"):
            write_images(tmp_path / split, "a.jpg")
            (tmp_path / split / "metadata.csv").write_text(f"file_name,text\na.jpg,{split}\n")
        assert open_data(tmp_path, "all").captions == [["train"], ["val"]]

    def test_two_images_with_one_text_file_raise(self, tmp_path):
        write_images(tmp_path, "a.jpg", "a.png", "b.jpg")
        (tmp_path / "a.txt").write_text("one")
        (tmp_path / "b.txt").write_text("two")
        assert "a.jpg: shares a.txt with another image" in error_of(Captions.from_folder, tmp_path)
        (tmp_path / "a.png.txt").write_text("three")
        assert Captions.from_folder(tmp_path).captions == [["one"], ["three"], ["two"]]


class TestKarpathyAndCoco:
    @pytest.mark.parametrize("name", ["dataset_flickr30k.json", "dataset_coco.json"])
    def test_one_file_name_in_two_folders(self, tmp_path, name):
        for folder, value in (("x", 10), ("y", 200)):
            (tmp_path / folder).mkdir()
            Image.new("RGB", (4, 3), (value,) * 3).save(tmp_path / folder / "1.png")
        entries = [
            {"filepath": folder, "filename": "1.png", "split": "train", "sentences": [{"raw": folder}]}
            for folder in ("x", "y")
        ]
        (tmp_path / name).write_text(json.dumps({"images": entries}))
        data = open_data(tmp_path, "all")
        assert data.captions == [["x"], ["y"]]
        assert [grey(data, 0), grey(data, 1)] == [10, 200]

    def test_image_in_two_splits_of_a_split_file_raises(self, tmp_path):
        write_images(tmp_path, "1.jpg")
        (tmp_path / "captions.txt").write_text("image,caption\n1.jpg,one\n")
        entries = [{"filename": "1.jpg", "split": split, "sentences": []} for split in ("train", "test")]
        (tmp_path / "dataset_flickr30k.json").write_text(json.dumps({"images": entries}))
        assert "1.jpg has the split 'test' here and 'train' before" in error_of(Flickr30k, tmp_path)

    def test_coco_images_with_one_id_raise(self, tmp_path):
        write_images(tmp_path / "train2017", "1.jpg", "2.jpg", "3.jpg")
        content = {
            "images": [{"id": id_, "file_name": f"{k}.jpg"} for k, id_ in ((1, 7), (2, 7), (3, 8))],
            "annotations": [{"id": id_, "image_id": id_, "caption": f"{id_}"} for id_ in (7, 8)],
        }
        (tmp_path / "captions_train2017.json").write_text(json.dumps(content))
        assert "images[1]: 2.jpg has the id 7 of 1.jpg" in error_of(CocoCaptions, tmp_path, "all")
        data = skipped(CocoCaptions, tmp_path, split="all")
        assert names(data) == ["3.jpg"]
        assert data.captions == [["8"]]


class TestShards:
    def write_tar(self, path, value: int, keys=("000", "001")) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tarfile.open(path, "w") as tar:
            for number, key in enumerate(keys):
                for name, content in (
                    (f"{key}.png", png(value + number)),
                    (f"{key}.txt", str(value + number).encode()),
                ):
                    member = tarfile.TarInfo(name)
                    member.size = len(content)
                    tar.addfile(member, io.BytesIO(content))

    def test_equal_keys_in_shards_of_one_name(self, tmp_path):
        paths = [tmp_path / folder / "00000.tar" for folder in "ab"]
        for path, value in zip(paths, (10, 100), strict=True):
            self.write_tar(path, value)
        data = WebDataset(paths, "all")
        assert data.captions == [["10"], ["11"], ["100"], ["101"]]
        assert [grey(data, k) for k in range(4)] == [10, 11, 100, 101]

    def test_shard_given_twice_is_read_once(self, tmp_path, monkeypatch):
        self.write_tar(tmp_path / "0.tar", 10)
        monkeypatch.chdir(tmp_path)
        assert WebDataset([tmp_path / "0.tar", "0.tar", "./0.tar"], "all").captions == [["10"], ["11"]]

    def test_equal_keys_in_one_shard_raise(self, tmp_path):
        self.write_tar(tmp_path / "0.tar", 10, ("000", "001", "000"))
        with pytest.raises(DataError, match=r"000\.png: exists twice"):
            WebDataset(tmp_path / "0.tar", "all")
