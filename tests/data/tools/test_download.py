"""Well-known datasets: their instructions, and downloads from a Hub server on this machine."""

import io
import shutil
import time
import zipfile

import pytest
from huggingface_hub import constants
from PIL import Image

from miniclip import DataError, cli
from miniclip.data import open_data
from miniclip.data.tools.download import TEMPORARY_FOLDER, _unpack, download
from miniclip.data.tools.known_datasets import KNOWN_DATASETS, instructions, known_dataset
from miniclip.errors import CheckpointError

REPO = "datasets/org/flickr"
CSV, ZIP = "flickr_annotations_30k.csv", "flickr30k-images.zip"
NAMES = [f"{k}.jpg" for k in range(20)]


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch):
    monkeypatch.setattr(time, "sleep", lambda _: None)


def encoded_image(number):
    file = io.BytesIO()
    Image.new("RGB", (4, 4), (number, 0, 0)).save(file, "PNG")
    return file.getvalue()


def archive(names, folder="flickr30k-images/"):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as packed:
        for number, name in enumerate(names):
            packed.writestr(f"{folder}{name}", encoded_image(number))
        packed.writestr("__MACOSX/._x", b"")
    return file.getvalue()


def table():
    splits = ["test"] + ["train"] * 19
    rows = [f'"[""a dog"", ""image {k}""]","[0, 1]",{splits[k]},{name},{k}' for k, name in enumerate(NAMES)]
    return "\n".join(["raw,sentids,split,filename,img_id", *rows]).encode()


@pytest.fixture
def server(hub_server, monkeypatch):
    """A Hub server with a small dataset in the layout of Flickr30k's copy."""
    hub_server.repos[REPO] = {CSV: table(), ZIP: archive(NAMES), "README.md": b"# a dataset"}
    small = KNOWN_DATASETS["flickr30k"]._replace(repo="org/flickr", revision="main", gigabytes=1e-6)
    monkeypatch.setitem(KNOWN_DATASETS, "flickr30k", small)
    return hub_server


def downloads(server):
    return [request for request in server.requests if request.startswith("GET /storage")]


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def whole(folder):
    data = open_data(folder, "all")
    assert len(data) == 20
    assert data.captions[7] == ["a dog", "image 7"]
    assert data[7][0].getpixel((0, 0)) == (7, 0, 0)
    assert names(folder) == ["flickr30k-images", CSV]
    return True


def quiet(folder, name="flickr30k"):
    return download(name, folder, agree=True, log=lambda _: None)


def test_download_unpack_and_read(server, tmp_path):
    folder = quiet(tmp_path / "my datasets" / "ü")
    assert whole(folder)
    assert len(open_data(folder, "test")) == 1


def test_existing_files_are_not_downloaded_again(server, tmp_path):
    quiet(tmp_path)
    server.requests.clear()
    messages = []
    download("flickr30k", tmp_path, agree=True, log=messages.append)
    assert server.requests == []
    assert "already" in messages[0]
    shutil.rmtree(tmp_path / "flickr30k-images")
    (tmp_path / CSV).write_bytes(table() + b"\n")  # changed by the user
    quiet(tmp_path)
    assert (tmp_path / CSV).read_bytes() == table() + b"\n"
    assert len(downloads(server)) == 1


def test_an_interrupted_download_is_resumed(server, tmp_path, monkeypatch):
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 500)
    server.cut[ZIP] = 1_000
    try:
        quiet(tmp_path)
    except ConnectionError:  # huggingface_hub 1.0 resumes only in the next call
        quiet(tmp_path)
    assert whole(tmp_path)
    assert "bytes=1000-" in server.ranges  # the files are fetched side by side, in any order


def test_a_download_after_a_network_failure(server, tmp_path, monkeypatch):
    server.error = 503
    with pytest.raises(ConnectionError, match="503"):
        quiet(tmp_path)
    server.error = None
    assert whole(quiet(tmp_path))


def test_the_first_file_is_kept_if_the_second_fails(server, tmp_path):
    server.forged[ZIP] = b"x" * len(server.repos[REPO][ZIP])
    with pytest.raises(CheckpointError, match="damaged during the download: its SHA-256 is"):
        quiet(tmp_path)
    assert names(tmp_path) == [TEMPORARY_FOLDER]
    server.forged.clear()
    server.requests.clear()
    assert whole(quiet(tmp_path))
    assert not [request for request in server.requests if request == f"GET /{REPO}/resolve/main/{CSV}"]


def test_offline(server, tmp_path):
    server.close()
    with pytest.raises(ConnectionError, match="cannot be reached"):
        quiet(tmp_path)
    assert names(tmp_path) in ([], [TEMPORARY_FOLDER])


def test_a_damaged_archive_is_refused(server, tmp_path):
    server.repos[REPO][ZIP] = b"not a zip"
    with pytest.raises(DataError, match="cannot be unpacked"):
        quiet(tmp_path)
    assert names(tmp_path) == [TEMPORARY_FOLDER, CSV]


def test_archive_names_stay_inside_the_folder(server, tmp_path):
    server.repos[REPO][ZIP] = archive([*NAMES, "../../../out.jpg", "/etc/out.jpg"])
    quiet(tmp_path / "a" / "b")
    assert not list(tmp_path.glob("*.jpg"))
    assert names(tmp_path) == ["a"]
    assert names(tmp_path / "a") == ["b"]


