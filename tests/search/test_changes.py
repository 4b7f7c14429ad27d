"""Updates of an index: files that change between two updates, and while they are read."""

import os
import shutil
import sys
import threading

import numpy as np
import pytest

from miniclip import Index
from miniclip.search.database import DATABASE
from miniclip.search.updating import building, walking
from miniclip.search.updating import reading as reading_module
from miniclip.search.updating.sources import FolderSource
from miniclip.search.updating.walking import walk
from tests.search.conftest import write_images

OLD = 1_600_000_000  # a time long ago, in seconds since 1970


def age(folder) -> None:
    """Give all files a time of change long ago, so that size and time identify their content."""
    for path in folder.rglob("*.png"):
        os.utime(path, (OLD, OLD))


def after_listing(monkeypatch, change) -> None:
    """Change the folder between the listing and the reading of its files."""
    listed = FolderSource.list

    def list_and_change(source):
        listing = listed(source)
        change()
        return listing

    monkeypatch.setattr(FolderSource, "list", list_and_change)


def rows_of(index) -> dict[str, np.ndarray]:
    return dict(zip(index.snapshot.names, index.embeddings, strict=True))


def test_old_files_are_not_opened_again(photos, search_model, monkeypatch):
    age(photos)
    Index.build(search_model, photos)
    monkeypatch.setattr(reading_module, "open_regular", lambda path: pytest.fail(f"opened {path}"))
    assert Index.build(search_model, photos).report.unchanged == 12


def test_recent_file_is_compared_by_content(photos, search_model):
    """A file that changes twice within the clock's step has the same size and time, and another content."""
    first, second = (photos / name for name in ("0.png", "1.png"))
    longest = max(path.stat().st_size for path in (first, second))
    for path in (first, second):
        path.write_bytes(path.read_bytes().ljust(longest, b"\0"))  # bytes after a PNG's end are ignored
    content, status = second.read_bytes(), first.stat()
    before = Index.build(search_model, photos)
    first.write_bytes(content)
    os.utime(first, ns=(status.st_mtime_ns, status.st_mtime_ns))
    after = Index.build(search_model, photos)
    assert not (rows_of(after)["0.png"] == rows_of(before)["0.png"]).all()


def test_touched_files_are_not_encoded_again(photos, search_model):
    Index.build(search_model, photos)
    age(photos)
    report = Index.build(search_model, photos).report
    assert (report.encoded, report.unchanged, report.updated) == (0, 12, 0)


def test_swapped_files(photos, search_model):
    before = rows_of(Index.build(search_model, photos))
    (photos / "0.png").rename(photos / "x")
    (photos / "1.png").rename(photos / "0.png")
    (photos / "x").rename(photos / "1.png")
    index = Index.build(search_model, photos)
    after = rows_of(index)
    assert (index.report.encoded, index.report.updated) == (0, 2)
    assert (after["0.png"] == before["1.png"]).all()
    assert (after["1.png"] == before["0.png"]).all()


def test_moved_folder_is_renamed(photos, search_model):
    before = Index.build(search_model, photos)
    (photos / "below").rename(photos / "elsewhere")
    after = Index.build(search_model, photos)
    assert (after.report.renamed, after.report.encoded) == (3, 0)
    assert {item.id for item in after.snapshot.items()} == {item.id for item in before.snapshot.items()}


def test_duplicates_share_a_row(photos, search_model):
    (photos / "copy.png").write_bytes((photos / "0.png").read_bytes())
    index = Index.build(search_model, photos, batch_size=1)
    assert (index.report.encoded, index.report.duplicates, len(index)) == (12, 1, 13)
    assert len(index.snapshot.vectors) == 12
    items = index.snapshot.items_of_rows([index.snapshot.items([0])[0].row])
    assert [[item.name for item in group] for group in items.values()] == [["0.png", "copy.png"]]


