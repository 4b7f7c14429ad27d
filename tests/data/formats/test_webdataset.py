"""Tar shards: search, listing, reading and splits; errors name the member; webdataset reads the same."""

import gzip
import io
import json
import multiprocessing
import os
import pickle
import re
import tarfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from PIL import Image

from miniclip import DataError
from miniclip.data import open_data
from miniclip.data.formats.shards import find_shards, is_tar
from miniclip.data.formats.tars import list_members
from miniclip.data.formats.webdataset import WebDataset


def encode_image(number=0, kind="PNG"):
    """Encode an image of 4 x 3 pixels, grey of level `number`."""
    file = io.BytesIO()
    Image.new("RGB", (4, 3), (number % 256,) * 3).save(file, kind)
    return file.getvalue()


def grey(image):
    return image.getpixel((0, 0))[0]


def write_tar(path, members, **options):
    """Write a tar of (name, content) pairs or of TarInfo objects without content."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", **options) as tar:
        for member in members:
            if isinstance(member, tarfile.TarInfo):
                tar.addfile(member)
                continue
            info = tarfile.TarInfo(member[0])
            info.size = len(member[1])
            tar.addfile(info, io.BytesIO(member[1]))
    return path


def sample(number, text=None):
    return [(f"{number:03}.png", encode_image(number)), (f"{number:03}.txt", (text or f"number {number}").encode())]


def write_shards(folder, shards=3, each=4, pattern="{:04}.tar"):
    numbers = iter(range(shards * each))
    return [
        write_tar(folder / pattern.format(k), [m for _ in range(each) for m in sample(next(numbers))])
        for k in range(shards)
    ]


def open_all(*arguments, **options):
    return WebDataset(*arguments, split="all", **options)


def open_members(tmp_path, *members, **options):
    return open_all(write_tar(tmp_path / "a.tar", members), **options)


class TestReading:
    def test_images_keep_their_captions(self, tmp_path):
        write_shards(tmp_path)
        data = open_all(tmp_path)
        assert len(data) == 12
        assert data.captions == [[f"number {k}"] for k in range(12)]
        for k in (7, 0, 11, -1):
            image, captions = data[k]
            assert (image.mode, image.size) == ("RGB", (4, 3))
            assert captions == [f"number {grey(image)}"]
        assert data.name(4) == f"{tmp_path / '0001.tar'}: 004.png"
        assert repr(data) == "WebDataset(12 images, 12 captions)"
        with pytest.raises(IndexError):
            data[12]

    def test_jpeg_is_reduced(self, tmp_path):
        file = io.BytesIO()
        Image.new("RGB", (64, 64), "white").save(file, "JPEG")
        data = open_members(tmp_path, ("0.jpg", file.getvalue()), ("0.txt", b"white"))
        assert data.image(0, 16).size == (16, 16)

    @pytest.mark.parametrize(
        ("content", "captions"),
        [
            ({"caption": "a dog"}, ["a dog"]),
            ({"captions": ["a dog", " a cat "]}, ["a dog", "a cat"]),
            ({"text": ["a dog"], "url": "x"}, ["a dog"]),
            ({"captions": [], "caption": "a dog"}, ["a dog"]),
            ({"captions": ["a dog", "", None]}, ["a dog"]),
            ({"caption": "['a dog' 'a cat']"}, ["a dog", "a cat"]),
            ({"caption": "[photo]"}, ["[photo]"]),
            ({"caption": 1984}, ["1984"]),
            ({"caption": None, "key": "000"}, ["from the text"]),
        ],
    )
    def test_captions_from_json(self, tmp_path, content, captions):
        members = [("0.jpg", encode_image()), ("0.json", json.dumps(content).encode()), ("0.txt", b"from the text")]
        assert open_members(tmp_path, *members).captions == [captions]

    def test_caption_key(self, tmp_path):
        members = [("0.jpg", encode_image()), ("0.json", b'{"caption": "no", "blip": {"short": "a dog"}}')]
        assert open_members(tmp_path, *members, caption="blip.short").captions == [["a dog"]]
        with pytest.raises(DataError, match=r"0\.jpg: has no caption that is not blank.*under blip\.long"):
            open_members(tmp_path, *members, caption="blip.long")

    def test_each_line_of_txt_is_a_caption(self, tmp_path):
        assert open_members(
            tmp_path, ("0.jpg", encode_image()), ("0.txt", "\ufeffa dog\r\n\nein Bär\n".encode())
        ).captions == [["a dog", "ein Bär"]]

    def test_members_need_not_be_adjacent(self, tmp_path):
        members = [*(sample(k)[0] for k in range(5)), *(sample(k)[1] for k in reversed(range(5)))]
        data = open_members(tmp_path, *members)
        assert [(grey(image), captions) for image, captions in data] == [(k, [f"number {k}"]) for k in range(5)]

    def test_several_images_need_a_choice(self, tmp_path):
        members = [("0.left.jpg", encode_image(1)), ("0.right.jpg", encode_image(2)), ("0.txt", b"a pair")]
        with pytest.raises(DataError, match=r"0\.left\.jpg: is one of several images"):
            open_members(tmp_path, *members)
        assert grey(open_members(tmp_path, *members, image="right.jpg")[0][0]) == 2

    @pytest.mark.parametrize("names", [("left.jpg", "right.jpg"), ("jpg", "png"), ("input.jpg", "target.webp")])
    def test_the_advice_for_several_images_works(self, tmp_path, names):
        members = [(f"0.{name}", encode_image(k + 1)) for k, name in enumerate(names)]
        path = write_tar(tmp_path / "a.tar", [*members, ("0.txt", b"a pair")])
        with pytest.raises(DataError, match="one of several images") as caught:
            open_data(path, "all")
        chosen = re.search(r"image='([^']*)', after a path (\?image=\S*)", str(caught.value))
        for data in (open_all(path, image=chosen[1]), open_data(f"{path}{chosen[2]}", "all")):
            assert [grey(image) for image, _ in data] == [1]
        assert grey(open_data(f"{path}?image={names[1]}", "all")[0][0]) == 2

    @pytest.mark.parametrize(
        ("image", "text"),
        [("input.jpg", "outputs.txt"), ("image.jpg", "caption.txt"), ("jpg", "caption"), ("jpg", "blip.json")],
    )
    def test_members_with_longer_extensions(self, tmp_path, image, text):
        content = b'{"caption": "a dog"}' if text.endswith("json") else b"a dog"
        path = write_tar(tmp_path / "a.tar", [(f"0.{image}", encode_image(1)), (f"0.{text}", content)])
        for data in (open_all(path), open_all(path, image=image, caption=text), open_all(path, caption=f".{text}")):
            assert [(grey(image), captions) for image, captions in data] == [(1, ["a dog"])]
        for query in ("", f"?image={image}", f"?caption={text}", f"?image={image}&caption={text}"):
            assert open_data(f"{path}{query}", "all").captions == [["a dog"]]
            assert open_data(f"{tmp_path}{query}", "all").captions == [["a dog"]]

    def test_several_texts_need_a_choice(self, tmp_path):
        members = [("0.jpg", encode_image(1)), ("0.prompt.txt", b"a prompt"), ("0.answer.txt", b"an answer")]
        path = write_tar(tmp_path / "a.tar", members)
        with pytest.raises(DataError, match=r"0\.prompt\.txt: is one of several texts") as caught:
            open_all(path)
        chosen = re.search(r"caption='([^']*)', after a path (\?caption=\S*)", str(caught.value))
        assert open_all(path, caption=chosen[1]).captions == open_data(f"{path}{chosen[2]}", "all").captions
        assert open_all(path, caption="answer.txt").captions == [["an answer"]]

    def test_json_key_after_a_path(self, tmp_path):
        members = [("0.jpg", encode_image()), ("0.json", b'{"caption": "no", "blip": {"short": "a dog"}}')]
        path = write_tar(tmp_path / "a.tar", members)
        assert open_data(f"{path}?caption=blip.short", "all").captions == [["a dog"]]

    def test_a_chosen_member_that_is_missing_lists_the_others(self, tmp_path):
        members = [("0.left.jpg", encode_image()), ("0.txt", b"a dog")]
        path = write_tar(tmp_path / "a.tar", members)
        with pytest.raises(DataError, match=r"no image beside it.*\.right\.jpg; the sample has 0\.left\.jpg, 0\.txt"):
            open_all(path, image="right.jpg")
        with pytest.raises(DataError, match=r"under outputs\.txt; the sample has 0\.left\.jpg, 0\.cls.*\?caption="):
            open_members(tmp_path, ("0.left.jpg", encode_image()), ("0.cls", b"3"), caption="outputs.txt")

    @pytest.mark.parametrize("text", ["txt", "caption", "outputs.txt"])
    def test_a_chosen_name_does_not_fall_back_to_another_text(self, tmp_path, text):
        path = write_tar(tmp_path / "a.tar", [("0.jpg", encode_image()), (f"0.{text}", b"a dog")])
        with pytest.raises(DataError, match=r"under alt; the sample has 0\.jpg"):
            open_data(f"{path}?caption=alt", "all")

    def test_mask_beside_image_is_ignored(self, tmp_path):
        assert (
            grey(
                open_members(tmp_path, ("0.seg.png", encode_image(9)), ("0.JPG", encode_image(1)), ("0.txt", b"a"))[0][
                    0
                ]
            )
            == 1
        )

    def test_other_members_are_ignored(self, tmp_path):
        others = [
            ("checksums.md5", b"x"),
            ("LICENSE", b"x"),
            ("__meta__/a.json", b"{}"),
            ("._000.png", b"x"),
            ("0.cls", b"3"),
        ]
        folder = tarfile.TarInfo("sub")
        folder.type = tarfile.DIRTYPE
        assert len(open_members(tmp_path, folder, *others, *sample(0))) == 1

    @pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
    def test_member_names(self, tmp_path, form):
        names = ["a b/ü/1.2/0", "long" * 20 + "/" + "x" * 90, *([] if form == tarfile.USTAR_FORMAT else ["日本" * 60])]
        members = [(f"{n}.{end}", data) for n in names for end, data in (("png", encode_image()), ("txt", b"a"))]
        # the key ends at the first dot of the file name; "1.2" is a folder
        data = open_all(write_tar(tmp_path / "spaces and ü" / "a.tar", members, format=form))
        assert [data.name(k).split(": ", 1)[1] for k in range(len(data))] == [f"{name}.png" for name in names]

    def test_member_names_are_never_paths(self, tmp_path):
        names = ["/etc/passwd", "../../up", "a/../../b", "C:\\windows\\c"]
        write_tar(
            tmp_path / "in" / "a.tar",
            [(f"{n}.{e}", d) for n in names for e, d in (("png", encode_image()), ("txt", b"x"))],
        )
        data = open_all(tmp_path / "in" / "a.tar")
        assert [data[k][1] for k in range(4)] == [["x"]] * 4
        assert [p.name for p in tmp_path.rglob("*")] == ["in", "a.tar"]

    def test_works_in_threads_and_forks_and_pickled(self, tmp_path):
        write_shards(tmp_path, shards=2, each=20)
        data = pickle.loads(pickle.dumps(open_all(tmp_path)))
        with ThreadPoolExecutor(8) as pool:
            assert list(pool.map(lambda k: grey(data[k % 40][0]), range(200))) == [k % 40 for k in range(200)]
        if "fork" in multiprocessing.get_all_start_methods():
            read, write = os.pipe()
            children = []
            for _ in range(2):
                child = os.fork()
                if not child:
                    right = all(grey(data[k][0]) == k for k in range(40))
                    os.write(write, b"1" if right else b"0")
                    os._exit(0)
                children.append(child)
            for child in children:
                os.waitpid(child, 0)
            assert os.read(read, 2) == b"11"


class TestFindShards:
    def test_find_shards(self, tmp_path, monkeypatch):
        paths = write_shards(tmp_path / "in [brackets] {and} braces")
        folder = paths[0].parent
        assert find_shards(folder) == find_shards(str(folder)) == paths
        assert find_shards(paths[::-1]) == paths[::-1]
        assert find_shards([paths[0], *paths]) == paths
        assert find_shards(folder / "0001.tar") == [paths[1]]
        monkeypatch.chdir(folder)
        paths = [Path(path.name) for path in paths]
        for spec in (
            "{0000..0002}.tar",
            "{0000,0001,0002}.tar",
            "000{0..2}.tar",
            "*.tar",
            "000[0-2].tar",
            "{0000..0001}.tar",
        ):
            assert find_shards(spec) == paths[: 2 if "0001}" in spec else 3]
        assert find_shards("{0000..0005}.tar")[-1] == Path("0005.tar")  # missing; the reader reports it

    @pytest.mark.parametrize("spec", ["none.tar", "none-{0..3}.tar", "no*.tar", "."])
    def test_missing_shards_raise(self, tmp_path, monkeypatch, spec):
        monkeypatch.chdir(tmp_path)
        with pytest.raises(FileNotFoundError, match="no such file; give a "):
            WebDataset(spec)

    @pytest.mark.parametrize("spec", ["https://a.b/{0..3}.tar", "s3://b/0.tar", "pipe:cat 0.tar"])
    def test_urls_raise(self, spec):
        with pytest.raises(ValueError, match="read from disk; download"):
            WebDataset(spec)

    def test_backward_range_raises(self):
        with pytest.raises(ValueError, match="backwards"):
            WebDataset("{9..3}.tar")

    @pytest.mark.parametrize("folder", ["data", "train"])
    def test_tars_in_a_folder_of_a_clone(self, tmp_path, folder):
        write_shards(tmp_path / folder, 1, 10)
        (tmp_path / "README.md").touch()
        assert len(open_data(tmp_path, "all")) == 10

    def test_is_tar(self, tmp_path):
        assert is_tar("a.tar")
        assert is_tar(Path("a-{0..9}.TAR"))
        assert is_tar("shards/*.tar.gz")
        assert is_tar(["a.tar", "b.tar"])
        assert not is_tar("photos")
        assert not is_tar("photos.csv")
        assert not is_tar([])
        assert not is_tar(tmp_path)
        write_shards(tmp_path)
        assert is_tar(tmp_path)


class TestSplit:
    def test_split_is_drawn_by_hash(self, tmp_path):
        write_shards(tmp_path, shards=5, each=8)
        parts = {split: WebDataset(tmp_path, split) for split in ("train", "val", "test")}
        assert {split: len(part) for split, part in parts.items()} == {"train": 32, "val": 4, "test": 4}
        assert sorted(c for part in parts.values() for c in part.captions) == sorted(open_all(tmp_path).captions)
        assert WebDataset(tmp_path, "val", seed=1).captions != parts["val"].captions

    def test_moved_dataset_keeps_its_split(self, tmp_path):
        write_shards(tmp_path / "a", shards=5, each=8)
        write_shards(tmp_path / "b" / "c", shards=5, each=8)
        assert WebDataset(tmp_path / "a", "val").captions == WebDataset(str(tmp_path / "b/c/*.tar"), "val").captions

    @pytest.mark.parametrize("pattern", ["x-{}-{:02}.tar", "{}/{:02}.tar"])
    def test_split_from_shard_names(self, tmp_path, pattern):
        for number, split in enumerate(("train", "val", "test")):
            write_tar(tmp_path / pattern.format(split, 0), [*sample(number), *sample(number + 10)])
        for number, split in enumerate(("train", "val", "test")):
            data = WebDataset(str(tmp_path / ("*.tar" if pattern[0] == "x" else "*/*.tar")), split)
            assert data.captions == [[f"number {number}"], [f"number {number + 10}"]]

    def test_only_shards_of_the_split_are_read(self, tmp_path):
        write_tar(tmp_path / "train.tar", sample(0))
        write_tar(tmp_path / "val.tar", sample(1)).write_bytes(b"broken")
        assert len(WebDataset(tmp_path, "train")) == 1

    def test_shards_of_one_split_are_split_by_hash(self, tmp_path):
        write_shards(tmp_path, shards=2, each=10, pattern="train-{}.tar")
        assert [len(WebDataset(tmp_path, split)) for split in ("train", "val", "test")] == [16, 2, 2]

    def test_unknown_split_raises(self, tmp_path):
        write_shards(tmp_path)
        with pytest.raises(ValueError, match="no split 'dev'"):
            WebDataset(tmp_path, "dev")


def special(name, kind, **values):
    info = tarfile.TarInfo(name)
    info.type = kind
    for key, value in values.items():
        setattr(info, key, value)
    return info


# Bad samples, each between two good ones: members and error message.
SAMPLES = {
    "no caption": ([("x.png", encode_image())], r"x\.png: has no caption"),
    "blank": ([("x.png", encode_image()), ("x.txt", b" \n ")], r"x\.png: has no caption"),
    "no image": ([("x.txt", b"alone")], r"x\.txt: has no image beside it"),
    "unknown image format": ([("x.heix", b"?"), ("x.txt", b"a")], r"x\.txt: has no image beside it"),
    "twice": ([("x.png", encode_image(1)), ("x.txt", b"a"), ("x.png", encode_image(2))], r"x\.png: exists twice"),
    "link": ([special("x.png", tarfile.LNKTYPE, linkname="000.png"), ("x.txt", b"a")], "is a link to 000"),
    "symlink": ([special("x.png", tarfile.SYMTYPE, linkname="/etc/passwd"), ("x.txt", b"a")], "is a link to /etc"),
    "device": ([special("x.png", tarfile.CHRTYPE), ("x.txt", b"a")], r"x\.png: is not a regular file"),
    "pipe": ([special("x.png", tarfile.FIFOTYPE), ("x.txt", b"a")], r"x\.png: is not a regular file"),
    "json": ([("x.png", encode_image()), ("x.json", b"{")], r"x\.json: is not JSON"),
    "deep json": ([("x.png", encode_image()), ("x.json", b"[" * 200_000)], r"x\.json: is not JSON"),
    "list": ([("x.png", encode_image()), ("x.json", b'["a"]')], r"x\.json: is JSON, but a list"),
    "object": ([("x.png", encode_image()), ("x.json", b'{"caption": {"en": "a"}}')], r"x\.png: the caption is"),
    "megabytes": ([("x.png", encode_image()), ("x.txt", b"a" * 2_000_000)], r"x\.txt: has 2,000,000 bytes"),
    "long": ([("x.png", encode_image()), ("x.txt", b"a" * 200_000)], r"x\.png: a caption has 200,000 characters"),
    "Latin-1": ([("x.png", encode_image()), ("x.txt", b"caf\xe9")], r"caption byte b'\\xe9' is not UTF-8"),
    "UTF-16": ([("x.png", encode_image()), ("x.txt", "a dog".encode("utf-16-le"))], r"x\.png: the caption holds a NUL"),
}  # fmt: skip


@pytest.mark.parametrize("case", SAMPLES)
def test_bad_sample_raises_or_is_skipped(tmp_path, case):
    members, message = SAMPLES[case]
    path = write_tar(tmp_path / "a.tar", [*sample(0), *members, *sample(1)])
    with pytest.raises(DataError, match=message) as caught:
        open_all(path)
    assert str(caught.value).startswith(f"{path}: x.")
    with pytest.warns(UserWarning, match=message) as warned:
        data = open_all(path, on_error="skip", max_skip_fraction=0.5)
    assert len(warned) == len(data.skip_log) == 1
    assert [(grey(image), captions) for image, captions in data] == [(0, ["number 0"]), (1, ["number 1"])]


def cut(path, size):
    path.write_bytes(path.read_bytes()[:size])


def damage(path, at):
    content = bytearray(path.read_bytes())
    content[at : at + 10] = b"\xff" * 10
    path.write_bytes(content)


# Damage to the second of three shards: the function that damages it, the error message, and the number of its four
# samples that are still read. A member takes 1,024 bytes (a header and a block): samples begin at 0, 2048, 4096 and
# 6144, and the end is at 8192.
SHARDS = {
    "missing": (Path.unlink, "the file does not exist", 0),
    "empty": (lambda path: cut(path, 0), "is not a tar file", 0),
    "text": (lambda path: path.write_bytes(b"<html>" * 1000), "is not a tar file", 0),
    "cut in a header": (lambda path: cut(path, 4096 + 100), r"is cut short after 005\.txt", 2),
    "cut in an image": (lambda path: cut(path, 4096 + 520), r"is cut short in 006\.png", 2),
    "cut inside a sample": (lambda path: cut(path, 4096 + 1024), r"is cut short after 006\.png", 2),
    "cut between samples": (lambda path: cut(path, 4096), r"is cut short after 005\.txt", 2),
    "without its end": (lambda path: cut(path, 8192), r"is cut short after 007\.txt", 4),
    "damaged header": (lambda path: damage(path, 4096), r"has a damaged header after 005\.txt", 2),
    "gzip": (lambda path: path.write_bytes(gzip.compress(path.read_bytes())), "is compressed with gzip", 0),
    "a pipe": (lambda path: (path.unlink(), os.mkfifo(path)), "is not a regular file", 0),
    "a link to itself": (lambda path: (path.unlink(), path.symlink_to(path)), "the file does not exist", 0),
}  # fmt: skip


@pytest.mark.parametrize("case", SHARDS)
def test_bad_shard_raises_or_is_skipped(tmp_path, case):
    damage_it, message, left = SHARDS[case]
    paths = write_shards(tmp_path)
    damage_it(paths[1])
    with pytest.raises(DataError, match=message) as caught:
        open_all(paths)
    assert str(caught.value).startswith(f"{paths[1]}: ")
    with pytest.warns(UserWarning, match=message):
        data = open_all(paths, on_error="skip", max_skip_fraction=0.5)
    assert len(data) == 8 + left
    for image, captions in data:
        assert captions == [f"number {grey(image)}"]
    with pytest.raises(DataError, match=r" cannot be used, more than 5\.0%"), pytest.warns(UserWarning, match=message):
        open_all(paths, on_error="skip")


class TestChanges:
    def test_rewritten_shard_raises(self, tmp_path):
        path = write_tar(tmp_path / "a.tar", [*sample(0), *sample(1)])
        data = open_all(path)
        write_tar(path, [*sample(1), *sample(0), *sample(2)])
        with pytest.raises(DataError, match="has changed since its members were listed"):
            data[0]

    def test_removed_shard_raises(self, tmp_path):
        path = write_tar(tmp_path / "a.tar", sample(0))
        data = open_all(path)
        path.unlink()
        with pytest.raises(DataError, match=r"a\.tar: 000\.png: cannot be read: no such file"):
            data[0]

    def test_invalid_image_raises(self, tmp_path):
        data = open_members(tmp_path, ("0.jpg", b"<html>"), ("0.txt", b"a"))
        with pytest.raises(DataError, match=r"a\.tar: 0\.jpg: cannot be read as an image"):
            data[0]


def test_list_members(tmp_path):
    path = write_tar(tmp_path / "a.tar", sample(7))
    listing = list_members(path)
    assert listing.problem is None
    assert [path.read_bytes()[m.offset :][: m.size] for m in listing.members] == [content for _, content in sample(7)]


@pytest.mark.peer
def test_webdataset_reads_the_same(tmp_path):
    peer = pytest.importorskip("webdataset")
    folder = tmp_path / "shards"
    numbers = iter(range(100))
    for k in range(3):
        members = []
        for _ in range(5):
            number = next(numbers)
            content = json.dumps({"caption": f"number {number}", "url": "x"}).encode()
            members += [(f"sub/{number:05}.jpg", encode_image(number, "JPEG")), (f"sub/{number:05}.json", content)]
        write_tar(folder / f"{k:03}.tar", members)
    data = open_all(f"{folder}/{{000..002}}.tar")
    expected = list(peer.WebDataset(f"{folder}/{{000..002}}.tar", shardshuffle=False))
    assert len(expected) == len(data) == 15
    for index, other in enumerate(expected):
        assert data.paths[index].read() == other["jpg"]
        assert data.captions[index] == [json.loads(other["json"])["caption"]]
        assert data.name(index).endswith(f": {other['__key__']}.jpg")


def test_reads_what_webdataset_writes(tmp_path):
    peer = pytest.importorskip("webdataset")
    with peer.TarWriter(str(tmp_path / "a.tar")) as writer:
        for k in range(3):
            writer.write(
                {"__key__": f"{k:06}", "png": Image.new("RGB", (2, 2), (k, k, k)), "json": {"captions": ["a", str(k)]}}
            )
    data = open_all(tmp_path / "a.tar")
    assert [(grey(image), captions) for image, captions in data] == [(k, ["a", str(k)]) for k in range(3)]
