"""Detection of layouts: each is recognised and split; other paths raise."""

import csv
import io
import json
import os
import shutil
import tarfile
from pathlib import Path

import pytest
from PIL import Image

from miniclip.cli import main
from miniclip.data import CachedDataset, Captions, Flickr8k, Flickr30k, Shapes, WebDataset, open_data
from miniclip.data.opening import parse_spec
from miniclip.errors import DataError

NAMES = [f"{k}.jpg" for k in range(20)]
CAPTIONS = {name: [f"caption {k} of {name}, and more" for k in range(2)] for name in NAMES}
SPLITS = {name: "train" if k < 16 else "val" if k < 18 else "test" for k, name in enumerate(NAMES)}


@pytest.fixture(scope="module")
def image_folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("images")
    for k, name in enumerate(NAMES):
        Image.new("RGB", (16, 12), (10 * k, 30, 30)).save(folder / name)
    return folder


def rows(*header: str, split: bool = False) -> list[tuple[str, ...]]:
    content = [(name, caption, SPLITS[name]) for name, captions in CAPTIONS.items() for caption in captions]
    return [header, *(row if split else row[:2] for row in content)]


def write_csv(path: Path, content: list, delimiter: str = ",") -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file, delimiter=delimiter).writerows(content)


def write_karpathy(path: Path) -> None:
    images = [
        {"filename": name, "split": SPLITS[name], "sentences": [{"raw": caption} for caption in captions]}
        for name, captions in CAPTIONS.items()
    ]
    path.write_text(json.dumps({"images": images}))


def kaggle_8k(root: Path) -> None:
    write_csv(root / "captions.txt", rows("image", "caption"))


def kaggle_30k(root: Path) -> None:
    lines = [f"{name}| {k}| {caption}" for name, texts in CAPTIONS.items() for k, caption in enumerate(texts)]
    (root / "results.csv").write_text("\n".join(["image_name| comment_number| comment", *lines]))


def kaggle_commas(root: Path) -> None:
    content = [(name, k, caption) for name, texts in CAPTIONS.items() for k, caption in enumerate(texts)]
    write_csv(root / "captions.txt", [("image_name", "comment_number", "comment"), *content])


def authors_8k(root: Path) -> None:
    lines = [f"{name}#{k}\t{caption}" for name, texts in CAPTIONS.items() for k, caption in enumerate(texts)]
    lines += [f"2258277193_586949ec62.jpg.1#{k}\tAn image that does not exist ." for k in range(5)]
    (root / "Flickr8k.token.txt").write_text("\n".join(lines) + "\n")
    for ending, split in (("trainImages", "train"), ("devImages", "val"), ("testImages", "test")):
        names = [name for name in NAMES if SPLITS[name] == split]
        (root / f"Flickr_8k.{ending}.txt").write_text("\n".join(names) + "\n")


def authors_30k(root: Path) -> None:
    lines = [f"{name}#{k}\t{caption}" for name, texts in CAPTIONS.items() for k, caption in enumerate(texts)]
    (root / "results_20130124.token").write_text("\n".join(reversed(lines)))


def hub_csv(root: Path) -> None:
    content = [
        (json.dumps(texts), json.dumps([1, 2]), SPLITS[name], name, k)
        for k, (name, texts) in enumerate(CAPTIONS.items())
    ]
    write_csv(root / "flickr_annotations_30k.csv", [("raw", "sentids", "split", "filename", "img_id"), *content])


def hub_parquet(root: Path) -> None:
    pa = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    images = [{"bytes": (root / "images" / name).read_bytes(), "path": name} for name in NAMES]
    columns = {
        "image": images,
        "caption": list(CAPTIONS.values()),
        "filename": NAMES,
        "img_id": list(map(str, range(20))),
    }
    (root / "data").mkdir()
    for k in range(2):
        part = {name: column[10 * k : 10 * k + 10] for name, column in columns.items()}
        parquet.write_table(pa.table(part), root / "data" / f"test-0000{k}-of-00002.parquet", row_group_size=4)
    shutil.rmtree(root / "images")


def karpathy_8k(root: Path) -> None:
    write_karpathy(root / "dataset_flickr8k.json")