def test_broken_duplicates_are_all_named(photos, search_model):
    for name in ("broken.png", "copy.png", "a/b.png"):
        (photos / name).parent.mkdir(exist_ok=True)
        (photos / name).write_bytes(b"not an image")
    with pytest.warns(UserWarning, match=r"3 images cannot be read.*a/b\.png"):
        report = Index.build(search_model, photos, batch_size=2, num_workers=3).report
    assert sorted(report.unreadable) == ["a/b.png", "broken.png", "copy.png"]


def test_broken_file_is_tried_again_once_it_has_changed(photos, search_model, recwarn):
    (photos / "broken.png").write_bytes(b"not an image")
    age(photos)
    assert list(Index.build(search_model, photos).report.unreadable) == ["broken.png"]
    report = Index.build(search_model, photos).report
    assert (report.unreadable, report.remembered) == ({}, 1)
    assert list(Index.build(search_model, photos, retry=True).report.unreadable) == ["broken.png"]
    write_images(photos, 1, 20)
    (photos / "20.png").rename(photos / "broken.png")
    index = Index.build(search_model, photos)
    assert (index.report.added, index.snapshot.unreadable()) == (1, {})


def test_duplicates_whose_reader_is_missing_are_tried_again(photos, search_model, monkeypatch, recwarn):
    for name in ("phone.png", "twin.png"):
        shutil.copy(photos / "0.png", photos / name)
    (photos / "0.png").unlink()
    age(photos)
    with monkeypatch.context() as patch:
        patch.setattr(reading_module, "missing_reader", lambda start: "needs an extra")
        assert len(Index.build(search_model, photos).report.unreadable) == 13
    report = Index.build(search_model, photos).report
    assert (report.added, report.remembered) == (13, 0)


def test_failures_are_remembered_after_add(photos, search_model, recwarn):
    (photos / "broken.png").write_bytes(b"not an image")
    age(photos)
    index = Index.build(search_model, photos)
    index.add(photos / "0.png")
    assert list(index.snapshot.unreadable()) == ["broken.png"]
    assert Index.build(search_model, photos).report.remembered == 1


def test_large_files_are_read_without_a_copy_in_memory(photos, search_model, monkeypatch):
    before = Index.build(search_model, photos)
    monkeypatch.setattr(reading_module, "MAX_JPEG_BYTES", 10)
    after = Index.build(search_model, photos, photos.with_name("other.index"))
    assert after.report.encoded == 12
    assert after.snapshot.items() == before.snapshot.items()
    assert (after.embeddings == before.embeddings).all()


def test_file_that_breaks_leaves_the_index(photos, search_model, recwarn):
    Index.build(search_model, photos)
    content = (photos / "0.png").read_bytes()
    (photos / "0.png").write_bytes(content[:40])
    index = Index.build(search_model, photos)
    assert "0.png" not in index.snapshot.names
    assert (index.report.removed, list(index.report.unreadable)) == (1, ["0.png"])
    (photos / "0.png").write_bytes(content)
    assert Index.build(search_model, photos).report.added == 1


def test_files_that_change_between_listing_and_reading(photos, search_model, monkeypatch, recwarn):
    expected = rows_of(Index.build(search_model, photos, photos.with_name("before")))
    content = (photos / "3.png").read_bytes()

    def change():
        (photos / "0.png").unlink()
        (photos / "1.png").write_bytes((photos / "2.png").read_bytes())
        (photos / "3.png").write_bytes(content[:60])
        (photos / "4.png").unlink()
        (photos / "4.png").mkdir()

    with monkeypatch.context() as patch:
        after_listing(patch, change)
        index = Index.build(search_model, photos)
    assert list(index.report.unreadable) == ["3.png", "4.png"]
    rows = rows_of(index)
    assert sorted(expected.keys() - rows.keys()) == ["0.png", "3.png", "4.png"]
    assert (rows["1.png"] == expected["2.png"]).all()
    (photos / "3.png").write_bytes(content)
    rows = rows_of(Index.build(search_model, photos))
    assert (rows["3.png"] == expected["3.png"]).all()


