"""COCO Captions: the official files, Karpathy's split, pictures of 2014 and 2017."""

import json
import warnings
from pathlib import Path

import pytest
from PIL import Image

from miniclip.data import CocoCaptions, open_data
from miniclip.errors import DataError


def pictures(folder: Path, *names: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        Image.new("RGB", (4, 3)).save(folder / name)


def official(path: Path, **captions: list[str]) -> None:
    """`_9=["one"]` is picture 9, called 000000000009.jpg."""
    ids = [int(name[1:]) for name in captions]
    content = {
        "info": {},
        "images": [{"id": k, "file_name": f"{k:012d}.jpg", "width": 4, "height": 3} for k in ids],
        "annotations": [  # COCO's are in no order
            {"image_id": k, "id": 10 * k + number, "caption": text}
            for k, own in zip(ids, captions.values(), strict=True)
            for number, text in reversed(list(enumerate(own)))
        ],
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


@pytest.fixture
def root(tmp_path):
    official(tmp_path / "annotations" / "captions_train2017.json", _9=["one", "two\n"], _25=["three"])
    official(tmp_path / "annotations" / "captions_val2017.json", _7=["four"])
    (tmp_path / "annotations" / "instances_val2017.json").write_text("{}")
    pictures(tmp_path / "train2017", f"{9:012d}.jpg", f"{25:012d}.jpg")
    pictures(tmp_path / "val2017", f"{7:012d}.jpg")
    return tmp_path


def names(data: CocoCaptions) -> list[str]:
    return [path.name for path in data.paths]


class TestOfficial:
    def test_its_splits(self, root):
        train = CocoCaptions(root)
        assert names(train) == ["000000000009.jpg", "000000000025.jpg"]
        assert train.captions == [["one", "two"], ["three"]]
        assert train[0][0].size == (4, 3)
        assert CocoCaptions(root, "val").captions == [["four"]]
        assert len(CocoCaptions(root, "all")) == 3
        assert "COCO Captions of 2017" in train.about

    def test_there_is_no_test_split(self, root):
        with pytest.raises(ValueError, match=r"not published.*dataset_coco\.json"):
            CocoCaptions(root, "test")

    @pytest.mark.parametrize("place", ["images/train2017", "train2017/train2017"])
    def test_where_the_pictures_may_be(self, root, place):
        target = root / place
        target.parent.mkdir(exist_ok=True)
        moved = root / "moved"
        (root / "train2017").rename(moved)
        target.parent.mkdir(exist_ok=True)
        moved.rename(target)
        assert len(CocoCaptions(root)) == 2

    def test_validation_alone(self, root):
        (root / "annotations" / "captions_train2017.json").unlink()
        assert CocoCaptions(root, "val").captions == [["four"]]
        with pytest.raises(ValueError, match="has val"):
            CocoCaptions(root, "train")

    def test_one_split_needs_not_the_pictures_of_the_other(self, root):
        for path in (root / "train2017").iterdir():
            path.unlink()
        assert len(CocoCaptions(root, "val")) == 1
        with pytest.raises(DataError, match="2 of the 2 pictures"):
            CocoCaptions(root, "train")

    def test_a_picture_that_is_missing_or_has_no_caption(self, root):
        (root / "train2017" / f"{9:012d}.jpg").unlink()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            data = CocoCaptions(root, on_error="skip", max_skip_fraction=0.5)
        assert names(data) == ["000000000025.jpg"]
        assert len(data.skip_log) == 1
        official(root / "annotations" / "captions_val2017.json", _7=[" "])
        with pytest.raises(DataError, match=r"val2017.json: images\[0\]: .*no caption"):
            CocoCaptions(root, "val")

    def test_those_of_2014(self, tmp_path):
        content = {
            "images": [{"id": 1, "file_name": "COCO_train2014_1.jpg"}],
            "annotations": [{"image_id": 1, "id": 1, "caption": "x"}],
        }
        (tmp_path / "captions_train2014.json").write_text(json.dumps(content))
        pictures(tmp_path / "train2014", "COCO_train2014_1.jpg")
        assert CocoCaptions(tmp_path).captions == [["x"]]

    @pytest.mark.parametrize(
        ("text", "reason"),
        [
            ("{", "line 1: is not JSON"),
            ("[]", "expected COCO's layout"),
            ('{"images": [{}], "annotations": []}', r"images\[0\]"),
            ('{"images": [], "annotations": [{"id": 1}]}', r"annotations\[0\]"),
            ('{"images": [], "annotations": []}', "names no pictures"),
        ],
    )
    def test_a_malformed_file(self, root, text, reason):
        for split in ("train", "val"):
            (root / "annotations" / f"captions_{split}2017.json").write_text(text)
        with pytest.raises(DataError, match=reason) as error:
            CocoCaptions(root)
        assert "\n" not in str(error.value)


class TestKarpathy:
    @pytest.fixture
    def entries(self):
        places = [("train2014", "train"), ("val2014", "restval"), ("val2014", "val"), ("val2014", "test")]
        return [
            {
                "filepath": folder,
                "filename": f"COCO_{folder}_{k:012d}.jpg",
                "cocoid": k,
                "split": split,
                "sentences": [{"raw": f"{k}"}],
            }
            for k, (folder, split) in enumerate(places, start=1)
        ]

    @pytest.fixture
    def write(self, entries, tmp_path):
        (tmp_path / "dataset_coco.json").write_text(json.dumps({"dataset": "coco", "images": entries}))
        return tmp_path

    def test_with_the_pictures_of_2014(self, write, entries):
        for entry in entries:
            pictures(write / entry["filepath"], entry["filename"])
        assert CocoCaptions(write).captions == [["1"], ["2"]]
        assert CocoCaptions(write, "val").captions == [["3"]]
        assert CocoCaptions(write, "test").captions == [["4"]]
        assert CocoCaptions(write, "test")[0][1] == ["4"]

    def test_with_those_of_2017(self, write):
        pictures(write / "train2017", f"{1:012d}.jpg", f"{4:012d}.jpg")
        pictures(write / "val2017", f"{2:012d}.jpg", f"{3:012d}.jpg")
        data = CocoCaptions(write, "all")
        assert [path.relative_to(write).as_posix() for path in data.paths] == [
            f"train2017/{1:012d}.jpg", f"val2017/{2:012d}.jpg", f"val2017/{3:012d}.jpg", f"train2017/{4:012d}.jpg",
        ]  # fmt: skip

    def test_it_goes_before_the_official_files(self, root, entries):
        entries[0] |= {"filepath": "train2017", "filename": f"{9:012d}.jpg"}
        (root / "annotations" / "dataset_coco.json").write_text(json.dumps({"images": entries[:1]}))
        assert CocoCaptions(root).captions == [["1"]]

    def test_pictures_that_are_missing(self, write):
        with pytest.raises(DataError, match="2 of the 2 pictures"):
            CocoCaptions(write)


def test_a_folder_without_either(tmp_path):
    with pytest.raises(DataError, match=r"holds no captions_train2017\.json"):
        CocoCaptions(tmp_path)
    with pytest.raises(FileNotFoundError, match="no such folder"):
        CocoCaptions(tmp_path / "no")


def test_it_is_recognised(root):
    assert isinstance(open_data(root, "val"), CocoCaptions)
