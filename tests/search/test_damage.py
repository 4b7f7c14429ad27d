"""An index's errors: other models, damaged files, readers without write permission, a full disk; its command."""

import errno
import os
import shutil
import sqlite3
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

import miniclip
from miniclip import DataError, Index
from miniclip.cli import main
from miniclip.inference.fingerprint import model_fingerprint
from miniclip.search.database import DATABASE
from miniclip.search.snapshot import Snapshot
from miniclip.search.store import Facts, FileState, Store
from miniclip.search.updating.building import recorded
from tests.search.conftest import write_images
from tests.toys import make_model

FACTS = Facts(FileState(1, 1, True), b"0" * 32, 1, 1)


@pytest.fixture
def copy(built, tmp_path):
    """A copy of the index, to damage it."""
    return shutil.copytree(built, tmp_path / "copy.index")


@pytest.fixture
def saved(search_model, tmp_path):
    """The path of the saved model."""
    miniclip.save(search_model, tmp_path / "model")
    return str(tmp_path / "model")


def test_another_model_is_refused(photos, search_model, tokenizer):
    index = Index.build(search_model, photos)
    other = make_model(tokenizer)
    torch.nn.init.ones_(other.text.tokens.weight[:1])
    for use in (lambda: Index.build(other, photos), lambda: Index.open(index.path, other)):
        with pytest.raises(ValueError, match="was built with another model"):
            use()
    assert len(Index.open(index.path, make_model(tokenizer))) == 12


def test_fingerprint_depends_on_all_parts(search_model, tokenizer):
    first = model_fingerprint(search_model)
    assert model_fingerprint(make_model(tokenizer)) == first
    assert model_fingerprint(make_model(tokenizer).double()) == first
    for change in ({"interpolation": "bilinear"}, {"mean": (0.1, 0.2, 0.3)}):
        assert model_fingerprint(make_model(tokenizer, **change)) != first
    bare = make_model(tokenizer)
    bare.tokenizer = None
    assert model_fingerprint(bare) != first
    for name, weight in make_model(tokenizer).state_dict().items():
        changed = make_model(tokenizer)
        changed.load_state_dict({name: weight + 1}, strict=False)
        assert model_fingerprint(changed) != first, name


def test_model_is_loaded_from_its_source(photos, saved):
    index = Index.build(saved, photos)
    opened = Index.open(index.path)
    assert torch.equal(opened.model.encode_text("a shape"), index.model.encode_text("a shape"))
    miniclip.save(make_model(index.model.tokenizer, logit_scale=3.0), saved, overwrite=True)
    with pytest.raises(ValueError, match=r"was built with another model: .*model as it was then"):
        _ = Index.open(index.path).model


def test_threads_load_the_model_once(photos, saved, monkeypatch):
    path, loaded, start = Index.build(saved, photos).path, [], threading.Barrier(3)

    def counted_load(*arguments, **options):
        loaded.append(miniclip.load(*arguments, **options))
        return loaded[-1]

    def use_model():
        start.wait()
        return index.model

    monkeypatch.setattr("miniclip.search.index.load", counted_load)
    index = Index.open(path)
    with ThreadPoolExecutor(3) as pool:
        models = [future.result() for future in [pool.submit(use_model) for _ in range(3)]]
    assert len(loaded) == 1
    assert all(model is loaded[0] for model in models)


def test_recorded_model_is_read_without_a_copy_of_the_database(photos, saved, monkeypatch):
    path = Index.build(saved, photos).path
    monkeypatch.setattr("miniclip.search.snapshot.copy_database", None)  # would fail
    assert recorded(path) == (str(saved), str(photos))


def test_model_without_a_source_must_be_given(index, built):
    with pytest.raises(ValueError, match="does not record its model; pass it"):
        _ = Index.open(built).model
    assert index.model


def test_closed_index_is_not_called_damaged(built, search_model):
    with Index.open(built, search_model) as index:
        pass
    with pytest.raises(ValueError, match="was closed"):
        index.search("a red heart")


def test_wrong_kinds_of_model_are_refused(photos, search_model):
    with pytest.raises(TypeError, match="expected a CLIPModel"):
        Index.build(search_model.text, photos)
    with torch.no_grad():
        broken = make_model(search_model.tokenizer)
        broken.image.projection.weight.fill_(torch.nan)
    with pytest.raises(ValueError, match=r"0\.png: the model's embedding is not finite"):
        Index.build(broken, photos)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda path: (path / "vectors-0.f16").write_bytes(b"0" * 100), "found 100 bytes, expected 384"),
        (lambda path: (path / "vectors-0.f16").unlink(), "vectors-0.f16"),
        (lambda path: (path / DATABASE).write_bytes(b"not a database" * 100), "is damaged .*not a database"),
        (lambda path: (path / DATABASE).write_bytes(b""), "is damaged"),
        (lambda path: os.truncate(path / DATABASE, 5000), "is damaged"),
        (lambda path: execute(path, "UPDATE items SET row = 99"), "refers to a row that the vectors lack"),
        (lambda path: execute(path, "UPDATE settings SET value = 'x 2' WHERE key = 'format'"), "another version"),
    ],
    ids=["short", "missing", "other", "empty", "truncated", "rows", "version"],
)
def test_damage_is_named(copy, damage, message):
    damage(copy)
    with pytest.raises((DataError, FileNotFoundError), match=message):
        Index.open(copy)


def execute(path, statement) -> None:
    database = sqlite3.connect(path / DATABASE)
    database.execute(statement)
    database.commit()
    database.close()


