"""Embeddings in files equal those of encode_image and encode_text, in every format, for every source."""

import io
import json
import os
import shutil
import sys
import tracemalloc

import numpy as np
import pytest
import torch
from PIL import Image
from pyarrow import parquet
from safetensors import safe_open

import miniclip
from miniclip.data import Shapes
from miniclip.data.cache.writing import build_cache
from miniclip.errors import DataError, UnreadableError


def names_of(path):
    return json.loads(path.with_name(path.name + ".names.json").read_text(encoding="utf-8"))


def sorted_names(photos):
    return sorted(path.relative_to(photos).as_posix() for path in photos.rglob("*.*"))


def rows(path):
    """Embeddings and names of a file, read by the libraries of its format."""
    if path.suffix == ".npy":
        return np.load(path, mmap_mode="r"), names_of(path)
    if path.suffix == ".safetensors":
        with safe_open(path, "np") as file:
            return file.get_tensor("embeddings"), names_of(path)
    table = parquet.read_table(path)
    names = table.column(0).to_pylist()
    return np.stack(table["embedding"].to_numpy()) if names else None, names


class TestFormats:
    @pytest.mark.parametrize("dtype", ["float32", "float16"])
    @pytest.mark.parametrize("suffix", [".npy", ".parquet", ".safetensors"])
    def test_images(self, toy, photos, tmp_path, suffix, dtype):
        written = miniclip.embed(toy, photos, tmp_path / f"out{suffix}", dtype=dtype, batch_size=7)
        vectors, names = rows(written.path)
        assert names == sorted_names(photos)
        expected = toy.encode_image([photos / name for name in names], batch_size=7)
        assert vectors.dtype == dtype
        assert np.array_equal(vectors, expected.to(getattr(torch, dtype)).numpy())
        assert (written.count, written.embed_dim, written.skipped) == (30, 16, {})
        kept = {"out" + suffix} | ({f"out{suffix}.names.json"} if suffix != ".parquet" else set())
        assert {path.name for path in tmp_path.iterdir()} == kept

    def test_npy_is_mapped(self, toy, photos, tmp_path):
        miniclip.embed(toy, photos, tmp_path / "out.npy")
        assert isinstance(np.load(tmp_path / "out.npy", mmap_mode="r"), np.memmap)

    def test_columns_and_metadata(self, toy, photos, tmp_path):
        (tmp_path / "q.txt").write_text("a red ring\na blue heart\n", encoding="utf-8")
        miniclip.embed(toy, str(tmp_path / "q.txt"), tmp_path / "texts.parquet", normalize=False)
        miniclip.embed(toy, photos, tmp_path / "images.parquet")
        miniclip.embed(toy, photos, tmp_path / "images.safetensors")
        schema = parquet.read_schema(tmp_path / "texts.parquet")
        assert schema.names == ["text", "embedding"]
        assert schema.metadata[b"normalized"] == b"false"
        assert parquet.read_schema(tmp_path / "images.parquet").names == ["name", "embedding"]
        with safe_open(tmp_path / "images.safetensors", "np") as file:
            assert file.metadata()["normalized"] == "true"
            assert len(file.metadata()["model"]) == 64

    @pytest.mark.parametrize("suffix", [".parquet", ".safetensors"])
    def test_lists_of_another_file_stay(self, toy, photos, tmp_path, suffix):
        shutil.copytree(photos, tmp_path / "photos")
        (tmp_path / "photos" / "05.png").write_text("no image")
        with pytest.warns(UserWarning, match="skipped"):
            first = miniclip.embed(toy, tmp_path / "photos", tmp_path / "out.npy", on_error="skip")
        before = [first.names.read_bytes(), first.skipped_list.read_bytes()]
        miniclip.embed(toy, photos / "été 夏", tmp_path / f"out{suffix}", overwrite=True)
        assert [first.names.read_bytes(), first.skipped_list.read_bytes()] == before
        assert len(rows(tmp_path / f"out{suffix}")[1]) == 10

    def test_not_normalized(self, toy, photos, tmp_path):
        miniclip.embed(toy, photos, tmp_path / "out.npy", normalize=False)
        vectors, names = rows(tmp_path / "out.npy")
        assert np.array_equal(vectors, toy.encode_image([photos / name for name in names], normalize=False).numpy())
        assert not np.allclose(np.linalg.norm(vectors, axis=1), 1)


