"""Cells of a table: lists are read exactly, or refused; class labels are read by their names."""

import csv
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from miniclip.data import Captions
from miniclip.data.formats.cells import read_cell
from tests.data.formats.helpers import CAPTION, error_of, skipped

CAPTIONS = ["a red circle", "a ring, blue"]
LISTS = {
    "json": '["a red circle", "a ring, blue"]',
    "python": "['a red circle', 'a ring, blue']",
    "numpy str": "['a red circle' 'a ring, blue']",
    "numpy lines": "['a red circle'\n 'a ring, blue']",
    "numpy repr": "array(['a red circle', 'a ring, blue'], dtype=object)",
    "numpy items": "[np.str_('a red circle'), np.str_('a ring, blue')]",
    "pandas": "<ArrowStringArray>\n['a red circle', 'a ring, blue']\nLength: 2, dtype: str",
    "tuple": "('a red circle', 'a ring, blue')",
    "set": "{'a red circle', 'a ring, blue'}",
    "comma at the end": "['a red circle', 'a ring, blue',]",
    "spaces": " [ 'a red circle' , 'a ring, blue' ] ",
}
NOT_LISTS = {
    "no quotes": "[a red circle, a ring, blue]",
    "one word": "[music]",
    "shortened by numpy": "['a red circle' 'b' ... 'c' 'd']",
    "mixed separators": "['a red circle' 'b', 'c']",
    "no separator": "['a red circle''b']",
    "cut short": "['a red circle', 'a ri",
    "cut short in json": '["a red circle", "a ri',
    "numbers": "[1, 2]",
    "text and a number": "['a', 5]",
    "nested": "[['a'], ['b']]",
    "bytes": "[b'a', b'b']",
    "shortened by pandas": "<ArrowStringArray>\n['a', ... 'b']\nLength: 9, dtype: str",
    "quotes not escaped by pandas": "<ArrowStringArray>\n['a', 'b']\nLength: 1, dtype: str",
    "backslash of pandas": "<ArrowStringArray>\n['a\\nb']\nLength: 1, dtype: str",
    "series": "Series(['a', 'b'])",
    "frozen set": "frozenset({'a', 'b'})",
    "tuple of lists": "(['a'], ['b'])",
    "object": '{"en": "a"}',
    "escape": "['\\d']",
    "deep": "[" * 50_000 + "]" * 50_000,
    "set of lists": "[{[]: 1}]",
    "half a surrogate": "['\\ud83d",
}
TEXTS = ["a dog", "[a] dog [b]", "(a dog)", "dog(s) ('tis)", "<StringArray>"]
TEXTS += ["('a dog')", '("Hello") said the dog', "array of dogs", "a [dog]", "()"]


@pytest.mark.parametrize("cell", LISTS.values(), ids=LISTS)
def test_lists(cell):
    assert read_cell(cell) == (CAPTIONS, None)


@pytest.mark.parametrize("cell", NOT_LISTS.values(), ids=NOT_LISTS)
def test_cells_that_look_like_lists_are_refused(cell):
    captions, problem = read_cell(cell)
    assert captions == []
    assert problem is not None
    assert "looks like a list of strings" in problem
    assert len(problem) < 300


@pytest.mark.parametrize("cell", TEXTS)
def test_texts(cell):
    assert read_cell(cell) == ([cell], None)


def test_refused_text_can_be_written_as_the_message_advises():
    assert read_cell('["[music]"]') == (["[music]"], None)


def test_items_without_text():
    assert read_cell("['a', None]") == (["a", None], None)
    assert read_cell("['a', nan]") == (["a", None], None)
    assert read_cell('["a", null]') == (["a", None], None)
    assert read_cell("[]") == ([], None)


@settings(max_examples=25)
@given(captions=st.lists(CAPTION, min_size=1, max_size=5))
def test_roundtrip_of_python_numpy_and_json(captions):
    array = np.array(captions, dtype=object)
    for text in (str(captions), repr(array), str(array), json.dumps(captions), str(np.array(captions).tolist())):
        assert read_cell(text) == (captions, None)