def test_an_archive_without_a_folder(server, tmp_path):
    server.repos[REPO][ZIP] = archive(NAMES, folder="")
    quiet(tmp_path)
    assert len(open_data(tmp_path, "all")) == 20


def test_a_disk_that_is_too_small(server, tmp_path, monkeypatch):
    monkeypatch.setitem(KNOWN_DATASETS, "flickr30k", KNOWN_DATASETS["flickr30k"]._replace(gigabytes=1e9))
    with pytest.raises(OSError, match=r"GB free, expected 2000000000\.0"):
        quiet(tmp_path / "new")
    assert server.requests == []
    assert not (tmp_path / "new").exists()


def test_a_disk_that_fills_up_during_unpacking(server, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(zipfile.ZipFile, "extractall", full)
        with pytest.raises(OSError, match="No space left"):
            quiet(tmp_path)
    assert names(tmp_path) == [TEMPORARY_FOLDER, CSV]
    server.requests.clear()
    assert whole(quiet(tmp_path))
    assert downloads(server) == []


def test_a_zip_that_is_larger_than_the_disk(tmp_path, monkeypatch):
    file = tmp_path / "a.zip"
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as packed:
        packed.writestr("zeros.jpg", bytes(1 << 20))
    usage = shutil.disk_usage(tmp_path)._replace(free=1_000_000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    with pytest.raises(OSError, match=r"has 0\.0 GB free, expected 0\.0"):
        _unpack(file, tmp_path / "a")
    assert names(tmp_path) == ["a.zip"]


def test_a_disk_without_links(server, tmp_path, monkeypatch):
    monkeypatch.setattr("os.link", lambda *_: (_ for _ in ()).throw(OSError(1, "not permitted")))
    assert whole(quiet(tmp_path))


def test_parquet_files_by_their_pattern(hub_server, tmp_path, monkeypatch):
    arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    files = {"README.md": b"x"}
    for split, count in (("train", 3), ("test", 1)):
        rows = {
            "image": [{"bytes": encoded_image(k), "path": f"{k}.jpg"} for k in range(count)],
            **{f"caption_{n}": [f"{split} {k} {n}" for k in range(count)] for n in range(2)},
        }
        file = io.BytesIO()
        parquet.write_table(arrow.table(rows), file)
        files[f"data/{split}-00000-of-00001-aa.parquet"] = file.getvalue()
    hub_server.repos["datasets/org/flickr"] = files
    monkeypatch.setitem(
        KNOWN_DATASETS, "flickr8k", KNOWN_DATASETS["flickr8k"]._replace(repo="org/flickr", gigabytes=1e-6)
    )
    data = open_data(quiet(tmp_path, "flickr8k"), "test")
    assert data.captions == [["test 0 0", "test 0 1"]]
    assert sorted(path.name for path in tmp_path.rglob("*.*")) == sorted(name[5:] for name in files if "/" in name)
    hub_server.requests.clear()
    quiet(tmp_path, "flickr8k")
    assert downloads(hub_server) == []


def test_nothing_is_downloaded_without_agree(server, tmp_path):
    with pytest.raises(ValueError, match=r"nothing was downloaded: flickr30k has terms.*non-commercial"):
        download("flickr30k", tmp_path / "new")
    assert server.requests == []
    assert not (tmp_path / "new").exists()


def test_a_file_instead_of_a_folder(server, tmp_path):
    (tmp_path / "a").write_bytes(b"")
    with pytest.raises(FileExistsError, match="is a file; give a folder"):
        quiet(tmp_path / "a")


@pytest.mark.parametrize("name", KNOWN_DATASETS)
def test_instructions_name_page_and_terms(name):
    text = instructions(name, "my/folder")
    assert "terms: " in text
    assert "https://" in text
    assert "FOLDER" not in text
    assert bool(known_dataset(name).repo) == ("--agree" in text)


def test_an_unknown_dataset_is_refused():
    with pytest.raises(ValueError, match="no dataset 'flicker30k' is known; did you mean 'flickr30k'"):
        known_dataset("flicker30k")


class TestCommand:
    def test_prints_the_list_and_the_instructions(self, capsys):
        assert cli.main(["data", "get"]) == 0
        listed = capsys.readouterr().out
        assert all(name in listed for name in KNOWN_DATASETS)
        assert cli.main(["data", "get", "coco", "here", "--agree"]) == 0
        assert "curl" in capsys.readouterr().out
        assert cli.main(["data", "get", "flickr30k", "here"]) == 0
        assert "miniclip data get flickr30k here --agree" in capsys.readouterr().out

    def test_downloads(self, server, tmp_path, capsys):
        folder = str(tmp_path / "new")
        assert cli.main(["data", "get", "flickr30k", folder, "--agree"]) == 0
        assert "20 images, 40 captions" in capsys.readouterr().out

    @pytest.mark.parametrize("arguments", [["mnist"], ["flickr30k", "--agree"]])
    def test_errors(self, capsys, arguments):
        assert cli.main(["data", "get", *arguments]) == 2
        assert capsys.readouterr().err.count("\n") == 1
