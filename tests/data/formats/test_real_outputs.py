"""Folders and files as other tools write them: img2dataset, datasets, kohya, VizWiz, Roboflow, Kaggle, pandas."""

import io
import json
import tarfile

import numpy as np
import pytest
from PIL import Image

from miniclip.data import Captions, CocoCaptions, Flickr8k, Flickr30k, WebDataset, open_data
from miniclip.data.opening import parse_spec
from miniclip.errors import DataError
from tests.data.formats.helpers import error_of

COUNT = 6
GREYS = [20 * k for k in range(COUNT)]
CAPTIONS = [f"number {k}, and more" for k in range(COUNT)]


def encode(grey, kind="JPEG"):
    file = io.BytesIO()
    Image.new("RGB", (8, 6), (grey,) * 3).save(file, kind)
    return file.getvalue()


def write_images(folder, names=None):
    """Write image k in grey of level 20 k."""
    folder.mkdir(parents=True, exist_ok=True)
    for grey, name in zip(GREYS, names or [f"{k}.jpg" for k in range(COUNT)], strict=False):
        (folder / name).write_bytes(encode(grey))


def check(data, captions=None):
    """Check that every image has its own captions."""
    assert sorted(texts[0] for texts in data.captions) == sorted(captions or CAPTIONS)
    for image, texts in data:
        number = CAPTIONS.index(texts[0])
        assert abs(image.getpixel((4, 3))[0] - GREYS[number]) <= 3


class TestImg2dataset:
    """Files as img2dataset 1.45 writes them: its writer.py and downloader.py."""

    def metadata(self, number, failed=False):
        return {
            "url": f"https://example.org/{number}.jpg",
            "caption": CAPTIONS[number] if number < COUNT else "never downloaded",
            "key": f"{number:09}",
            "status": "failed_to_download" if failed else "success",
            "error_message": "HTTP Error 404: Not Found" if failed else None,
            "width": None if failed else 8,
            "height": None if failed else 6,
            "original_width": None if failed else 80,
            "original_height": None if failed else 60,
            "exif": "{}",
            "sha256": "0" * 64,
        }

    def write_metadata(self, root, **columns):
        pa = pytest.importorskip("pyarrow")
        from pyarrow import parquet

        rows = [self.metadata(k) for k in range(COUNT)] + [self.metadata(COUNT, failed=True)]
        table = {name: [row[name] for row in rows] for name in rows[0]}
        parquet.write_table(pa.table({**columns, **table}), root / "00000.parquet")
        (root / "00000_stats.json").write_text(json.dumps({"count": 7, "successes": 6, "failed_to_download": 1}))

    def test_files(self, tmp_path):
        (tmp_path / "00000").mkdir()
        for k in range(COUNT):
            stem = tmp_path / "00000" / f"{k:09}"
            stem.with_suffix(".jpg").write_bytes(encode(GREYS[k]))
            stem.with_suffix(".txt").write_text(CAPTIONS[k])
            stem.with_suffix(".json").write_text(json.dumps(self.metadata(k), indent=4))
        self.write_metadata(tmp_path)
        check(open_data(tmp_path, "all"))
        check(open_data(tmp_path / "00000", "all"))
        (tmp_path / "log.csv").write_text("time,message\n1,started\n")
        check(open_data(tmp_path, "all"))
        assert "URL" in error_of(open_data, f"{tmp_path}?layout=table", "all")

    def test_parquet(self, tmp_path):
        images = [*map(encode, GREYS), None]
        self.write_metadata(tmp_path, jpg=images, txt=[*CAPTIONS, None])
        check(open_data(tmp_path, "all"))
        check(open_data(tmp_path / "00000.parquet", "all"))
        check(Captions.from_parquet(tmp_path))

    def test_parquet_with_a_caption_that_is_skipped(self, tmp_path):
        texts = [CAPTIONS[0], "[stock photo]", *CAPTIONS[2:], None]
        self.write_metadata(tmp_path, jpg=[*map(encode, GREYS), None], txt=texts)
        data = Captions.from_parquet(tmp_path, caption="txt", on_error="skip", max_skip_fraction=0.5)
        check(data, [CAPTIONS[0], *CAPTIONS[2:]])
        assert len(data.skip_log) == 1

    def test_webdataset(self, tmp_path):
        with tarfile.open(tmp_path / "00000.tar", "w") as tar:
            for k in range(COUNT):
                members = (("jpg", encode(GREYS[k])), ("txt", CAPTIONS[k].encode()))
                for suffix, content in (*members, ("json", json.dumps(self.metadata(k)).encode())):
                    info = tarfile.TarInfo(f"{k:09}.{suffix}")
                    info.size = len(content)
                    tar.addfile(info, io.BytesIO(content))
        self.write_metadata(tmp_path)
        data = open_data(tmp_path, "all")
        assert isinstance(data, WebDataset)
        check(data)

    def test_table_of_urls(self, tmp_path):
        (tmp_path / "urls.csv").write_text("url,caption\nhttps://example.org/0.jpg,one\n")
        assert "download the images (for example with img2dataset)" in error_of(open_data, tmp_path)