def karpathy_30k(root: Path) -> None:
    write_karpathy(root / "dataset_flickr30k.json")


def one_table(root: Path) -> None:
    write_csv(root / "my photos.tsv", rows("filepath", "title"), "\t")


def one_table_for_each_split(root: Path) -> None:
    content = rows("file_name", "text", split=True)
    for split, word in (("train", "train"), ("val", "valid"), ("test", "test")):
        write_csv(root / f"{word}.csv", [content[0], *(row[:2] for row in content[1:] if row[2] == split)])


def tables_in_split_folders(root: Path) -> None:
    for split, word in (("train", "train"), ("val", "validation"), ("test", "test")):
        (root / word).mkdir()
        names = [name for name in NAMES if SPLITS[name] == split]
        lines = [json.dumps({"file_name": name, "text": CAPTIONS[name]}) for name in names]
        (root / word / "metadata.jsonl").write_text("\n".join(lines))
        for name in names:
            (root / "images" / name).rename(root / word / name)


def text_files(root: Path) -> None:
    for name, captions in CAPTIONS.items():
        (root / "images" / name).with_suffix(".txt").write_text("\n".join(captions))


def shards(root: Path) -> None:
    for split in ("train", "val", "test"):
        with tarfile.open(root / f"{split}-0000.tar", "w") as tar:
            for name in (name for name in NAMES if SPLITS[name] == split):
                tar.add(root / "images" / name, name)
                text = "\n".join(CAPTIONS[name]).encode()
                member = tarfile.TarInfo(Path(name).with_suffix(".txt").name)
                member.size = len(text)
                tar.addfile(member, io.BytesIO(text))


@pytest.mark.parametrize(
    ("make", "kind", "own_split"),
    [
        (kaggle_8k, Flickr30k, False),
        (kaggle_30k, Flickr30k, False),
        (kaggle_commas, Flickr30k, False),
        (authors_8k, Flickr8k, True),
        (authors_30k, Flickr30k, False),
        (hub_csv, Flickr30k, True),
        (hub_parquet, Captions, False),
        (karpathy_8k, Flickr8k, True),
        (karpathy_30k, Flickr30k, True),
        (one_table, Captions, False),
        (one_table_for_each_split, Captions, True),
        (tables_in_split_folders, Captions, True),
        (text_files, Captions, False),
        (shards, WebDataset, True),
    ],
)
def test_layout_is_recognised_and_split(make, kind, own_split, image_folder, tmp_path):
    root = tmp_path / "ein Ordner"
    shutil.copytree(image_folder, root / "images")
    make(root)
    parts = {split: open_data(root, split) for split in ("train", "val", "test")}
    assert type(parts["train"]) is kind
    assert [len(part) for part in parts.values()] == [16, 2, 2]
    split_of = {}
    for split, data in parts.items():
        for k, captions in enumerate(data.captions):
            name = captions[0].removeprefix("caption 0 of ").split(",")[0]
            split_of[name] = split
            assert captions == CAPTIONS[name]
            assert abs(data[k][0].getpixel((8, 6))[0] - 10 * NAMES.index(name)) < 6  # the right image
    assert set(split_of) == set(NAMES)
    assert (split_of == SPLITS) == own_split
    assert ("the dataset's own" in parts["train"].about) == own_split
    assert len(open_data(root, "all")) == 20


def test_cached_dataset(image_folder, tmp_path):
    shutil.copytree(image_folder, tmp_path / "dataset" / "images")
    kaggle_30k(tmp_path / "dataset")
    assert main(["data", "cache", str(tmp_path / "dataset"), str(tmp_path / "out"), "--image-size", "16"]) == 0
    data = open_data(tmp_path / "out", "val")
    assert isinstance(data, CachedDataset)
    assert data.captions == open_data(tmp_path / "dataset", "val").captions


def test_karpathys_split_of_parquet(image_folder, tmp_path):
    shutil.copytree(image_folder, tmp_path / "images")
    hub_parquet(tmp_path)
    write_karpathy(tmp_path / "dataset_flickr30k.json")
    data = Flickr30k(tmp_path, "test")
    assert data.captions == [CAPTIONS[name] for name in NAMES if SPLITS[name] == "test"]
    assert data[0][0].size == (16, 12)
    assert Flickr30k(tmp_path, "val").captions == open_data(tmp_path, "val").captions