class TestImages:
    def test_dataset_with_paths(self, toy, photos, tmp_path):
        names = sorted_names(photos)[3:9]
        table = photos.parent / "some.csv"
        table.write_text("image,caption\n" + "".join(f"photos/{name},a dog\n" for name in names), encoding="utf-8")
        miniclip.embed(toy, str(table), tmp_path / "out.npy")
        vectors, found = rows(tmp_path / "out.npy")
        assert [name.endswith(expected) for name, expected in zip(found, names, strict=True)] == [True] * 6
        assert np.array_equal(vectors, toy.encode_image([photos / name for name in names]).numpy())

    def test_stored_images(self, toy, photos, tmp_path):
        import pyarrow

        content = [(photos / name).read_bytes() for name in sorted_names(photos)]
        table = pyarrow.table({"image": content, "caption": ["a dog"] * len(content)})
        parquet.write_table(table, tmp_path / "stored.parquet")
        miniclip.embed(toy, tmp_path / "stored.parquet", tmp_path / "out.npy")
        vectors, names = rows(tmp_path / "out.npy")
        assert names[7] == f"{tmp_path / 'stored.parquet'}, row 7"
        assert np.array_equal(vectors, toy.encode_image(content).numpy())

    def test_dataset_object(self, toy, tmp_path):
        data = Shapes("val", 5, image_size=16)
        miniclip.embed(toy, data, tmp_path / "out.npy")
        vectors, names = rows(tmp_path / "out.npy")
        assert names == [f"image {index}" for index in range(5)]
        assert np.array_equal(vectors, toy.encode_image([data[index][0] for index in range(5)]).numpy())

    def test_all_splits_of_a_cache_in_the_home_folder(self, toy, tmp_path, monkeypatch):
        monkeypatch.setenv("HOME", str(tmp_path))
        for split in ("val", "train"):
            build_cache(Shapes(split, 3, image_size=16), tmp_path / "cache", toy.preprocess, split=split)
        miniclip.embed(toy, "~/cache", tmp_path / "out.npy")
        vectors, _ = rows(tmp_path / "out.npy")
        images = [Shapes(split, 3, image_size=16)[index][0] for split in ("train", "val") for index in range(3)]
        assert np.array_equal(vectors, toy.encode_image(images).numpy())

    def test_unreadable_image_is_named(self, toy, photos, tmp_path):
        shutil.copytree(photos, tmp_path / "photos")
        (tmp_path / "photos" / "05.png").write_text("no image")
        with pytest.raises(UnreadableError, match=r"^05\.png: cannot be read as an image"):
            miniclip.embed(toy, tmp_path / "photos", tmp_path / "out.npy", batch_size=4)
        assert not (tmp_path / "out.npy").exists()

    def test_unreadable_image_is_left_out(self, toy, photos, tmp_path):
        shutil.copytree(photos, tmp_path / "photos")
        (tmp_path / "photos" / "05.png").write_text("no image")
        with pytest.warns(UserWarning, match=r"^05\.png: cannot be read as an image.*\(skipped\)"):
            written = miniclip.embed(toy, tmp_path / "photos", tmp_path / "out.npy", batch_size=4, on_error="skip")
        vectors, names = rows(tmp_path / "out.npy")
        assert names == [name for name in sorted_names(photos) if name != "05.png"]
        torch.testing.assert_close(torch.from_numpy(vectors.copy()), toy.encode_image([photos / n for n in names]))
        assert json.loads(written.skipped_list.read_text()).keys() == {"05.png"}

    def test_raw_file_is_refused(self, toy, photos, tmp_path):
        shutil.copytree(photos, tmp_path / "photos")
        Image.new("RGB", (8, 8)).save(tmp_path / "photos" / "camera.dng", "TIFF")  # the thumbnail inside
        with pytest.raises(UnreadableError, match=r"^camera\.dng: .* it is a RAW file of a camera"):
            miniclip.embed(toy, tmp_path / "photos", tmp_path / "out.npy")
        with pytest.raises(UnreadableError, match=r"camera\.dng: .* it is a RAW file of a camera"):
            toy.encode_image(tmp_path / "photos" / "camera.dng")

    def test_names_that_are_not_utf8(self, toy, photos, tmp_path):
        good, bad = (os.fsdecode(name) for name in (b"caf\xe9 \xc3\xa9.png", b"\\bad\xe9.png"))
        try:
            shutil.copytree(photos, tmp_path / "photos")
            shutil.copy(photos / "05.png", tmp_path / "photos" / good)
            (tmp_path / "photos" / bad).write_text("no image")
        except OSError:
            pytest.skip("the file system refuses the names")
        with pytest.warns(UserWarning, match="skipped"):
            written = miniclip.embed(toy, tmp_path / "photos", tmp_path / "out.npy", on_error="skip")
        assert good in names_of(written.path)
        assert json.loads(written.skipped_list.read_text(encoding="utf-8")).keys() == {bad}
        assert "é" in written.names.read_text(encoding="utf-8")

    def test_too_many_unreadable_images(self, toy, photos, tmp_path):
        shutil.copytree(photos, tmp_path / "photos")
        for name in ("04.jpg", "05.png"):
            (tmp_path / "photos" / name).write_text("no image")
        with pytest.warns(UserWarning, match="skipped"), pytest.raises(DataError, match=r"2 of 30 .* more than 5\.0%"):
            miniclip.embed(toy, tmp_path / "photos", tmp_path / "out.npy", on_error="skip")