def test_imagefolder_of_datasets(tmp_path):
    datasets = pytest.importorskip("datasets")
    for split, numbers in (("train", range(4)), ("test", range(4, 6))):
        write_images(tmp_path / split, [f"{k}.jpg" for k in range(COUNT)])
        for k in set(range(COUNT)) - set(numbers):
            (tmp_path / split / f"{k}.jpg").unlink()
        lines = [json.dumps({"file_name": f"{k}.jpg", "text": CAPTIONS[k]}) for k in numbers]
        (tmp_path / split / "metadata.jsonl").write_text("\n".join(lines))
    loaded = datasets.load_dataset("imagefolder", data_dir=str(tmp_path), cache_dir=str(tmp_path / ".cache"))
    check(open_data(tmp_path, "all"))
    assert [texts[0] for texts in open_data(tmp_path, "test").captions] == loaded["test"]["text"]
    loaded.save_to_disk(tmp_path / ".saved")
    check(open_data(tmp_path / ".saved", "all"))
    for file in (tmp_path / ".saved").rglob("*.arrow"):
        file.write_bytes(b"damaged")
    assert "begins with b'dama', and is not a complete Arrow file" in error_of(open_data, tmp_path / ".saved")


def test_clone_of_a_hub_repository(tmp_path):
    pytest.importorskip("pyarrow")
    datasets = pytest.importorskip("datasets")
    (tmp_path / "data").mkdir()
    images = [{"bytes": encode(grey), "path": f"{k}.jpg"} for k, grey in enumerate(GREYS)]
    features = datasets.Features({"image": datasets.Image(), "caption": datasets.Value("string")})
    dataset = datasets.Dataset.from_dict({"image": images, "caption": CAPTIONS}, features=features)
    dataset.to_parquet(tmp_path / "data" / "train-00000-of-00001.parquet")
    infos = {"default": {"description": "", "features": {"image": {"_type": "Image"}}, "splits": {"train": {}}}}
    for name in ("dataset_infos.json", "dataset_config.json", "dataset_info.json", "state.json"):
        (tmp_path / name).write_text(json.dumps(infos))
    (tmp_path / "README.md").write_text("---\nlicense: mit\n---\n")
    check(open_data(tmp_path, "all"))


