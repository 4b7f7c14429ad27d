"""Messages of the command line: flags instead of Python, likely suggestions only, sentences for system errors."""

import argparse
import errno
import json
import os
import sys

import pytest

import miniclip
from miniclip import cli
from miniclip.cli import run_data
from miniclip.cli.parsing import ALIASES
from miniclip.cli.running import BROKEN_PIPE, build_parser
from miniclip.config import CLIPConfig, ImageConfig, TextConfig
from miniclip.inference.model import CLIPModel
from miniclip.utils.checks import did_you_mean, nearest


@pytest.fixture
def fails(capsys):
    """Return a function that runs a failing command and returns its line on stderr."""

    def check(*arguments: object, code: int = 2) -> str:
        try:
            returned = cli.main([str(a) for a in arguments])
        except SystemExit as exit_:  # argparse
            returned = exit_.code
        lines = capsys.readouterr().err.strip().splitlines()
        assert returned == code
        assert len(lines) == 1, lines
        return lines[0]

    return check


class TestSuggestions:
    @pytest.mark.parametrize(
        ("name", "choices", "expected"),
        [
            ("--learning-rate", ["--lr", "--max-rotation-degrees", "--epochs"], None),
            ("epoch", ["epochs", "eval_every"], "epochs"),
            ("ViT-B/32", ["vit_b_16", "vit_b_32"], "vit_b_32"),
            ("openclip", ["openai", "open_clip"], "open_clip"),
            ("trian", ["train", "val"], "train"),
            ("validation", ["train", "val"], "val"),
            ("evaluate", ["train", "eval"], "eval"),
            ("save", ["save_every", "save_minutes"], None),  # the start of two
            ("x", ["xyz"], None),
            ("", ["a"], None),
        ],
    )
    def test_only_likely_names(self, name, choices, expected):
        assert nearest(name, choices) == expected

    def test_long_lists_are_cut(self):
        names = [f"name{i}" for i in range(40)]
        assert did_you_mean("zzz", names).endswith("name11, … (40 in all)")
        assert did_you_mean("name-7", names) == "; did you mean 'name7'?"

    def test_flags(self, fails):
        assert fails("train", "--learning-rate", "1") == (
            "miniclip train: unknown argument '--learning-rate'; did you mean '--lr'? see `miniclip train --help`"
        )
        assert fails("train", "--epocs=3") == (
            "miniclip train: unknown argument '--epocs'; did you mean '--epochs'? see `miniclip train --help`"
        )
        assert fails("train", "--zzz", "1") == ("miniclip train: unknown argument '--zzz'; see `miniclip train --help`")
        assert "unknown argument 'more'" in fails("models", "vit_b_16", "more")
        assert "found '--epochs' before a command" in fails("--epochs", "3")

    @pytest.mark.parametrize(
        ("arguments", "name"),
        [
            (["train", "--data", ""], "--data"),
            (["train", "--resume", ""], "--resume"),
            (["train", "--lr="], "--lr"),
            (["finetune", "m", "photos.csv", "--replay", ""], "--replay"),
            (["eval", ""], "MODEL"),
        ],
    )
    def test_empty_values(self, fails, arguments, name):
        """A path of a variable that is not set would be the current folder, and a run to resume a new one."""
        assert f"{arguments[0]}: argument {name}: the value is empty" in fails(*arguments)

    @pytest.mark.parametrize(
        ("command", "flag", "expected"),
        [
            ("train", "--learning_rate=1", "--lr"),
            ("train", "--num-train-epochs", "--epochs"),
            ("train", "--output-dir", "--run-dir"),
            ("train", "--fp16", "--precision"),
            ("eval", "--fp16", "--dtype"),
            ("classify", "--classes", "--labels"),
            ("convert", "--force", "--overwrite"),
        ],
    )
    def test_names_of_flags_in_other_projects(self, fails, command, flag, expected):
        required = {"eval": ["m"], "classify": ["m", "a.jpg", "--labels", "a"], "convert": ["m", "out"], "train": []}
        assert f"did you mean '{expected}'?" in fails(command, *required[command], flag)

    def test_aliases_lead_to_existing_flags(self):
        """An alias whose flag was renamed would never be suggested."""
        flags, pending = set(), [build_parser()]
        while pending:
            for action in pending.pop()._actions:
                flags.update(action.option_strings)
                if isinstance(action, argparse._SubParsersAction):
                    pending += action.choices.values()
        targets = {target for aliases in ALIASES.values() for target in aliases}
        assert targets - flags <= {"-k", "--threshold"}  # flags of `miniclip search`

    def test_commands_layouts_and_presets(self, fails, tmp_path):
        assert "unknown command 'trian'; did you mean 'train'?" in fails("trian")
        assert "unknown command 'inspct'; did you mean 'inspect'?" in fails("data", "inspct")
        assert "unknown value 'openclip'; did you mean 'open_clip'?" in fails(
            "convert", "a", tmp_path / "b", "--layout", "openclip"
        )
        assert "did you mean 'bfloat16'?" in fails("convert", "a", tmp_path / "b", "--dtype", "bfloat")
        assert "did you mean 'bert_vit_tiny'?" in fails("train", "--preset", "BERT-ViT-tiny")

    def test_splits(self, fails, tmp_path):
        model = CLIPModel(SMALL).initialise()
        miniclip.save(model, tmp_path / "mine")
        assert "did you mean 'train'?" in fails("eval", tmp_path / "mine", "--data", "shapes", "--split", "trian")
        assert "did you mean 'val'?" in fails("data", "inspect", "shapes", "--split", "validation")
        assert "did you mean 'val'?" in fails("data", "inspect", "shapes", "--split", "dev")
        with pytest.raises(ValueError, match="did you mean 'val'"):
            miniclip.data.open_data("shapes", "validation")

    def test_names_and_paths_of_models(self, fails, tmp_path, hub_server):
        miniclip.save(CLIPModel(SMALL), tmp_path / "shapes")
        assert f"did you mean '{tmp_path}/shapes'?" in fails("eval", tmp_path / "shape", "--data", "shapes")
        assert "did you mean 'vit_b_32'? `miniclip models` lists all names" in fails("models", "ViT-B-32")
        with pytest.raises(FileNotFoundError, match=r"did you mean 'vit_b_32'\?"):
            miniclip.load("ViT-B/32")
        with pytest.raises(FileNotFoundError, match=r"miniclip\.list_models\(\) lists them"):
            miniclip.load("nothing")
        assert f"did you mean '{tmp_path}/shapes'?" in fails("data", "inspect", tmp_path / "Shapes")


