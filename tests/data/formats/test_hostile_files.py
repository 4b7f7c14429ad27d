"""Files that are not files, that nest without end, and small files that become large: one error, in little memory."""

import contextlib
import io
import json
import os
import tarfile
from pathlib import Path

import pytest

from miniclip.data import Captions, open_data
from miniclip.data.formats import json_lines, parquet, text_files
from miniclip.data.formats.coco import CocoCaptions
from miniclip.data.formats.flickr30k import Flickr30k
from miniclip.data.formats.tars import MAX_HEADER_BYTES, list_members
from miniclip.data.formats.webdataset import WebDataset
from miniclip.errors import DataError
from tests.data.formats.helpers import error_of, skipped
from tests.data.formats.test_webdataset import encode_image, grey, sample, write_tar

DEEP = ["[" * 1000, '{"a":' * 100_000, "[" * 970 + "]" * 970]


# JSON


@pytest.mark.parametrize("text", DEEP, ids=range(3))
def test_deep_json_is_refused(tmp_path, text):
    readers = {
        "a.json": lambda path: Captions.from_jsonl(path),
        "a.jsonl": lambda path: Captions.from_jsonl(path),
        "dataset_flickr30k.json": lambda path: Flickr30k(path.parent),
        "dataset_coco.json": lambda path: CocoCaptions(path.parent),
        "captions_train2017.json": lambda path: CocoCaptions(path.parent),
    }
    for name, reader in readers.items():
        path = tmp_path / name.replace(".", "-") / name
        path.parent.mkdir()
        path.write_text(text)
        assert name in error_of(reader, path)


def test_deep_json_in_a_tar_is_refused(tmp_path):
    members = [("x.png", encode_image()), ("x.json", DEEP[1].encode())]
    path = write_tar(tmp_path / "a.tar", [*sample(0), *members])
    assert "x.json: is not JSON: its brackets are nested too deeply" in error_of(WebDataset, path, "all")


@pytest.mark.parametrize("ids", [[1, "1", None], ["b", [2], {"c": 3}]], ids=["mixed", "lists"])
def test_coco_with_numbers_of_other_types(tmp_path, ids):
    images = [{"file_name": f"{position}.jpg", "id": image_id} for position, image_id in enumerate(ids)]
    annotations = [{"image_id": 1, "id": number, "caption": "a"} for number in ids]
    content = {"images": images, "annotations": annotations}
    (tmp_path / "captions_train2017.json").write_text(json.dumps(content))
    assert "captions_train2017.json" in error_of(CocoCaptions, tmp_path)


# Large


def test_a_table_that_is_too_large_is_refused(tmp_path, monkeypatch):
    path = tmp_path / "a.csv"
    with path.open("wb") as file:
        file.truncate(text_files.MAX_TEXT_BYTES + 1)  # takes no space
    message = error_of(Captions.from_csv, path)
    assert message.startswith(f"{path}: 4.0 GiB long, expected at most 4.0 GiB; split it into several files")
    monkeypatch.setattr(text_files, "read_limited", raise_memory_error)
    assert "does not fit in this machine's memory" in error_of(Captions.from_jsonl, path)


def raise_memory_error(*_):
    raise MemoryError


def test_a_long_line_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(json_lines, "MAX_LINE_LENGTH", 500)
    good = json.dumps({"image": "a.png", "caption": "a dog"})
    (tmp_path / "a.png").write_bytes(encode_image())
    path = tmp_path / "a.jsonl"
    path.write_text(f"{good}\n{json.dumps({'image': 'a.png', 'caption': ['x'] * 200})}\n")
    assert "line 2: has 1,031 characters, more than 500" in error_of(Captions.from_jsonl, path)
    assert skipped(Captions.from_jsonl, path).captions == [["a dog"]]


# Paths that lead to something else


def make_pipe(path):
    path.unlink(missing_ok=True)
    os.mkfifo(path)