class TestUnrelatedFiles:
    """Names of known layouts with another content."""

    def test_beside_image_and_text_pairs(self, tmp_path):
        write_images(tmp_path)
        for k in range(COUNT):
            (tmp_path / f"{k}.txt").write_text(CAPTIONS[k])
        (tmp_path / "results.csv").write_text("epoch,loss\n1,2.5\n")  # as ultralytics writes
        (tmp_path / "captions.txt").write_text("the captions are in the text files\n")
        (tmp_path / "dataset_infos.json").write_text("{}")
        (tmp_path / "captions_val2017.json").write_text('{"model": "x"}')
        (tmp_path / "state.json").write_text('{"step": 3}')
        (tmp_path / "log.csv").write_text("file,comment\nrun.py,started\n")
        with tarfile.open(tmp_path / "backup.tar", "w") as tar:
            tar.add(tmp_path / "0.jpg", "0.jpg")
        check(open_data(tmp_path, "all"))

    def test_beside_a_table(self, tmp_path):
        write_images(tmp_path / "images")
        rows = "".join(f'{k}.jpg,"{text}"\n' for k, text in enumerate(CAPTIONS))
        (tmp_path / "photos.csv").write_text(f"image,caption\n{rows}")
        (tmp_path / "log.csv").write_text("time,message\n1,started\n")
        (tmp_path / "config.json").write_text('{"text": "a.jpg", "layers": 3}')
        with tarfile.open(tmp_path / "images.tar", "w") as tar:
            tar.add(tmp_path / "images", "images")
        check(open_data(tmp_path, "all"))

    def test_a_compressed_archive_beside_flickr30k(self, tmp_path):
        names = [f"{k}.jpg" for k in range(COUNT)]
        write_images(tmp_path / "flickr30k-images", names)
        lines = [f"{name}#0\t{text}" for name, text in zip(names, CAPTIONS, strict=True)]
        (tmp_path / "results_20130124.token").write_text("\n".join(lines))
        (tmp_path / "flickr30k-images.tar.gz").write_bytes(b"\x1f\x8b" + bytes(100))
        check(open_data(tmp_path, "all"))

    def test_all_files_of_karpathys_zip(self, tmp_path):
        names = [f"{k}.jpg" for k in range(COUNT)]
        write_images(tmp_path / "images", names)
        (tmp_path / "results.csv").write_text(
            "image_name| comment_number| comment\n"
            + "".join(f"{n}| 0| {t}\n" for n, t in zip(names, CAPTIONS, strict=True))
        )
        entries = [{"filename": name, "split": "train", "sentences": [{"raw": "x"}]} for name in names]
        (tmp_path / "dataset_flickr30k.json").write_text(json.dumps({"images": entries}))
        coco = {
            "filepath": "val2014",
            "filename": "COCO_1.jpg",
            "split": "val",
            "sentences": [{"raw": "x"}],
            "cocoid": 1,
        }
        (tmp_path / "dataset_coco.json").write_text(json.dumps({"images": [coco]}))
        data = open_data(tmp_path, "all")
        assert isinstance(data, Flickr30k)
        check(data)

    def test_a_damaged_split_file_is_not_ignored(self, tmp_path):
        write_images(tmp_path / "images")
        (tmp_path / "results.csv").write_text("image_name| comment_number| comment\n0.jpg| 0| one\n")
        (tmp_path / "dataset_flickr30k.json").write_text('{"images": [')
        assert "dataset_flickr30k.json" in error_of(open_data, tmp_path)


def coco(names, texts, **more):
    images = [{"id": k, "file_name": name, "height": 6, "width": 8} for k, name in enumerate(names)]
    annotations = [{"id": 10 + k, "image_id": k, "caption": text, **more} for k, text in enumerate(texts)]
    return {"info": {"year": "2023"}, "licenses": [], "categories": [], "images": images, "annotations": annotations}


class TestCocoFormat:
    @pytest.mark.parametrize("place", [".", "images", "train"])
    @pytest.mark.parametrize("name", ["annotations.json", "my captions.json"])
    def test_any_name(self, tmp_path, name, place):
        names = [f"{k}.jpg" for k in range(COUNT)]
        write_images(tmp_path / place, names)
        (tmp_path / name).write_text(json.dumps(coco(names, CAPTIONS)))
        if place != "train":
            check(open_data(tmp_path / name, "all"))
            check(open_data(tmp_path, "all"))
            check(Captions.from_jsonl(tmp_path / name))
        else:
            (tmp_path / name).rename(tmp_path / "captions_train.json")
            check(open_data(tmp_path / "captions_train.json", "all"))

    def test_vizwiz(self, tmp_path):
        for split, numbers in (("train", range(4)), ("val", range(4, 6))):
            names = [f"VizWiz_{split}_{k:08}.jpg" for k in numbers]
            (tmp_path / split).mkdir()
            for k, name in zip(numbers, names, strict=True):
                (tmp_path / split / name).write_bytes(encode(GREYS[k]))
            content = coco(names, [CAPTIONS[k] for k in numbers], is_precanned=False, is_rejected=False)
            (tmp_path / "annotations").mkdir(exist_ok=True)
            (tmp_path / "annotations" / f"{split}.json").write_text(json.dumps(content))
        (tmp_path / "annotations" / "test.json").write_text(
            json.dumps({"info": {}, "images": coco(["t.jpg"], [])["images"]})
        )
        check(open_data(tmp_path, "all"))
        assert [len(open_data(tmp_path, split)) for split in ("train", "val")] == [4, 2]
        check(open_data(tmp_path / "annotations" / "val.json", "all"), CAPTIONS[4:])

    def test_roboflow(self, tmp_path):
        for split, numbers in (("train", range(4)), ("valid", range(4, 6))):
            names = [f"{k}_jpg.rf.0123.jpg" for k in numbers]
            (tmp_path / split).mkdir()
            for k, name in zip(numbers, names, strict=True):
                (tmp_path / split / name).write_bytes(encode(GREYS[k]))
            content = coco(names, [CAPTIONS[k] for k in numbers], bbox=[0, 0, 1, 1], category_id=1)
            (tmp_path / split / "_annotations.coco.json").write_text(json.dumps(content))
        (tmp_path / "README.roboflow.txt").write_text("exported by Roboflow")
        check(open_data(tmp_path, "all"))
        assert [len(open_data(tmp_path, split)) for split in ("train", "val")] == [4, 2]
        check(open_data(tmp_path / "valid" / "_annotations.coco.json", "all"), CAPTIONS[4:])

    def test_boxes_without_captions(self, tmp_path):
        write_images(tmp_path)
        content = coco(["0.jpg"], ["x"], bbox=[0, 0, 1, 1])
        del content["annotations"][0]["caption"]
        (tmp_path / "_annotations.coco.json").write_text(json.dumps(content))
        message = error_of(open_data, tmp_path / "_annotations.coco.json")
        assert "have no 'caption' ('id', 'image_id', 'bbox')" in message
        assert "no text files" in error_of(open_data, tmp_path)

    def test_ids_must_be_certain(self, tmp_path):
        write_images(tmp_path)
        content = coco(["0.jpg", "1.jpg"], CAPTIONS[:2])
        content["images"][1]["id"] = 0
        (tmp_path / "a.json").write_text(json.dumps(content))
        assert "images[1]: 1.jpg has the id 0 of 0.jpg" in error_of(open_data, tmp_path / "a.json", "all")
        content["images"][1]["id"] = "1"
        (tmp_path / "a.json").write_text(json.dumps(content))
        assert "annotations of 1: 1 values of 'image_id'" in error_of(open_data, tmp_path / "a.json", "all")
        content = coco(["0.jpg"], CAPTIONS[:2])
        (tmp_path / "a.json").write_text(json.dumps(content))
        assert "annotations of 1: 1 values of 'image_id'" in error_of(open_data, tmp_path / "a.json", "all")