class TestTexts:
    TEXTS = ("a red ring", "ein grüner Kreis 🌳", '  quoted, "twice" ')

    @pytest.mark.parametrize("kind", [".txt", ".csv", ".tsv", ".jsonl", ".parquet", "utf-16"])
    def test_sources(self, toy, tmp_path, kind):
        import csv

        import pyarrow

        path = tmp_path / ("t.txt" if kind == "utf-16" else f"t{kind}")
        if kind in (".txt", "utf-16"):
            path.write_text("".join(f"{text}\r\n" for text in self.TEXTS), kind if kind == "utf-16" else "utf-8-sig")
        elif kind == ".parquet":
            parquet.write_table(pyarrow.table({"n": range(3), "title": self.TEXTS}), path)
        elif kind == ".jsonl":
            path.write_text("".join(json.dumps({"title": text, "n": 1}) + "\n" for text in self.TEXTS))
        else:
            with path.open("w", encoding="utf-8", newline="") as file:
                writer = csv.writer(file, delimiter="\t" if kind == ".tsv" else ",")
                writer.writerows([("n", "title"), *((1, text) for text in self.TEXTS)])
        column = "" if path.suffix == ".txt" else "?text=title"
        miniclip.embed(toy, f"{path}{column}", tmp_path / "out.npy")
        vectors, names = rows(tmp_path / "out.npy")
        assert names == list(self.TEXTS)
        assert np.array_equal(vectors, toy.encode_text(names).numpy())

    def test_standard_input(self, toy, tmp_path, monkeypatch, small_chunks):
        texts = [f"text {number}" for number in range(10)]
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO("\n".join(texts).encode())))
        miniclip.embed(toy, "-", tmp_path / "out.npy")
        vectors, names = rows(tmp_path / "out.npy")
        assert names == texts
        torch.testing.assert_close(torch.from_numpy(vectors.copy()), toy.encode_text(texts), rtol=0, atol=1e-6)

    @pytest.mark.parametrize(
        ("name", "content", "words"),
        [
            ("t.txt", b"one\n\nthree\n", "line 2: is blank"),
            ("t.txt", b"one\ntwo \xff\n", "not UTF-8"),
            ("t.txt", b"\n\n", "holds no texts"),
            ("t.csv?text=b", b"a,b\n1,x\n2,\n", "row 2: is blank"),
            ("t.csv?text=b", b"a,b\n1,x\n2\n", "row 2: has 1 fields"),
            ("t.csv?text=c", b"a,b\n1,x\n", "no column 'c'"),
            ("t.jsonl?text=b", b'{"b": 3}\n', "line 1: holds a int, not a text"),
            ("t.jsonl?text=b", b'{"b": "x"}\n{"b": ""}\n', "line 2: is blank"),
            ("t.jsonl?text=b", b'{"b": "x"}\n{"b": null}\n\n', "line 2: is blank"),
            ("t.jsonl?text=b", b'{"b": \n', "line 1: cannot be parsed as JSON"),
            ("t.xml?text=b", b"<b/>", "found a file .xml"),
            ("t.csv?text=a&caption=b", b"a,b\n", "expected one column"),
            ("captions.txt", b"image,caption\na.jpg,a dog\n", "a table of image captions"),
        ],
    )
    def test_damaged_sources_are_refused_before_work(self, toy, tmp_path, monkeypatch, name, content, words):
        (tmp_path / name.partition("?")[0]).write_bytes(content)
        monkeypatch.setattr(type(toy), "tokenizer", None)
        with pytest.raises(ValueError, match=words):
            miniclip.embed(toy, f"{tmp_path}/{name}", tmp_path / "out.npy")

    def test_blank_texts_are_left_out(self, toy, tmp_path):
        (tmp_path / "t.txt").write_text("one\n\nthree\n\n")
        with pytest.warns(UserWarning, match="line 2: is blank"):
            miniclip.embed(toy, f"{tmp_path}/t.txt", tmp_path / "out.npy", on_error="skip", max_skip_fraction=0.5)
        assert names_of(tmp_path / "out.npy") == ["one", "three"]

    def test_blank_lines_count_among_all_lines_of_standard_input(self, toy, tmp_path, monkeypatch):
        lines = "".join("\n" if number % 20 == 0 else f"text {number}\n" for number in range(100)).encode()
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(lines)))
        with pytest.warns(UserWarning, match="is blank"):
            assert miniclip.embed(toy, "-", tmp_path / "out.npy", on_error="skip").count == 95
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(lines)))
        with pytest.warns(UserWarning, match="blank"), pytest.raises(DataError, match=r"^5 of 100 .* 4\.0%"):
            miniclip.embed(toy, "-", tmp_path / "other.npy", on_error="skip", max_skip_fraction=0.04)