SMALL = CLIPConfig(
    ImageConfig(16, 8, 64, 1, 1, activation="quickgelu"),
    TextConfig(12, 600, 64, 1, 1, activation="quickgelu", causal=True, pooling="end"),
    32,
)


class TestFlagsInMessages:
    def test_fresh_weights(self, fails):
        assert "`miniclip train --preset NAME` gives fresh ones" in fails("train", "--model", "bert_vit_tiny")
        assert "`miniclip train --preset NAME` gives fresh ones" in fails("eval", "bert_vit_tiny", "--data", "shapes")
        with pytest.raises(ValueError, match="pretrained=False gives fresh ones"):
            miniclip.load("bert_vit_tiny")

    def test_configuration(self, fails, tmp_path):
        miniclip.export(CLIPModel(SMALL).initialise(), tmp_path / "theirs", layout="open_clip")
        bare = tmp_path / "bare.safetensors"
        (tmp_path / "theirs" / "open_clip_model.safetensors").rename(bare)
        assert "the configuration: --architecture ViT-B-32 for" in fails("convert", bare, tmp_path / "out")
        assert "`miniclip convert SOURCE TARGET --architecture ViT-B-32` for" in fails("train", "--model", bare)

    def test_settings(self, fails, tmp_path):
        assert "--batch-size is 0; expected at least 1" in fails("train", "--batch-size", "0")
        miniclip.save(CLIPModel(SMALL), tmp_path / "mine")
        assert "remove --revision v1" in fails("convert", tmp_path / "mine", tmp_path / "out", "--revision", "v1")
        with pytest.raises(ValueError, match="batch_size is 0"):
            miniclip.TrainConfig(batch_size=0)

    def test_columns(self, fails, tmp_path):
        (tmp_path / "t.csv").write_text("datei,text\na.jpg,a dog\n")
        assert "`?image=NAME` after the path" in fails("data", "inspect", tmp_path / "t.csv")
        with pytest.raises(miniclip.DataError, match="choose the column with image="):
            miniclip.data.Captions.from_csv(tmp_path / "t.csv")