class TestKaggle:
    HEADER = "image_name| comment_number| comment\n"
    BROKEN = "2199200615_e9eb2a4ff3.jpg| 4   A dog runs across the grass .\n"

    @pytest.fixture
    def root(self, tmp_path):
        name = "2199200615_e9eb2a4ff3.jpg"
        write_images(tmp_path / "flickr30k_images", [name, "b.jpg", "c.jpg", "d.jpg"])
        rows = [f"{name}| {k}| caption {k}\n" for k in range(4)] + [self.BROKEN]
        rows += [f"{other}.jpg| 0| {other}\n" for other in "bcd"]
        (tmp_path / "results.csv").write_text(self.HEADER + "".join(rows))
        return tmp_path

    def test_the_table_as_the_file(self, root):
        expected = Flickr30k(root, "all").captions
        assert expected[0] == [f"caption {k}" for k in range(4)] + ["A dog runs across the grass ."]
        assert Captions.from_csv(root / "results.csv").captions == expected
        data = open_data(root / "results.csv", "all")
        assert isinstance(data, Flickr30k)
        assert data.captions == expected
        (root / "results.csv").rename(root / "flickr.csv")
        assert open_data(root / "flickr.csv", "all").captions == expected

    def test_the_file_has_the_split_of_the_folder(self, root):
        entries = [
            {"filename": name, "split": split, "sentences": [{"raw": "x"}]}
            for name, split in (("b.jpg", "train"), ("c.jpg", "val"), ("d.jpg", "test"))
        ]
        (root / "dataset_flickr30k.json").write_text(json.dumps({"images": entries}))
        assert open_data(root / "results.csv", "val").captions == open_data(root, "val").captions == [["c"]]
        assert open_data(root / "dataset_flickr30k.json?layout=flickr30k", "val").captions == [["x"]]

    def test_token_files(self, root):
        text = "b.jpg#0\tone\nb.jpg#1\ttwo\nc.jpg#0\tthree\n"
        for name in ("results_20130124.token", "Flickr8k.token.txt", "captions.token"):
            (root / name).write_text(text)
            assert open_data(root / name, "all").captions == [["one", "two"], ["three"]]
        (root / "Flickr_8k.trainImages.txt").write_text("b.jpg\n")
        (root / "Flickr_8k.testImages.txt").write_text("c.jpg\n")
        for name in ("Flickr8k.token.txt", "captions.token"):
            assert open_data(root / name, "test").captions == [["three"]]

    def test_commas_under_the_usual_name(self, root):
        (root / "results.csv").write_text("image_name,comment_number,comment\nb.jpg,0,one\n")
        assert open_data(root, "all").captions == open_data(root / "results.csv", "all").captions == [["one"]]