def test_other_paths_are_named(tmp_path, photos, search_model):
    (tmp_path / "file").write_bytes(b"")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "notes").write_bytes(b"")
    with pytest.raises(FileNotFoundError, match="no such index; build one with"):
        Index.open(tmp_path / "nothing")
    with pytest.raises(FileNotFoundError, match=f"is not an index: a directory without {DATABASE}"):
        Index.open(photos)
    for path, message in (
        (tmp_path / "file", "is a file"),
        (tmp_path / "folder", "is not an index, and holds 'notes'"),
    ):
        with pytest.raises(FileExistsError, match=message):
            Index.build(search_model, photos / "below", path)
    with pytest.raises(ValueError, match="holds the images themselves"):
        Index.build(search_model, photos / "below", photos)
    with pytest.raises(ValueError, match=r"0\.png: is an image; expected the folder"):
        Index.build(search_model, photos / "0.png")
    (tmp_path / "texts").mkdir()
    with pytest.raises(ValueError, match="texts: holds no images"):
        Index.build(search_model, tmp_path / "texts")
    (tmp_path / "texts" / "a.md").write_bytes(b"")
    with pytest.raises(DataError, match=r"holds no image files \(.jpg"):
        Index.build(search_model, tmp_path / "texts")
    assert not (tmp_path / "texts.index").exists()


def test_reader_needs_no_permission_to_write(copy, search_model):
    for path, mode in ((copy / DATABASE, 0o444), (copy / "vectors-0.f16", 0o444), (copy, 0o555)):
        path.chmod(mode)
    try:
        before = {path.name: path.stat().st_mtime_ns for path in [copy, *copy.iterdir()]}
        with Index.open(copy, search_model) as index:
            assert len(index.embeddings) == 12
            assert {path.name: path.stat().st_mtime_ns for path in [copy, *copy.iterdir()]} == before
    finally:
        copy.chmod(0o755)


def test_reader_of_an_old_generation_continues(copy):
    old = Snapshot(copy)
    before = np.array(old.vectors)
    names = old.names
    with Store(copy).writing() as writer:
        writer.remove(names[:8])
        assert writer.compact()
    new = Snapshot(copy)
    assert [path.name for path in copy.glob("vectors-*")] == ["vectors-1.f16"]
    assert (np.array(old.vectors) == before).all()
    assert old.names == names
    assert new.rows.tolist() == [0, 1, 2, 3]
    assert (new.vectors == before[old.rows[8:]]).all()


def test_killed_commit_is_rolled_back_by_the_next_reader(copy, tmp_path):
    """A copy of the files in the middle of a commit, with its journal, is the state after a kill."""
    database = sqlite3.connect(copy / DATABASE, isolation_level=None)
    database.execute("PRAGMA cache_size = 1")
    database.execute("PRAGMA cache_spill = 1")
    database.execute("BEGIN IMMEDIATE")
    for number in range(2000):
        database.execute("INSERT INTO failures VALUES (?, 1, 1, 1, 'a reason')", (f"{number}",))
    killed = shutil.copytree(copy, tmp_path / "killed")
    database.close()
    assert (killed / f"{DATABASE}-journal").stat().st_size
    snapshot = Snapshot(killed)
    assert (len(snapshot), snapshot.unreadable()) == (12, {})


def test_rows_without_a_commit_are_cut_off(copy):
    with (copy / "vectors-0.f16").open("ab") as file:
        file.write(b"torn")
    assert len(Snapshot(copy).vectors) == 12
    with Store(copy).writing() as writer:
        row = writer.append(np.ones((1, 16), np.float32))
        writer.put("new", row, FACTS)
        writer.commit()
    snapshot = Snapshot(copy)
    assert (snapshot.vectors[snapshot.rows[snapshot.names.index("new")]] == 1).all()


def test_full_disk_leaves_the_index_as_it_was(photos, search_model, monkeypatch):
    index = Index.build(search_model, photos)
    write_images(photos, 4, 20)

    def full(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("miniclip.search.store.os.fsync", full)
        with pytest.raises(OSError, match="No space left"):
            Index.build(search_model, photos)
    assert len(Index.open(index.path)) == 12
    with index._store.writing() as writer, monkeypatch.context() as patch:
        patch.setattr("miniclip.search.store.Writer._write_rows", lambda *_: full(0))
        writer.remove(index.snapshot.names[:8])
        assert not writer.compact()
    assert len(Index.open(index.path)) == 4
    with index._store.writing() as writer:
        (pages,) = writer.query("PRAGMA page_count")[0]
        writer.query(f"PRAGMA max_page_count = {pages}")
        with pytest.raises(OSError, match="No space left") as error:
            writer.put("x" * 100_000, 0, FACTS)
        assert error.value.errno == errno.ENOSPC
    assert Index.build(search_model, photos).report.added == 12


def test_command(photos, saved, capsys, monkeypatch):
    monkeypatch.chdir(photos.parent)
    (photos / "broken.png").write_bytes(b"x")
    assert main(["index", saved, "photos", "--device", "cpu", "--batch-size", "5"]) == 0
    out, err = capsys.readouterr()
    assert out.startswith("photos.index: 12 images; 12 added, 1 unreadable; ")
    assert out.endswith("images/s\nnext: miniclip search photos.index 'a red bicycle'\n")
    assert err.startswith("unreadable: broken.png: cannot be read as an image")
    assert main(["index", "photos.index", "--device", "cpu"]) == 0
    assert "12 images; 1 unreadable" in capsys.readouterr().out
    for arguments, message in (
        (["photos"], "photos: is not an index; to build one, give a model before it"),
        (["photos.index", "-o", "x"], "-o needs a model and a source"),
        ([saved, "nothing"], "nothing: does not exist"),
        ([saved, "photos", "--batch-size", "0"], "batch_size 0: expected at least 1"),
    ):
        assert main(["index", *arguments]) == 2
        err = capsys.readouterr().err
        assert message in err
        assert err.count("\n") == 1