def test_file_that_is_written_while_it_is_read_is_read_again(photos, search_model, monkeypatch, recwarn):
    opened, content = reading_module.open_regular, (photos / "1.png").read_bytes()

    def open_and_write(path):
        file = opened(path)
        if path.name == "0.png":
            path.write_bytes(content)  # after the listing, before the reading: the file's state differs from the listed
        return file

    age(photos)
    with monkeypatch.context() as patch:
        patch.setattr(reading_module, "open_regular", open_and_write)
        Index.build(search_model, photos)
    rows = rows_of(Index.build(search_model, photos))
    assert (rows["0.png"] == rows["1.png"]).all()


def test_unreadable_folder_keeps_its_items(photos, search_model, monkeypatch, recwarn):
    Index.build(search_model, photos)
    scan = os.scandir

    def refuse(path):
        if str(path).endswith("below"):
            raise PermissionError(13, "Permission denied", path)
        return scan(path)

    monkeypatch.setattr(walking.os, "scandir", refuse)
    index = Index.build(search_model, photos)
    assert len(index) == 12
    assert list(index.report.unreadable) == ["below/"]


def test_empty_folder_keeps_the_index(photos, search_model):
    Index.build(search_model, photos)
    photos.rename(photos.with_name("away"))
    photos.mkdir()
    with pytest.raises(ValueError, match=r"holds no images, and .* has 12: is a disk not mounted"):
        Index.build(search_model, photos)
    assert len(Index.open(photos.with_name("photos.index"))) == 12


def test_moved_source_keeps_its_vectors(photos, search_model, tmp_path):
    path = tmp_path / "index"
    Index.build(search_model, photos, path)
    write_images(tmp_path / "others", 1)
    with pytest.raises(ValueError, match=r"is the index of .*photos, not of .*others"):
        Index.build(search_model, tmp_path / "others", path)
    photos.rename(tmp_path / "moved")
    index = Index.build(search_model, tmp_path / "moved", path)
    assert (index.report.encoded, len(index)) == (0, 12)
    assert index.paths[0] == str(tmp_path / "moved" / "0.png")


def test_walk_skips_hidden_names_indexes_and_loops(photos, search_model):
    Index.build(search_model, photos, photos / "photos.index")
    write_images(photos / ".hidden", 1)
    write_images(photos / "photos.index", 1)
    (photos / ".dot.png").write_bytes(b"")
    (photos / "notes.txt").write_bytes(b"")
    (photos / "below" / "loop").symlink_to(photos)
    (photos / "again").symlink_to(photos / "below")
    (photos / "dangling.png").symlink_to(photos / "nothing")
    listing = walk(photos)
    assert len(listing.images) == 12
    assert listing.problems == {"dangling.png": "is a link to a file that does not exist"}


def test_images_behind_a_broken_link_are_kept(photos, search_model, tmp_path):
    write_images(tmp_path / "disk" / "2024", 2)
    (photos / "disk").symlink_to(tmp_path / "disk")
    (photos / "notes").symlink_to(tmp_path / "nothing")  # never had images, and is not reported
    assert len(Index.build(search_model, photos)) == 14
    (tmp_path / "disk").rename(tmp_path / "away")
    index = Index.build(search_model, photos)
    assert (len(index), index.report.removed) == (14, 0)
    assert index.report.unreadable == {"disk/": "is a link to a folder that does not exist"}
    (photos / "disk").unlink()
    assert len(Index.build(search_model, photos)) == 12


def test_folder_of_links_and_a_time_of_the_far_future(photos, search_model, tmp_path):
    os.utime(photos / "0.png", (2**33 * 1.5, 2**33 * 1.5))
    links = tmp_path / "links"
    links.mkdir()
    (links / "all").symlink_to(photos)
    assert len(Index.build(search_model, links)) == 12
    assert Index.build(search_model, links).report.unchanged == 12


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have names of Unicode only")
def test_names_need_not_be_text(photos, search_model):
    names = [b"not utf-8 \xff.png", "é ü 画像.png".encode(), b"line\nbreak.png", b"quote'\".png"]
    for number, name in enumerate(names):
        (photos / f"{number}.png").rename(os.fsdecode(os.fsencode(photos) + b"/" + name))
    index = Index.build(search_model, photos)
    assert {os.fsencode(name) for name in index.snapshot.names} >= set(names)
    assert all(os.path.exists(path) for path in index.paths)  # noqa: PTH110
    assert Index.build(search_model, photos).report.unchanged == 12