class TestCaptionFiles:
    def test_caption_suffix(self, tmp_path):
        write_images(tmp_path)
        for k in range(COUNT):
            (tmp_path / f"{k}.caption").write_text(CAPTIONS[k])
        check(open_data(tmp_path, "all"))
        check(Captions.from_folder(tmp_path))

    def test_two_texts_must_agree(self, tmp_path):
        write_images(tmp_path, ["0.jpg"])
        (tmp_path / "0.caption").write_text("one\n")
        (tmp_path / "0.txt").write_text("one")
        assert open_data(tmp_path, "all").captions == [["one"]]
        (tmp_path / "0.txt").write_text("1girl, solo")
        message = error_of(open_data, tmp_path, "all")
        assert "0.jpg: has the texts 0.txt, 0.caption, which differ; keep one" in message


class TestJson:
    @pytest.mark.parametrize("suffix", [".json", ".jsonl"])
    @pytest.mark.parametrize(
        "write",
        [
            lambda names: dict(zip(names, CAPTIONS, strict=True)),
            lambda names: {name: [text] for name, text in zip(names, CAPTIONS, strict=True)},
            lambda names: {name: {"caption": text, "tags": "x"} for name, text in zip(names, CAPTIONS, strict=True)},
            lambda names: {str(k): {"image": name, "caption": CAPTIONS[k]} for k, name in enumerate(names)},
            lambda names: {"data": [{"image": name, "caption": CAPTIONS[k]} for k, name in enumerate(names)], "v": 1},
            lambda names: [{"image": name, "caption": CAPTIONS[k]} for k, name in enumerate(names)],
        ],
        ids=["text", "list", "kohya", "index", "wrapped", "records"],
    )
    def test_layouts(self, tmp_path, write, suffix):
        names = [f"{k}.jpg" for k in range(COUNT)]
        write_images(tmp_path / "images", names)
        path = tmp_path / f"captions{suffix}"
        path.write_text(json.dumps(write(names), indent=1))
        check(open_data(path, "all"))
        if suffix == ".json":
            check(open_data(tmp_path, "all"))

    def test_a_list_for_each_split(self, tmp_path):
        names = [f"{k}.jpg" for k in range(COUNT)]
        write_images(tmp_path, names)
        rows = [{"image": name, "caption": CAPTIONS[k]} for k, name in enumerate(names)]
        (tmp_path / "a.json").write_text(json.dumps({"train": rows[:4], "valid": rows[4:]}))
        assert [len(open_data(tmp_path / "a.json", split)) for split in ("train", "val")] == [4, 2]

    def test_an_equal_key_is_refused(self, tmp_path):
        write_images(tmp_path)
        (tmp_path / "a.json").write_text('{"0.jpg": "one", "0.jpg": "two"}')
        assert "the key '0.jpg' twice" in error_of(open_data, tmp_path / "a.json", "all")

    def test_pandas(self, tmp_path):
        pandas = pytest.importorskip("pandas")
        write_images(tmp_path)
        frame = pandas.DataFrame({"image": [f"{k}.jpg" for k in range(COUNT)], "caption": CAPTIONS})
        path = tmp_path / "frame.json"
        for orient in ("columns", "split", "table", "values"):
            frame.to_json(path, orient=orient)
            if orient == "table":
                check(open_data(path, "all"))
            else:
                assert 'orient="records"' in error_of(open_data, path, "all")
        frame.to_json(path, orient="records")  # the advice works
        check(open_data(path, "all"))
        frame.to_json(path, orient="index")
        check(open_data(path, "all"))
        frame.to_json(path, orient="records", lines=True)
        check(open_data(path, "all"))

    @pytest.mark.parametrize(
        "content", ["{}", "3", '"a.jpg"', "null", '{"a.jpg": 3}', '{"a": {"b": "c"}}', '{"a.jpg":']
    )
    def test_other_values_are_refused(self, tmp_path, content):
        (tmp_path / "a.json").write_text(content)
        assert "a.json" in error_of(open_data, tmp_path / "a.json", "all")


