"""Output paths are checked before long work."""

import pytest

from miniclip.utils.outputs import require_output_file, require_output_folder


def test_paths_that_can_be_written(tmp_path):
    (tmp_path / "old.json").write_text("")
    for path in (tmp_path / "new" / "deep" / "a.json", tmp_path / "old.json"):
        assert require_output_file(path, "--json") == path
    assert require_output_folder(tmp_path / "new" / "figures", "--out") == tmp_path / "new" / "figures"
    assert [path.name for path in tmp_path.iterdir()] == ["old.json"]  # nothing is left behind


def test_paths_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    cases = [
        (require_output_file, tmp_path, IsADirectoryError, "is a folder; expected a file"),
        (require_output_file, tmp_path / "file" / "a.json", NotADirectoryError, "file is a file; expected a folder"),
        (require_output_file, "/dev/null", FileExistsError, "is not a regular file"),
        (require_output_folder, tmp_path / "file", NotADirectoryError, "is a file; expected a folder"),
        (require_output_folder, "/proc/miniclip", OSError, "--out /proc/miniclip: cannot be written"),
    ]
    for check, path, error, message in cases:
        with pytest.raises(error, match=message):
            check(path, "--out")
    with pytest.raises(ValueError, match=r"expected a name that ends with \.png"):
        require_output_file(tmp_path / "a.jpg", "--output", ".png")