def test_folder_with_a_database_of_another_program_is_walked(photos, search_model):
    (photos / "below" / DATABASE).write_bytes(b"")
    assert len(walk(photos).images) == 12


def test_add_and_remove_by_other_paths(photos, search_model, tmp_path):
    """A path over a link, or with `..`, is the same file."""
    index = Index.build(search_model, photos)
    (tmp_path / "link").symlink_to(photos)
    others = [tmp_path / "link" / "0.png", photos / "below" / ".." / "1.png"]
    index.add([*others, tmp_path / "link" / "below"])
    assert (index.report.added, len(index)) == (0, 12)
    index.remove(others)
    assert not {"0.png", "1.png"} & set(index.snapshot.names)


def test_add_and_remove(photos, search_model, tmp_path):
    index = Index.build(search_model, photos)
    write_images(tmp_path / "outside", 2, 30)
    index.add([tmp_path / "outside", photos / "0.png"])
    assert (index.report.added, index.report.unchanged, len(index)) == (2, 1, 14)
    assert Index.build(search_model, photos).report.removed == 0
    index.remove([photos / "0.png", "below/9.png"])
    assert (len(index), index.report.removed) == (12, 2)
    with pytest.raises(ValueError, match=r"1\.pgn: is not in the index .*did you mean '1\.png'"):
        index.remove(["1.pgn"])
    with pytest.raises(FileNotFoundError, match=r"nothing\.png: does not exist"):
        index.add([photos / "0.png", photos / "nothing.png"])
    (tmp_path / "outside" / "30.png").unlink()
    index = Index.build(search_model, photos)
    assert (index.report.added, index.report.removed, len(index)) == (2, 1, 13)


def test_second_writer_is_refused_and_readers_continue(photos, search_model):
    index = Index.build(search_model, photos)
    with index._store.writing() as writer:
        writer.remove(["0.png"])
        with pytest.raises(BlockingIOError, match="another process is writing"):
            Index.build(search_model, photos)
        assert len(Index.open(index.path)) == 12
    assert len(Index.open(index.path)) == 12  # without a commit, nothing has changed


def test_threads_read_while_the_index_changes(photos, search_model):
    index, errors = Index.build(search_model, photos), []

    def read() -> None:
        try:
            while not done.is_set():
                snapshot = index.snapshot
                items = snapshot.items()
                assert [item.row for item in items] == snapshot.rows.tolist()
                assert np.isfinite(snapshot.vectors[snapshot.rows]).all()
        except BaseException as error:
            errors.append(error)

    done = threading.Event()
    threads = [threading.Thread(target=read) for _ in range(3)]
    for thread in threads:
        thread.start()
    try:
        for number in range(9):
            index.remove([f"{number}.png"])
    finally:
        done.set()
        for thread in threads:
            thread.join()
    assert not errors
    assert int(index.snapshot.settings["generation"]) >= 1


def test_ctrl_c_keeps_committed_images(photos, search_model, monkeypatch):
    monkeypatch.setattr(building.Update, "_append", interrupting(building.Update._append, after=2))
    monkeypatch.setattr("miniclip.search.updating.update.COMMIT_SECONDS", 0.0)
    with pytest.raises(KeyboardInterrupt):
        Index.build(search_model, photos, batch_size=4)
    monkeypatch.undo()
    assert len(Index.open(photos.with_name("photos.index"))) == 8
    assert Index.build(search_model, photos).report.encoded == 4


def interrupting(function, after):
    """Return a function that raises KeyboardInterrupt after some calls."""
    calls = iter(range(after))

    def call(*arguments):
        if next(calls, None) is None:
            raise KeyboardInterrupt
        return function(*arguments)

    return call
