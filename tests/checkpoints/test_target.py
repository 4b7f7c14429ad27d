"""The directory of a checkpoint: files of a run and of the user are not overwritten, nor a checkpoint in part."""

import dataclasses
import errno
import json

import pytest

import miniclip
from miniclip import cli, export, save
from miniclip.config import CLIPConfig, ImageConfig, TextConfig
from miniclip.inference.model import CLIPModel

TEXT = TextConfig(12, 600, 64, 1, 1, activation="quickgelu", causal=True, pooling="end")
CONFIG = CLIPConfig(ImageConfig(16, 8, 64, 1, 1, activation="quickgelu"), TEXT, 32)
RUN = {"format": "miniclip run 1", "about": {}}


@pytest.fixture(scope="module")
def model():
    return CLIPModel(CONFIG).initialise().eval()


def save_native(model, path, **options):
    save(model, path, **options)


def export_openai(model, path, **options):
    export(model, path, layout="openai", **options)


WRITERS = [save_native, export_openai]


def contents(folder):
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


@pytest.mark.parametrize("write", WRITERS)
@pytest.mark.parametrize("name", ["x.pt", "x.safetensors", "x.PTH", "x.bin", "x.ckpt"])
def test_the_name_of_a_file_is_refused(model, tmp_path, write, name):
    with pytest.raises(ValueError, match=r"a checkpoint is a directory .* as in .*/x"):
        write(model, tmp_path / name)
    assert not list(tmp_path.iterdir())
    write(model, tmp_path / "v1.5")  # a dot is not enough


@pytest.mark.parametrize("write", WRITERS)
def test_a_file_is_refused(model, tmp_path, write):
    (tmp_path / "notes").write_text("mine")
    with pytest.raises(FileExistsError, match="is a file; a checkpoint is a directory"):
        write(model, tmp_path / "notes", overwrite=True)
    with pytest.raises(FileExistsError, match="notes is a file; a checkpoint is a directory"):
        write(model, tmp_path / "notes" / "mine")
    assert (tmp_path / "notes").read_text() == "mine"


@pytest.mark.parametrize("write", WRITERS)
@pytest.mark.parametrize("part", ["", "best", "last", "states"])
@pytest.mark.parametrize("marker", ["config.json", "metrics.jsonl", "state.safetensors"])
def test_a_run_is_refused_also_with_overwrite(model, tmp_path, write, part, marker):
    run = tmp_path / "run"
    (run / "best").mkdir(parents=True)
    (run / marker).write_text(json.dumps(RUN))
    before = contents(run)
    for overwrite in (False, True):
        with pytest.raises(FileExistsError, match="belongs to a run"):
            write(model, run / part, overwrite=overwrite)
    assert contents(run) == before
    write(model, run / "mine")  # a new folder of the user's inside a run


@pytest.mark.parametrize("write", WRITERS)
def test_a_run_behind_a_link_or_a_relative_path_is_refused(model, tmp_path, write, monkeypatch):
    run = tmp_path / "run"
    (run / "last").mkdir(parents=True)
    (run / "config.json").write_text(json.dumps(RUN))
    (tmp_path / "link").symlink_to(run / "last")
    monkeypatch.chdir(run)
    for path in (tmp_path / "link", ".", "last"):
        with pytest.raises(FileExistsError, match="belongs to a run"):
            write(model, path, overwrite=True)


@pytest.mark.parametrize("write", WRITERS)
def test_other_files_need_a_word(model, tmp_path, write):
    folder = tmp_path / "photos"
    folder.mkdir()
    (folder / ".gitattributes").write_text("*.safetensors filter=lfs")
    write(model, folder)  # hidden files do not count: a clone of an empty repository
    (folder / "a.jpg").write_bytes(b"mine")
    before = contents(folder)
    with pytest.raises(FileExistsError, match=r"photos is not empty \(a\.jpg, .*overwrite=True"):
        write(model, folder)
    assert contents(folder) == before
    write(model, folder, overwrite=True)
    assert (folder / "a.jpg").read_bytes() == b"mine"