class TestTables:
    @pytest.mark.parametrize("suffix", [".csv", ".tsv", ".txt", ".jsonl", ".json", ".parquet"])
    def test_single_table(self, image_folder, tmp_path, suffix):
        path = tmp_path / f"t{suffix}"
        if suffix == ".parquet":
            pa = pytest.importorskip("pyarrow")
            from pyarrow import parquet

            table = pa.table(
                {"image": [str(image_folder / name) for name in NAMES], "caption": list(CAPTIONS.values())}
            )
            parquet.write_table(table, path)
        elif suffix in {".jsonl", ".json"}:
            objects = [{"image": str(image_folder / name), "caption": texts} for name, texts in CAPTIONS.items()]
            path.write_text(json.dumps(objects) if suffix == ".json" else "\n".join(map(json.dumps, objects)))
        else:
            write_csv(
                path,
                [(str(image_folder / row[0]), row[1]) if k else row for k, row in enumerate(rows("image", "caption"))],
            )
        assert [len(open_data(path, split)) for split in ("train", "val", "test", "all")] == [16, 2, 2, 20]

    def test_columns_after_a_question_mark(self, image_folder, tmp_path):
        write_csv(
            tmp_path / "t.csv",
            [(str(image_folder / a), b) if k else (a, b) for k, (a, b) in enumerate(rows("bild", "was es zeigt"))],
        )
        with pytest.raises(DataError, match="found the columns 'bild', 'was es zeigt'"):
            open_data(tmp_path / "t.csv")
        assert len(open_data(f"{tmp_path}/t.csv?image=bild&caption=was es zeigt")) == 16
        assert len(open_data(f"{tmp_path}/t.csv?image=bild&caption=was+es+zeigt")) == 16
        with pytest.raises(
            ValueError, match="unknown picture; after \\? expected image=, caption=, group= and layout="
        ):
            open_data(f"{tmp_path}/t.csv?picture=bild")
        assert parse_spec("t.csv?caption=a&caption=b").columns.caption == ["a", "b"]
        with pytest.raises(ValueError, match="found image=a and image=b; expected one name"):
            parse_spec("t.csv?image=a&image=b")

    def test_question_mark_in_a_file_name(self, tmp_path):
        (tmp_path / "why?a=b.csv").touch()
        assert parse_spec(tmp_path / "why?a=b.csv").path == tmp_path / "why?a=b.csv"
        assert parse_spec("who?.csv").path == Path("who?.csv")


class TestErrors:
    def test_missing_path(self, tmp_path):
        with pytest.raises(FileNotFoundError, match="does not exist; give a folder, a table"):
            open_data(tmp_path / "none", "train")

    def test_impossible_path(self, tmp_path):
        (tmp_path / "loop").symlink_to(tmp_path / "loop")
        (tmp_path / "file").touch()
        for path in (tmp_path / "loop", tmp_path / ("x" * 300), tmp_path / "file" / "below", f"{tmp_path}/\0"):
            with pytest.raises(FileNotFoundError, match=r"cannot be opened|does not exist") as error:
                open_data(path)
            assert "Errno" not in str(error.value)

    def test_unknown_folder_lists_known_layouts(self, tmp_path):
        (tmp_path / "notes.doc").touch()
        with pytest.raises(DataError) as error:
            open_data(tmp_path)
        for name in (
            tmp_path,
            "results.csv",
            "captions_train2017.json",
            "parquet",
            ".jsonl",
            "tar",
            ".txt files beside",
        ):
            assert str(name) in str(error.value)
        assert "\n" not in str(error.value)

    def test_unknown_suffix(self, tmp_path):
        (tmp_path / "t.xlsx").touch()
        with pytest.raises(DataError, match=r"found a file \.xlsx; expected \.csv"):
            open_data(tmp_path / "t.xlsx")

    @pytest.mark.parametrize("spec", ["https://example.org/a.tar", "s3://bucket/photos.csv"])
    def test_url(self, spec):
        with pytest.raises(ValueError, match="read from disk; download them") as error:
            open_data(spec)
        assert spec in str(error.value)

    def test_several_tables(self, tmp_path):
        for name in ("a.csv", "b.csv"):
            (tmp_path / name).write_text("image,caption\n")
        with pytest.raises(DataError, match=r"2 tables \(a.csv, b.csv\); give one of them"):
            open_data(tmp_path)

    def test_unknown_split_of_shapes(self):
        with pytest.raises(ValueError, match="train, val, test"):
            open_data("shapes", "dev")