class TestReaders:
    CELL = LISTS["numpy str"]
    BAD = NOT_LISTS["no quotes"]

    @pytest.fixture(params=["csv", "jsonl", "parquet", "huggingface"])
    def read(self, request, folder):
        def read(cells, **options):
            columns = {"image": ["a.jpg", "b.jpg", "c.jpg"][: len(cells)], "caption": cells}
            path = folder / f"cells.{request.param}"
            if request.param == "csv":
                with path.open("w", newline="", encoding="utf-8") as file:
                    csv.writer(file).writerows([columns.keys(), *zip(*columns.values(), strict=True)])
                return Captions.from_csv(path, **options)
            if request.param == "jsonl":
                rows = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
                path.write_text("\n".join(map(json.dumps, rows)))
                return Captions.from_jsonl(path, **options)
            if request.param == "parquet":
                pa = pytest.importorskip("pyarrow")
                from pyarrow import parquet

                parquet.write_table(pa.table(columns), path)
                return Captions.from_parquet(path, **options)
            datasets = pytest.importorskip("datasets")
            columns["image"] = [str(folder / name) for name in columns["image"]]
            return Captions.from_huggingface(datasets.Dataset.from_dict(columns), **options)

        return read

    def test_reads_lists(self, read):
        assert read([self.CELL, "one", '["two"]']).captions == [CAPTIONS, ["one"], ["two"]]

    def test_refuses_other_cells_with_their_row(self, read):
        message = error_of(read, ["one", self.BAD])
        assert "line 3: " in message or "line 2: " in message or "row 1: " in message
        data = skipped(read, ["one", self.BAD, "three"])
        assert data.captions == [["one"], ["three"]]
        assert len(data.skip_log) == 1


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_lists_that_datasets_and_pandas_write_into_csv(folder):
    datasets, pandas = pytest.importorskip("datasets"), pytest.importorskip("pandas")
    columns = {"image": ["a.jpg", "b.jpg"], "caption": [CAPTIONS, ["it's a star"]]}
    datasets.Dataset.from_dict(columns).to_csv(folder / "datasets.csv")
    frame = pandas.DataFrame(columns)
    frame.to_csv(folder / "lists.csv")
    frame["caption"] = [np.array(texts) for texts in columns["caption"]]
    frame.to_csv(folder / "arrays.csv")
    frame["caption"] = [tuple(texts) for texts in columns["caption"]]
    frame.to_csv(folder / "tuples.csv")
    frame = frame.explode("caption").astype({"caption": "string"})
    frame.groupby("image")["caption"].unique().reset_index().to_csv(folder / "unique.csv")
    for name in ("datasets", "lists", "arrays", "tuples"):
        assert Captions.from_csv(folder / f"{name}.csv").captions == columns["caption"]


class TestClassLabels:
    @pytest.fixture
    def dataset(self):
        datasets = pytest.importorskip("datasets")
        label = datasets.ClassLabel(names=["cat", "dog"])
        features = {"image": datasets.Value("binary"), "label": label, "labels": datasets.List(label)}
        columns = {"image": [b"0", b"1", b"2"], "label": [1, 0, -1], "labels": [[0, 1], [1], [0]]}
        return datasets.Dataset.from_dict(columns, features=datasets.Features(features))

    def test_captions_are_the_names(self, dataset, tmp_path):
        path = tmp_path / "labels.parquet"
        dataset.to_parquet(path)
        for read, source in ((Captions.from_huggingface, dataset), (Captions.from_parquet, path)):
            assert read(source, caption="labels").captions == [["cat", "dog"], ["dog"], ["cat"]]
            assert "has no caption" in error_of(read, source, caption="label")
            assert skipped(read, source, caption="label").captions == [["dog"], ["cat"]]

    def test_split_is_the_name(self):
        datasets = pytest.importorskip("datasets")
        features = {"split": datasets.ClassLabel(names=["train", "test"]), "image": datasets.Value("binary")}
        features["text"] = datasets.Value("string")
        columns = {"split": [0, 1], "image": [b"0", b"1"], "text": ["a", "b"]}
        dataset = datasets.Dataset.from_dict(columns, features=datasets.Features(features))
        assert Captions.from_huggingface(dataset, split="test").captions == [["b"]]

    def test_label_without_a_name_raises(self, tmp_path):
        pa = pytest.importorskip("pyarrow")
        from pyarrow import parquet

        features = {"label": {"names": ["cat"], "_type": "ClassLabel"}}
        metadata = {"huggingface": json.dumps({"info": {"features": features}})}
        table = pa.table({"image": [b"0"], "label": [5]}).replace_schema_metadata(metadata)
        parquet.write_table(table, tmp_path / "a.parquet")
        message = error_of(Captions.from_parquet, tmp_path / "a.parquet", caption="label")
        assert "the class label 5 has no name" in message