def make_endless(path):
    path.unlink(missing_ok=True)
    path.symlink_to("/dev/zero")


def make_blocking(path):
    if not Path("/proc/kmsg").exists():
        pytest.skip("a file of Linux")
    path.unlink(missing_ok=True)
    path.symlink_to("/proc/kmsg")


def make_folder(path):
    path.unlink(missing_ok=True)
    path.mkdir()


SPECIAL = [make_pipe, make_endless, make_blocking, make_folder]


@pytest.mark.parametrize("make", SPECIAL, ids=["pipe", "device", "kernel", "folder"])
@pytest.mark.parametrize("name", ["a.csv", "a.tsv", "a.jsonl", "a.json", "a.parquet"])
def test_a_table_that_is_not_a_file_is_refused(tmp_path, name, make):
    path = tmp_path / name
    make(path)
    reader = {".parquet": Captions.from_parquet, ".csv": Captions.from_csv, ".tsv": Captions.from_csv}
    with pytest.raises((FileNotFoundError, DataError)) as error:
        reader.get(path.suffix, Captions.from_jsonl)(path)
    assert str(path) in str(error.value)
    with pytest.raises((FileNotFoundError, DataError)):
        open_data(path)


@pytest.mark.parametrize("make", SPECIAL, ids=["pipe", "device", "kernel", "folder"])
def test_captions_and_shards_that_are_not_files_are_refused(tmp_path, make):
    (tmp_path / "a.png").write_bytes(encode_image())
    make(tmp_path / "a.txt")
    with pytest.raises((DataError, FileNotFoundError), match=str(tmp_path)):
        Captions.from_folder(tmp_path)
    make(tmp_path / "a.tar")
    with pytest.raises((DataError, FileNotFoundError)):
        WebDataset([tmp_path / "a.tar"])


@pytest.mark.parametrize("make", SPECIAL, ids=["pipe", "device", "kernel", "folder"])
def test_images_that_are_not_files_are_refused(tmp_path, make):
    make(tmp_path / "a.png")
    data = Captions([tmp_path / "a.png"], [["a dog"]])
    with pytest.raises(DataError, match=r"a\.png"):
        data[0]
    with pytest.raises((DataError, OSError), match=r"a\.png"):
        data.encoded(0)


# Tars


def header(kind, size, name="x"):
    info = tarfile.TarInfo(name)
    info.type, info.size = kind, size
    return info.tobuf(tarfile.GNU_FORMAT)


HEADERS = [
    tarfile.GNUTYPE_LONGNAME,
    tarfile.GNUTYPE_LONGLINK,
    tarfile.XHDTYPE,
    tarfile.XGLTYPE,
    tarfile.SOLARIS_XHDTYPE,
]


@pytest.mark.parametrize("size", [MAX_HEADER_BYTES + 1, 700 * 10**9], ids=["64 KiB", "700 GB"])
@pytest.mark.parametrize("kind", HEADERS, ids=["L", "K", "x", "g", "X"])
def test_a_header_that_announces_much_is_refused(tmp_path, kind, size):
    good = write_tar(tmp_path / "a.tar", [*sample(0), *sample(1)])
    content = good.read_bytes()
    good.write_bytes(content[:4096] + header(kind, size) + content[4096:])
    assert f"a.tar: has a damaged header (of {-(-size // 512) * 512:,} bytes) after 001.txt" in error_of(
        WebDataset, good, "all"
    )
    data = skipped(WebDataset, good, "all", max_skip_fraction=1.0)
    assert [grey(image) for image, _ in data] == [0, 1]
    first = tmp_path / "b.tar"
    first.write_bytes(header(kind, size) + content)
    assert str(list_members(first).problem).startswith("has a damaged header (of ")


def test_a_chain_of_headers_is_refused(tmp_path):
    path = tmp_path / "a.tar"
    path.write_bytes((header(tarfile.GNUTYPE_LONGNAME, 2) + b"a".ljust(512, b"\0")) * 5000)
    assert "has a damaged header" in error_of(WebDataset, path, "all")