class TestArguments:
    def test_shapes_by_name_or_by_path(self, tmp_path, image_folder, monkeypatch):
        assert isinstance(open_data("shapes", "val"), Shapes)
        shutil.copytree(image_folder, tmp_path / "shapes" / "images")
        kaggle_30k(tmp_path / "shapes")
        monkeypatch.chdir(tmp_path)
        for spec in ("./shapes", Path("shapes"), tmp_path / "shapes"):
            assert isinstance(open_data(spec, "all"), Flickr30k)

    def test_seed_is_passed_on(self, tmp_path, image_folder):
        assert open_data("shapes", "val", seed=1).captions != open_data("shapes", "val", seed=2).captions
        shutil.copytree(image_folder, tmp_path / "images")
        kaggle_30k(tmp_path)
        assert open_data(tmp_path, "val", seed=1).captions != open_data(tmp_path, "val", seed=2).captions

    def test_on_error_is_passed_on(self, tmp_path, image_folder):
        shutil.copytree(image_folder, tmp_path / "images")
        kaggle_30k(tmp_path)
        (tmp_path / "images" / "3.jpg").unlink()
        with pytest.raises(DataError, match=r"3\.jpg"):
            open_data(tmp_path, "all")
        with pytest.warns(UserWarning, match=r"3\.jpg"):
            assert len(open_data(tmp_path, "all", on_error="skip")) == 19


def test_training_evaluation_and_resuming_on_a_spreadsheet(image_folder, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(image_folder, tmp_path / "images")
    write_csv(tmp_path / "photos.csv", rows("bild", "text"))
    spec = "photos.csv?image=bild&caption=text"
    common = ["--batch-size", "8", "--precision", "float32", "--device", "cpu"]
    assert main(["train", "--data", spec, "--max-steps", "1", "--epochs", "2", *common]) == 0
    run = tmp_path / "runs" / "photos"
    assert run.is_dir()
    monkeypatch.chdir(tmp_path.parent)  # a run can be resumed and evaluated from any folder
    assert main(["train", "--resume", str(run)]) == 0
    assert main(["eval", str(run)]) == 0
    assert "2 images, 4 captions" in capsys.readouterr().out
    assert main(["eval", str(run), "--data", f"{tmp_path}/{spec}", "--split", "test"]) == 0
    (tmp_path / "photos.csv").write_text((tmp_path / "photos.csv").read_text().replace("caption 1", "another"))
    assert main(["train", "--resume", str(run)]) == 2
    assert "--allow-changes" in capsys.readouterr().err


def test_evaluation_skips_what_the_run_skipped(image_folder, tmp_path, capsys):
    shutil.copytree(image_folder, tmp_path / "images")
    content = rows("image", "caption", split=True)
    write_csv(tmp_path / "photos.csv", [("image", "caption", "split"), *content[1:], ("9.jpg", "\0", "train")])
    common = ["--run-dir", str(tmp_path / "run"), "--max-steps", "1", "--batch-size", "8", "--device", "cpu"]
    assert main(["train", "--data", str(tmp_path / "photos.csv"), *common]) == 2
    assert "line 42: the caption holds a NUL byte" in capsys.readouterr().err
    with pytest.warns(UserWarning, match="NUL"):
        assert main(["train", "--data", str(tmp_path / "photos.csv"), "--on-error", "skip", *common]) == 0
    with pytest.warns(UserWarning, match="NUL"):
        assert main(["eval", str(tmp_path / "run")]) == 0
    with pytest.warns(UserWarning, match="NUL"):
        assert main(["train", "--resume", str(tmp_path / "run")]) == 0


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_a_pipe_is_named(tmp_path):
    os.mkfifo(tmp_path / "table.csv")
    with pytest.raises(FileNotFoundError, match=r"table\.csv: a named pipe; expected a regular file"):
        open_data(tmp_path / "table.csv")