class TestRawErrors:
    def test_csv_of_many_columns(self, tmp_path):
        (tmp_path / "a.csv").write_text(",".join(f"c{k}" for k in range(50_000)) + "\n1,2\n")
        message = error_of(Captions.from_csv, tmp_path / "a.csv")
        assert "and 49,980 more" in message
        assert len(message) < 1000
        message = error_of(Captions.from_csv, tmp_path / "a.csv", image="c7", caption="c9999x")
        assert len(message) < 1000

    @pytest.mark.parametrize("first", [",,", '"",""', ";"])
    def test_csv_without_names_of_columns(self, tmp_path, first):
        (tmp_path / "a.csv").write_text(f"{first}\n")
        assert "line 1: " in error_of(Captions.from_csv, tmp_path / "a.csv")

    @pytest.mark.parametrize("separator", ["", ",,", '"'])
    def test_separator_of_another_length_raises(self, tmp_path, separator):
        (tmp_path / "a.csv").write_text("image,caption\n")
        with pytest.raises(ValueError, match="expected one character"):
            Captions.from_csv(tmp_path / "a.csv", separator=separator)

    def test_json_with_a_key_twice_raises(self, read):
        text = '{"image": "a.jpg", "caption": "one", "caption": "two"}\n'
        assert "line 1: is not JSON: an object has the key 'caption' twice" in error_of(read, text, "twice.jsonl")

    def test_integer_split_of_parquet(self, folder):
        pa = pytest.importorskip("pyarrow")
        from pyarrow import parquet

        table = pa.table({"image": ["a.jpg", "b.jpg"], "caption": ["a", "b"], "split": [0, 1]})
        parquet.write_table(table, folder / "split.parquet")
        assert len(Captions.from_parquet(folder / "split.parquet")) == 2
        with pytest.raises(ValueError, match=r"no split 'train': .* has 0, 1"):
            Captions.from_parquet(folder / "split.parquet", split="train")

    @pytest.mark.parametrize("column", ["caption", "split", "filename"])
    def test_timestamps_out_of_range(self, tmp_path, column):
        pa = pytest.importorskip("pyarrow")
        from pyarrow import parquet

        columns = {"image": [b"0"], "caption": ["a"]}
        columns[column] = pa.array([2**62], pa.timestamp("us"))
        parquet.write_table(pa.table(columns), tmp_path / "a.parquet")
        message = error_of(Captions.from_parquet, tmp_path / "a.parquet")
        assert f"in the column '{column}'" in message
        datasets = pytest.importorskip("datasets")
        message = error_of(Captions.from_huggingface, datasets.Dataset(pa.table(columns)))
        assert f"the column '{column}': cannot be read" in message

    def test_text_that_is_not_utf_8_in_parquet(self, tmp_path):
        pa = pytest.importorskip("pyarrow")
        from pyarrow import parquet

        damaged = pa.array([b"\xff"], pa.binary()).view(pa.string())
        parquet.write_table(pa.table({"image": ["a.jpg"], "caption": damaged}), tmp_path / "a.parquet")
        assert "in the column 'caption'" in error_of(Captions.from_parquet, tmp_path / "a.parquet")