class TestMemory:
    def test_does_not_depend_on_the_number_of_texts(self, toy, tmp_path, monkeypatch):
        from miniclip.embedding import parts

        monkeypatch.setattr(parts, "embed_texts", lambda model, tokenizer, texts, size: torch.ones(len(texts), 512))
        peaks = []
        for count in (4_000, 20_000):
            (tmp_path / "t.txt").write_text("".join(f"text {number}\n" for number in range(count)))
            tracemalloc.start()
            miniclip.embed(toy, f"{tmp_path}/t.txt", tmp_path / f"{count}.npy")
            peaks.append(tracemalloc.get_traced_memory()[1])
            tracemalloc.stop()
        assert peaks[1] < 1.2 * peaks[0] + (1 << 20)


class TestRefusals:
    @pytest.mark.parametrize(
        ("out", "error", "words"),
        [
            ("out.np", ValueError, "did you mean '.npy'"),
            ("file/out.npy", FileExistsError, "is a file; expected a folder"),
            ("folder.npy", FileExistsError, "is a folder"),
            ("there.npy", FileExistsError, "exists already"),
        ],
    )
    def test_outputs(self, toy, photos, tmp_path, out, error, words):
        for name in ("file", "there.npy"):
            (tmp_path / name).write_text("")
        (tmp_path / "folder.npy").mkdir()
        with pytest.raises(error, match=words):
            miniclip.embed(toy, photos, tmp_path / out)

    @pytest.mark.parametrize("bad", [{"dtype": "int8"}, {"batch_size": 0}, {"on_error": "x"}, {"num_workers": -1}])
    def test_options(self, toy, photos, tmp_path, bad):
        with pytest.raises(ValueError, match=next(iter(bad))):
            miniclip.embed(toy, photos, tmp_path / "out.npy", **bad)

    def test_sources(self, toy, tmp_path):
        (tmp_path / "empty").mkdir()
        with pytest.raises(DataError, match="holds no dataset"):
            miniclip.embed(toy, tmp_path / "empty", tmp_path / "out.npy")
        with pytest.raises(FileNotFoundError, match="does not exist"):
            miniclip.embed(toy, tmp_path / "nothing", tmp_path / "out.npy")

    def test_numbers_that_are_not_finite(self, toy, photos, tmp_path, monkeypatch):
        from miniclip.embedding import parts

        monkeypatch.setattr(parts, "embed_batch", lambda *_: torch.full((30, 16), torch.nan))
        with pytest.raises(ValueError, match=r"00\.jpg: .* not finite|01\.png: .* not finite"):
            miniclip.embed(toy, photos, tmp_path / "out.npy")
        monkeypatch.setattr(parts, "embed_batch", lambda *_: torch.full((30, 16), 1e5))
        with pytest.raises(ValueError, match="too large for float16"):
            miniclip.embed(toy, photos, tmp_path / "out.npy", dtype="float16", normalize=False)

    def test_overwrite_removes_files_of_the_earlier_run(self, toy, photos, tmp_path):
        (tmp_path / "out.npy.skipped.json").write_text("{}")
        (tmp_path / "out.npy").write_text("")
        miniclip.embed(toy, photos, tmp_path / "out.npy", overwrite=True)
        assert len(np.load(tmp_path / "out.npy")) == 30
        assert not (tmp_path / "out.npy.skipped.json").exists()


def test_image_of_another_mode(toy, tmp_path):
    (tmp_path / "p").mkdir()
    Image.new("CMYK", (20, 10), (10, 200, 30, 0)).save(tmp_path / "p" / "a.jpg")
    miniclip.embed(toy, tmp_path / "p", tmp_path / "out.npy")
    assert np.array_equal(np.load(tmp_path / "out.npy"), toy.encode_image(tmp_path / "p" / "a.jpg").numpy())