class TestPatterns:
    @pytest.mark.parametrize("pattern", ["part-*.csv", "part-{0..1}.csv", "part-{0,1}.csv", "*.csv"])
    def test_csv(self, tmp_path, pattern):
        write_images(tmp_path / "images")
        for part in range(2):
            rows = "".join(f'{k}.jpg,"{CAPTIONS[k]}"\n' for k in range(3 * part, 3 * part + 3))
            (tmp_path / f"part-{part}.csv").write_text(f"image,caption\n{rows}")
        check(open_data(f"{tmp_path}/{pattern}", "all"))
        check(open_data(f"{tmp_path}/{pattern}?image=image&caption=caption", "all"))

    @pytest.mark.parametrize("pattern", ["data/*.parquet", "**/*.parquet", "data/train-0000{0..1}-of-00002.parquet"])
    def test_parquet(self, tmp_path, pattern):
        pa = pytest.importorskip("pyarrow")
        from pyarrow import parquet

        (tmp_path / "data").mkdir()
        for part in range(2):
            numbers = range(3 * part, 3 * part + 3)
            table = pa.table({"image": [encode(GREYS[k]) for k in numbers], "text": [CAPTIONS[k] for k in numbers]})
            parquet.write_table(table, tmp_path / "data" / f"train-0000{part}-of-00002.parquet")
        check(open_data(f"{tmp_path}/{pattern}", "all"))

    def test_no_file(self, tmp_path):
        with pytest.raises(FileNotFoundError, match="no file has such a name"):
            open_data(f"{tmp_path}/*.csv")
        (tmp_path / "a.jpg").touch()
        with pytest.raises(DataError, match=r"found a file \.jpg"):
            open_data(f"{tmp_path}/*.jpg")


class TestForcedLayout:
    def test_it_is_taken(self, tmp_path):
        write_images(tmp_path)
        for k in range(COUNT):
            (tmp_path / f"{k}.txt").write_text(CAPTIONS[k])
        rows = "".join(f"{k}.jpg,other {k}\n" for k in range(COUNT))
        (tmp_path / "photos.csv").write_text(f"image,caption\n{rows}")
        assert open_data(f"{tmp_path}?layout=table", "all").captions[0] == ["other 0"]
        check(open_data(f"{tmp_path}?layout=folder", "all"))

    def test_every_layout_has_an_error_for_another_folder(self, tmp_path):
        from miniclip.data.opening import LAYOUTS

        (tmp_path / "a.doc").touch()
        for layout in LAYOUTS:
            with pytest.raises((DataError, FileNotFoundError)) as error:
                open_data(f"{tmp_path}?layout={layout}")
            assert str(tmp_path) in str(error.value)

    def test_unknown(self, tmp_path):
        with pytest.raises(ValueError, match="no layout 'folders'; did you mean 'folder'"):
            open_data(f"{tmp_path}?layout=folders")


class TestQuery:
    def test_several_captions(self):
        assert parse_spec("a.csv?caption=one&caption=two").columns.caption == ["one", "two"]

    @pytest.mark.parametrize("query", ["image=", "image=a&image=b", "caption=", "layout=folder&layout=table"])
    def test_wrong_values(self, query):
        with pytest.raises(ValueError, match="expected one name"):
            parse_spec(f"a.csv?{query}")

    def test_columns_of_a_layout_without_columns(self, tmp_path):
        write_images(tmp_path)
        for k in range(COUNT):
            (tmp_path / f"{k}.txt").write_text(CAPTIONS[k])
        with pytest.raises(ValueError, match="chooses nothing in the layout 'folder'"):
            open_data(f"{tmp_path}?caption=x&layout=folder")
        with pytest.raises(DataError, match="no dataset in a known layout"):
            open_data(f"{tmp_path}?caption=x")


def test_classes_take_the_folder_or_the_file(tmp_path):
    write_images(tmp_path)
    (tmp_path / "captions.txt").write_text("image,caption\n0.jpg,one\n")
    assert Flickr8k(tmp_path / "captions.txt", "all").captions == Flickr8k(tmp_path, "all").captions == [["one"]]
    with pytest.raises(FileNotFoundError, match=r"a file, not a folder.*Captions\.from_jsonl"):
        CocoCaptions(tmp_path / "captions.txt")


def test_images_without_captions(tmp_path):
    write_images(tmp_path / "cats")
    with pytest.raises(DataError, match=r"6 images and no text files beside them; write the captions of dog\.jpg"):
        open_data(tmp_path)
    (tmp_path / "captions.csv").write_text("image,caption\ncats/0.jpg,one\n")  # the advice works
    assert open_data(tmp_path, "all").captions == [["one"]]
    assert np.asarray(open_data(tmp_path, "all")[0][0]).shape == (6, 8, 3)
