"""COCO Captions: the official files, Karpathy's split, images of 2014 and 2017."""

import json
import warnings
from pathlib import Path

import pytest
from PIL import Image

from miniclip.data import CocoCaptions, open_data
from miniclip.errors import DataError


def write_images(folder: Path, *names: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        Image.new("RGB", (4, 3)).save(folder / name)


def write_official(path: Path, **captions: list[str]) -> None:
    """Write an official file; `_9=["one"]` is image 9, called 000000000009.jpg."""
    ids = [int(name[1:]) for name in captions]
    content = {
        "info": {},
        "images": [{"id": k, "file_name": f"{k:012d}.jpg", "width": 4, "height": 3} for k in ids],
        "annotations": [  # COCO's are not sorted
            {"image_id": k, "id": 10 * k + number, "caption": text}
            for k, texts in zip(ids, captions.values(), strict=True)
            for number, text in reversed(list(enumerate(texts)))
        ],
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


@pytest.fixture
def root(tmp_path):
    write_official(tmp_path / "annotations" / "captions_train2017.json", _9=["one", "two\n"], _25=["three"])
    write_official(tmp_path / "annotations" / "captions_val2017.json", _7=["four"])
    (tmp_path / "annotations" / "instances_val2017.json").write_text("{}")
    write_images(tmp_path / "train2017", f"{9:012d}.jpg", f"{25:012d}.jpg")
    write_images(tmp_path / "val2017", f"{7:012d}.jpg")
    return tmp_path


def names(data: CocoCaptions) -> list[str]:
    return [path.name for path in data.paths]


class TestOfficial:
    def test_splits(self, root):
        train = CocoCaptions(root)
        assert names(train) == ["000000000009.jpg", "000000000025.jpg"]
        assert train.captions == [["one", "two"], ["three"]]
        assert train[0][0].size == (4, 3)
        assert CocoCaptions(root, "val").captions == [["four"]]
        assert len(CocoCaptions(root, "all")) == 3
        assert "COCO Captions of 2017" in train.about

    def test_test_split_raises(self, root):
        with pytest.raises(ValueError, match=r"not published.*dataset_coco\.json"):
            CocoCaptions(root, "test")

    @pytest.mark.parametrize("place", ["images/train2017", "train2017/train2017"])
    def test_image_folders(self, root, place):
        target = root / place
        target.parent.mkdir(exist_ok=True)
        moved = root / "moved"
        (root / "train2017").rename(moved)
        target.parent.mkdir(exist_ok=True)
        moved.rename(target)
        assert len(CocoCaptions(root)) == 2

    def test_only_val(self, root):
        (root / "annotations" / "captions_train2017.json").unlink()
        assert CocoCaptions(root, "val").captions == [["four"]]
        with pytest.raises(ValueError, match="has val"):
            CocoCaptions(root, "train")

    def test_image_files_of_other_splits_are_not_needed(self, root):
        for path in (root / "train2017").iterdir():
            path.unlink()
        assert len(CocoCaptions(root, "val")) == 1
        with pytest.raises(DataError, match="2 of the 2 images"):
            CocoCaptions(root, "train")

    def test_missing_image_or_caption(self, root):
        (root / "train2017" / f"{9:012d}.jpg").unlink()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            data = CocoCaptions(root, on_error="skip", max_skip_fraction=0.5)
        assert names(data) == ["000000000025.jpg"]
        assert len(data.skip_log) == 1
        write_official(root / "annotations" / "captions_val2017.json", _7=[" "])
        with pytest.raises(DataError, match=r"val2017.json: images\[0\]: .*no caption"):
            CocoCaptions(root, "val")

    def test_files_of_2014(self, tmp_path):
        content = {
            "images": [{"id": 1, "file_name": "COCO_train2014_1.jpg"}],
            "annotations": [{"image_id": 1, "id": 1, "caption": "x"}],
        }
        (tmp_path / "captions_train2014.json").write_text(json.dumps(content))
        write_images(tmp_path / "train2014", "COCO_train2014_1.jpg")
        assert CocoCaptions(tmp_path).captions == [["x"]]

    @pytest.mark.parametrize(
        ("text", "reason"),
        [
            ("{", "line 1: is not JSON"),
            ("[]", "expected COCO's layout"),
            ('{"images": [{}], "annotations": []}', r"images\[0\]"),
            ('{"images": [], "annotations": [{"caption": "a"}]}', r"annotations\[0\]"),
            ('{"images": [], "annotations": [{"id": 1}]}', "annotations have no 'caption'"),
            ('{"images": [], "annotations": []}', "lists no images"),
        ],
    )
    def test_malformed_file_raises(self, root, text, reason):
        for split in ("train", "val"):
            (root / "annotations" / f"captions_{split}2017.json").write_text(text)
        with pytest.raises(DataError, match=reason) as error:
            CocoCaptions(root)
        assert "\n" not in str(error.value)


class TestKarpathy:
    @pytest.fixture
    def entries(self):
        splits = [("train2014", "train"), ("val2014", "restval"), ("val2014", "val"), ("val2014", "test")]
        return [
            {
                "filepath": folder,
                "filename": f"COCO_{folder}_{k:012d}.jpg",
                "cocoid": k,
                "split": split,
                "sentences": [{"raw": f"{k}"}],
            }
            for k, (folder, split) in enumerate(splits, start=1)
        ]

    @pytest.fixture
    def karpathy_root(self, entries, tmp_path):
        (tmp_path / "dataset_coco.json").write_text(json.dumps({"dataset": "coco", "images": entries}))
        return tmp_path

    def test_images_of_2014(self, karpathy_root, entries):
        for entry in entries:
            write_images(karpathy_root / entry["filepath"], entry["filename"])
        assert CocoCaptions(karpathy_root).captions == [["1"], ["2"]]
        assert CocoCaptions(karpathy_root, "val").captions == [["3"]]
        assert CocoCaptions(karpathy_root, "test").captions == [["4"]]
        assert CocoCaptions(karpathy_root, "test")[0][1] == ["4"]

    def test_images_of_2017(self, karpathy_root):
        write_images(karpathy_root / "train2017", f"{1:012d}.jpg", f"{4:012d}.jpg")
        write_images(karpathy_root / "val2017", f"{2:012d}.jpg", f"{3:012d}.jpg")
        data = CocoCaptions(karpathy_root, "all")
        assert [path.relative_to(karpathy_root).as_posix() for path in data.paths] == [
            f"train2017/{1:012d}.jpg", f"val2017/{2:012d}.jpg", f"val2017/{3:012d}.jpg", f"train2017/{4:012d}.jpg",
        ]  # fmt: skip

    def test_takes_precedence_over_official_files(self, root, entries):
        entries[0] |= {"filepath": "train2017", "filename": f"{9:012d}.jpg"}
        (root / "annotations" / "dataset_coco.json").write_text(json.dumps({"images": entries[:1]}))
        assert CocoCaptions(root).captions == [["1"]]

    def test_missing_images_raise(self, karpathy_root):
        with pytest.raises(DataError, match="2 of the 2 images"):
            CocoCaptions(karpathy_root)


def test_folder_without_captions_raises(tmp_path):
    with pytest.raises(DataError, match=r"holds no captions_train2017\.json"):
        CocoCaptions(tmp_path)
    with pytest.raises(FileNotFoundError, match="does not exist"):
        CocoCaptions(tmp_path / "no")


def test_open_data_recognises_it(root):
    assert isinstance(open_data(root, "val"), CocoCaptions)