def test_weights_of_another_layout_are_not_left_in_front(model, tmp_path):
    """`load` would open the old weights."""
    export(model, tmp_path / "theirs", layout="open_clip")
    with pytest.raises(FileExistsError, match=r"holds open_clip_model\.safetensors, which would be opened in place"):
        save(model, tmp_path / "theirs", overwrite=True)
    save(model, tmp_path / "mine")
    with pytest.raises(FileExistsError, match=r"holds model\.safetensors, which would be opened in place"):
        export(model, tmp_path / "mine", layout="openai", overwrite=True)


def test_convert_refuses_before_it_loads(model, tmp_path, capsys):
    run = tmp_path / "run"
    run.mkdir()
    (run / "config.json").write_text(json.dumps(RUN))
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.jpg").write_bytes(b"mine")
    for target, words in (("run", "belongs to a run"), ("photos", "--overwrite"), ("b32.pt", "leave out '.pt'")):
        assert cli.main(["convert", "no/checkpoint", str(tmp_path / target)]) == 2
        assert words in capsys.readouterr().err
    assert json.loads((run / "config.json").read_text()) == RUN
    save(model, tmp_path / "mine")
    arguments = ["convert", str(tmp_path / "mine"), str(tmp_path / "photos")]
    assert cli.main([*arguments, "--overwrite"]) == 0
    assert (tmp_path / "photos" / "a.jpg").read_bytes() == b"mine"
    assert miniclip.load(tmp_path / "photos").config == CONFIG
    assert cli.main(["convert", str(tmp_path / "mine"), str(tmp_path / "mine"), "--overwrite"]) == 0
    assert miniclip.load(tmp_path / "mine").config == CONFIG


@pytest.mark.parametrize("layout", ["miniclip", "transformers"])
@pytest.mark.parametrize("has_tokenizer", [True, False])
def test_a_failed_save_keeps_the_checkpoint_as_it_was(toy_tokenizer, tmp_path, monkeypatch, layout, has_tokenizer):
    """Weights of one model with the configuration or tokenizer of another would load without an error."""
    config = CONFIG.replace_text(vocab_size=toy_tokenizer.vocab_size, end_id=toy_tokenizer.end_id)
    old = CLIPModel(config, toy_tokenizer).initialise().eval()
    export(old, tmp_path, layout=layout) if layout == "transformers" else save(old, tmp_path)
    before = contents(tmp_path)

    def fail(tensors, temporary, metadata):
        temporary.write_bytes(b"half of a file")
        visible = {name: content for name, content in contents(tmp_path).items() if name[0] != "."}
        assert visible == before  # what a kill at this moment leaves
        raise OSError(errno.ENOSPC, "disk full")

    monkeypatch.setattr("miniclip.checkpoints.formats.safetensors.save_file", fail)
    new = CLIPModel(dataclasses.replace(config, embed_dim=16), toy_tokenizer if has_tokenizer else None).initialise()
    with pytest.raises(OSError, match="disk full"):
        save(new, tmp_path, overwrite=True)
    assert contents(tmp_path) == before


def test_a_tokenizer_that_cannot_be_written_keeps_the_checkpoint_as_it_was(model, toy_tokenizer, tmp_path, monkeypatch):
    save(model, tmp_path)
    before = contents(tmp_path)

    def fail(path):
        raise OSError(errno.ENOSPC, "disk full")

    monkeypatch.setattr(toy_tokenizer, "save", fail)
    config = CONFIG.replace_text(vocab_size=toy_tokenizer.vocab_size, end_id=toy_tokenizer.end_id)
    with pytest.raises(OSError, match="disk full"):
        save(CLIPModel(config, toy_tokenizer).initialise(), tmp_path, overwrite=True)
    assert contents(tmp_path) == before