def test_an_image_in_a_tar_that_is_too_large_is_refused(tmp_path):
    path = tmp_path / "a.tar"
    text = io.BytesIO()
    with tarfile.open(fileobj=text, mode="w") as tar:
        info = tarfile.TarInfo("0.txt")
        info.size = 1
        tar.addfile(info, io.BytesIO(b"a"))
    with path.open("wb") as file:
        file.write(text.getvalue()[:1024] + header(tarfile.REGTYPE, 3 << 30, "0.jpg"))
        file.truncate(1536 + (3 << 30) + 1024)  # takes no space
    (image,) = WebDataset(path, "all").paths
    with pytest.raises(DataError, match=r"0\.jpg: has 3,221,225,472 bytes, more than 1,073,741,824"):
        image.read()


# Parquet


@pytest.fixture
def write(tmp_path):
    pa = pytest.importorskip("pyarrow")
    from pyarrow import parquet as writer

    def write(**columns):
        path = tmp_path / "a.parquet"
        writer.write_table(pa.table(columns), path, compression="zstd")
        return path

    return write


def test_a_long_caption_in_a_small_parquet_file_is_refused(write):
    path = write(image=["a.png"], caption=["x" * (parquet.MAX_UNCHECKED_BYTES + (1 << 20))])
    assert path.stat().st_size < 100_000
    assert "a row group has 68,1" in error_of(Captions.from_parquet, path)


def test_one_caption_in_many_rows_is_refused(write, monkeypatch):
    monkeypatch.setattr(parquet, "MAX_UNCHECKED_BYTES", 1 << 20)
    path = write(image=["a.png"] * 2000, caption=["x" * 60_000] * 2000)  # 120 MB, written once
    assert path.stat().st_size < 10_000
    assert "in the column 'caption': it is much larger than text, or than its file" in error_of(
        Captions.from_parquet, path
    )


def test_many_rows_in_a_small_parquet_file_are_refused(write, monkeypatch):
    monkeypatch.setattr(parquet, "MAX_UNCHECKED_ROWS", 1000)
    path = write(image=["a.png"] * 100_000, caption=["a"] * 100_000)
    assert "has 100,000 rows in " in error_of(Captions.from_parquet, path)


def test_a_large_image_in_a_small_parquet_file_is_refused(write):
    path = write(image=[bytes(parquet.MAX_UNCHECKED_BYTES + (1 << 20))], caption=["a"])
    assert "a row group has 68,1" in error_of(Captions.from_parquet, path)


def read_damaged(folder):
    (path,) = folder.glob("*.parquet")
    content = path.read_bytes()
    footer = len(content) - 8 - int.from_bytes(content[-8:-4], "little")
    for position in range(footer, footer + 180):
        path.write_bytes(content[:position] + bytes([content[position] ^ 0x40]) + content[position + 1 :])
        with contextlib.suppress(DataError):
            Captions.from_parquet(path)


def test_damaged_metadata_of_parquet_does_not_end_the_process(write, ranks, tmp_path):
    """pyarrow ends the process if damaged metadata of a column are read through its own interface."""
    for name in "ab":
        (tmp_path / f"{name}.png").touch()
    write(image=["a.png", "b.png"], caption=[["one", "two"], ["three"]])
    ranks(1, read_damaged, tmp_path)


def test_image_paths_in_parquet_that_are_not_files(write, tmp_path):
    make_pipe(tmp_path / "pipe.png")
    make_endless(tmp_path / "zero.png")
    images = [{"bytes": None, "path": name} for name in ("pipe.png", "zero.png", "/proc/kmsg", "a\0b", ".")]
    data = Captions.from_parquet(write(image=images, caption=["a"] * len(images)))
    for index in range(len(images)):
        assert f"row {index}: the path" in error_of(data.__getitem__, index)