def test_images_without_captions(fails, tmp_path):
    from PIL import Image

    for name in ("dog.jpg", "cat.png"):
        Image.new("RGB", (8, 8)).save(tmp_path / name)
    assert "holds 2 images and no text files beside them; write the captions of dog.jpg into dog.txt" in fails(
        "data", "inspect", tmp_path
    )


class TestExitCodes:
    def test_system_errors_are_sentences(self, fails, tmp_path, monkeypatch):
        (tmp_path / "file").write_text("")
        message = fails("convert", "nothing/at-all", tmp_path / "file" / "x")
        assert "Errno" not in message
        monkeypatch.setattr(run_data, "is_run", full_disk)
        miniclip.save(CLIPModel(SMALL), tmp_path / "mine")
        assert fails("eval", tmp_path / "mine") == (
            "miniclip: /mnt/config.json: the disk is full; free some space, then run the command again"
        )

    @pytest.mark.parametrize("error", [MemoryError(), RuntimeError("[enforce fail] can't allocate memory: you")])
    def test_out_of_memory(self, fails, tmp_path, monkeypatch, error):
        def fail(_):
            raise error

        monkeypatch.setattr(run_data, "is_run", fail)
        miniclip.save(CLIPModel(SMALL), tmp_path / "mine")
        assert "out of memory: use a smaller" in fails("eval", tmp_path / "mine")

    def test_errors_in_miniclip_keep_their_traceback(self, tmp_path, monkeypatch, capsys):
        """Exit code 1 belongs to `miniclip train --check`."""
        monkeypatch.setattr(run_data, "is_run", lambda _: {}["missing"])
        miniclip.save(CLIPModel(SMALL), tmp_path / "mine")
        assert cli.main(["eval", str(tmp_path / "mine")]) == 70
        err = capsys.readouterr().err
        assert "Traceback" in err
        assert err.splitlines()[-1].startswith("miniclip: this is an error in miniclip: please report it")

    def test_a_reader_that_ends_early(self, ranks, tmp_path):
        ((code, _, error),) = ranks(1, print_into_a_closed_pipe, tmp_path, succeed=False)
        assert (code, error) == (BROKEN_PIPE, "")


def print_into_a_closed_pipe(_):
    """Run `miniclip models | true`, in which the reader ends first."""
    reader, writer = os.pipe()
    os.close(reader)
    os.dup2(writer, 1)
    sys.argv = ["miniclip", "models"]
    sys.exit(cli.main())


def full_disk(_):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "/mnt/.config.json.0a1b2c3d")


class TestModels:
    def test_shows_a_run_and_a_checkpoint(self, tmp_path, capsys):
        run = tmp_path / "runs" / "mine"
        miniclip.save(CLIPModel(SMALL).bfloat16(), run / "best")
        (run / "config.json").write_text(json.dumps({"format": "miniclip run 1"}))
        miniclip.export(CLIPModel(SMALL), tmp_path / "theirs", layout="openai")
        for path, checkpoint, dtype in (
            (run, run / "best", "bfloat16"),
            (run / "best", run / "best", "bfloat16"),
            (tmp_path / "theirs", tmp_path / "theirs", "float32"),
            (tmp_path / "theirs" / "model.pt", tmp_path / "theirs" / "model.pt", "float32"),
        ):
            assert cli.main(["models", str(path)]) == 0
            lines = capsys.readouterr().out.splitlines()
            assert lines[0] == f"{path}: a checkpoint with weights in {dtype}, {checkpoint}"
            assert "1 layers, width 64" in lines[1]
            assert "vocabulary 600" in lines[2]

    def test_shows_a_repository_of_the_hub(self, tmp_path, capsys, hub_server):
        miniclip.save(CLIPModel(SMALL), tmp_path / "mine")
        hub_server.repos["me/mine"] = {file.name: file.read_bytes() for file in (tmp_path / "mine").iterdir()}
        assert cli.main(["models", "me/mine"]) == 0
        assert "me/mine: a checkpoint with weights in float32" in capsys.readouterr().out
