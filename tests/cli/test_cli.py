"""The command line from end to end: output, files, exit codes, and one line for each error."""

import json
import os
import re
import shlex
import signal
import sys
from pathlib import Path

import pytest
import torch

import miniclip
from miniclip import cli
from miniclip.cli.running import parse
from miniclip.config import PRESETS, CLIPConfig, ImageConfig, TextConfig
from miniclip.data import Shapes
from miniclip.hub import fresh, save
from miniclip.train import Trainer

SMALL = ["--epochs", "2", "--batch-size", "8", "--precision", "float32", "--device", "cpu"]


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """A folder in Flickr30k's layout: 40 synthetic images, split by the seed into 32, 4 and 4."""
    root = tmp_path_factory.mktemp("photos")
    (root / "images").mkdir()
    data = Shapes("train", 40)
    rows = ["image_name| comment_number| comment"]
    for i, captions in enumerate(data.captions):
        data[i][0].save(root / "images" / f"{i}.jpg", quality=95)
        rows += [f"{i}.jpg| {k}| {caption}" for k, caption in enumerate(captions)]
    (root / "results.csv").write_text("\n".join(rows) + "\n", encoding="utf-8")
    return root


@pytest.fixture(scope="module")
def run(photos, tmp_path_factory):
    """A finished run on the photos."""
    path = tmp_path_factory.mktemp("runs") / "mine"
    assert cli.main(["train", "--data", str(photos), "--run-dir", str(path), *SMALL]) == 0
    return path


@pytest.fixture
def fails(capsys):
    """Return a function that runs a failing command and returns its line on stderr."""

    def check(*arguments: object) -> str:
        try:
            code = cli.main([str(a) for a in arguments])
        except SystemExit as exit_:  # argparse
            code = exit_.code
        captured = capsys.readouterr()
        assert code == 2
        lines = captured.err.strip().splitlines()
        assert len(lines) == 1, captured.err
        assert lines[0].startswith("miniclip")
        return lines[0]

    return check


def interrupted_command(folder):
    """Train in this process, to which the end of the first epoch sends SIGINT."""
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell ignores it in background jobs
    finish_epoch = Trainer.finish_epoch

    def finish_and_interrupt(trainer, *arguments):
        finish_epoch(trainer, *arguments)
        os.kill(os.getpid(), signal.SIGINT)

    Trainer.finish_epoch = finish_and_interrupt
    sys.exit(cli.main(["train", "--data", str(folder / "photos"), "--run-dir", str(folder / "run"), *SMALL]))


class TestTrain:
    def test_prints_paths_of_results_and_next_commands(self, photos, tmp_path, capsys, curve_drawn):
        assert cli.main(["train", "--data", str(photos), "--run-dir", str(tmp_path / "run"), *SMALL]) == 0
        out = capsys.readouterr().out
        assert "32 training images" in out
        assert out.count("R@1 text to image") == 2  # one line per epoch
        assert "R@1 by chance 25.00" in out
        assert f"learning curve: {tmp_path / 'run' / 'learning_curve.png'}" in out
        assert f"miniclip eval {tmp_path / 'run'}" in out
        assert (tmp_path / "run" / "learning_curve.png").stat().st_size > 1000

    def test_defaults_are_shapes_and_the_tiny_preset(self, small_shapes, tmp_path, monkeypatch, capsys):
        monkeypatch.chdir(tmp_path)
        assert cli.main(["train", "--max-steps", "1"]) == 0
        assert "bert_vit_tiny" in capsys.readouterr().out
        settings = json.loads((tmp_path / "runs" / "shapes" / "config.json").read_text())
        assert settings["about"] == {"data": "shapes", "preset": "bert_vit_tiny"}
        assert isinstance(miniclip.load(tmp_path / "runs" / "shapes"), miniclip.CLIP)

    def test_flags_override_the_toml_file(self, photos, tmp_path):
        file = tmp_path / "recipe.toml"
        file.write_text(f'data = "{photos}"\nepochs = 5\nbatch-size = 8\nlr = 1\nflip = true\n')
        flags = ["--epochs", "1", "--run-dir", str(tmp_path / "run"), "--lr", "0.001"]
        assert cli.main(["train", "--config", str(file), *flags]) == 0
        settings = json.loads((tmp_path / "run" / "config.json").read_text())["train"]
        assert (settings["epochs"], settings["batch_size"], settings["lr"], settings["flip"]) == (1, 8, 0.001, True)

    @pytest.mark.parametrize("in_toml", [False, True])
    def test_automatic_micro_batch_size_is_resolved_once(self, photos, tmp_path, in_toml):
        """The whole batch fits; the saved settings hold the result, so that a resumed run does not search again."""
        file, flags = tmp_path / "recipe.toml", ["--micro-batch-size", "auto"]
        file.write_text('micro_batch_size = "auto"\n' if in_toml else "")
        arguments = ["--data", str(photos), "--run-dir", str(tmp_path / "run"), "--config", str(file), *SMALL]
        assert cli.main(["train", *arguments, "--max-steps", "1", *(() if in_toml else flags)]) == 0
        settings = json.loads((tmp_path / "run" / "config.json").read_text())["train"]
        assert settings["micro_batch_size"] is None
        assert parse(["train", "--micro-batch-size", "64"])["micro_batch_size"] == 64

    def test_starts_from_a_checkpoint(self, run, photos, tmp_path):
        arguments = ["--model", str(run), "--max-steps", "1", "--lr", "1e-9", "--run-dir", str(tmp_path / "run")]
        assert cli.main(["train", "--data", str(photos), *SMALL, *arguments]) == 0
        before, after = miniclip.load(run), miniclip.load(tmp_path / "run" / "last")
        assert before.tokenizer.vocab == after.tokenizer.vocab
        difference = (before.image.projection.weight - after.image.projection.weight).abs().max()
        assert difference < 1e-6

    def test_sigmoid_loss(self, photos, tmp_path):
        run = tmp_path / "run"
        assert cli.main(["train", "--data", str(photos), "--loss", "sigmoid", "--run-dir", str(run), *SMALL]) == 0
        assert miniclip.load(run).config.logit_bias == -10.0

    def test_sigmoid_loss_from_a_softmax_checkpoint(self, run, photos, tmp_path, capsys):
        assert miniclip.load(run).config.logit_bias is None
        arguments = ["--model", str(run), "--loss", "sigmoid", "--max-steps", "1", "--run-dir", str(tmp_path / "run")]
        assert cli.main(["train", "--data", str(photos), *SMALL, *arguments]) == 0
        assert f"{run} has no logit bias: added one of -10, with a logit scale of 10" in capsys.readouterr().out
        assert miniclip.load(tmp_path / "run").config.logit_bias == -10.0

    def test_resuming_a_finished_run_changes_nothing(self, run, capsys):
        before = (run / "metrics.jsonl").read_bytes()
        assert cli.main(["train", "--resume", str(run)]) == 0
        assert (run / "metrics.jsonl").read_bytes() == before
        assert "all 8 steps are completed: nothing is left to train" in capsys.readouterr().out

    def test_more_epochs_name_the_command_that_works(self, run, fails, tmp_path, capsys):
        """The schedule of the learning rate changes; the message has the command, and it trains the rest."""
        copy = copy_of(run, tmp_path / "my run")
        message = fails("train", "--resume", copy, "--epochs", "3")
        assert "epochs: started with 2, now 3. The number of steps sets the schedule of the learning rate" in message
        command, again = (shlex.split(words) for words in re.findall(r"`miniclip (.*?)`", message))
        assert command == ["train", "--resume", str(copy), "--epochs", "3", "--allow-changes"]
        assert cli.main(command) == 0
        assert "last" in capsys.readouterr().out
        assert len((copy / "metrics.jsonl").read_text().splitlines()) == 15
        assert again[:3] == ["train", "--model", str(copy / "last")]
        assert cli.main([*again, "--run-dir", str(tmp_path / "again"), "--batch-size", "8", "--max-steps", "2"]) == 0

    def test_last_line_names_a_result_at_chance(self, photos, tmp_path, capsys):
        arguments = ["--lr", "1e-9", "--run-dir", str(tmp_path / "run"), *SMALL]
        assert cli.main(["train", "--data", str(photos), *arguments]) == 0
        lines = capsys.readouterr().out.splitlines()
        assert any(line.startswith("note, step 0: short run: 8 steps, 4 of them warmup") for line in lines)
        assert lines[-1].startswith("no better than chance: R@1 is ")
        assert "After 8 steps" in lines[-1]

    def test_resumes_with_moved_data(self, run, photos, tmp_path, monkeypatch):
        """The run stores the new path: the next resume needs no --data."""
        moved = copy_of(photos, tmp_path / "moved")
        copy = copy_of(run, tmp_path / "run")
        monkeypatch.chdir(tmp_path)
        assert cli.main(["train", "--resume", str(copy), "--data", "moved"]) == 0
        written = json.loads((copy / "config.json").read_text())
        assert written["about"]["data"] == str(moved)  # absolute, for a resume from another directory
        monkeypatch.chdir("/")
        assert cli.main(["train", "--resume", str(copy)]) == 0

    def test_resumes_after_ctrl_c(self, photos, run, tmp_path, ranks):
        """SIGINT after the first epoch of a process; the resumed run equals the uninterrupted run."""
        stopped = tmp_path / "run"
        (tmp_path / "photos").symlink_to(photos)
        ((code, out, err),) = ranks(1, interrupted_command, tmp_path, succeed=False)
        assert code == cli.INTERRUPTED, err
        assert f"miniclip train --resume {stopped}" in out
        assert "Traceback" not in err
        assert cli.main(["train", "--resume", str(stopped), "--device", "cpu"]) == 0
        for checkpoint in ("last", "best"):
            weights = [(path / checkpoint / "model.safetensors").read_bytes() for path in (run, stopped)]
            assert weights[0] == weights[1]


class TestRunDirectory:
    """A run never lands on other files, and what cannot be written is found before the data are read."""

    @pytest.mark.parametrize("name", ["", "images", "images/run"])
    def test_dataset_is_refused(self, photos, fails, tmp_path, name, monkeypatch):
        data = copy_of(photos, tmp_path / "photos")
        before = sorted(data.rglob("*"))
        monkeypatch.setattr("miniclip.cli.trainers.open_splits", lambda *_: pytest.fail("the data were read"))
        message = fails("train", "--data", data, "--run-dir", data / name, *SMALL)
        assert "new or an empty directory" in message or "is in the folder of the dataset" in message
        assert sorted(data.rglob("*")) == before

    def test_current_folder_as_dataset(self, photos, fails, tmp_path, monkeypatch):
        monkeypatch.chdir(copy_of(photos, tmp_path / "photos"))
        assert "choose a run directory outside of it" in fails("train", "--data", ".", *SMALL)

    def test_unwritable_directory(self, photos, fails, tmp_path, monkeypatch):
        (tmp_path / "file").write_text("")
        monkeypatch.setattr("miniclip.cli.trainers.open_splits", lambda *_: pytest.fail("the data were read"))
        message = fails("train", "--data", photos, "--run-dir", tmp_path / "file" / "run", *SMALL)
        assert "a run cannot be written there (Not a directory)" in message

    def test_sheet_among_the_images(self, photos, fails):
        message = fails("data", "inspect", photos, "--sheet", photos / "images" / "sheet.png")
        assert "is in the folder of the dataset" in message
        assert not (photos / "images" / "sheet.png").exists()

    def test_commands_are_quoted(self, photos, tmp_path, capsys):
        run = tmp_path / "my größe"
        assert cli.main(["train", "--data", str(photos), "--run-dir", str(run), *SMALL]) == 0
        command = re.search(r"next: miniclip (.*?)    or", capsys.readouterr().out)[1]
        assert shlex.split(command) == ["eval", str(run)]
        assert cli.main([*shlex.split(command), "--device", "cpu"]) == 0


class TestCache:
    def test_sequence_of_the_readme(self, photos, tmp_path, capsys):
        """Each printed command works as it stands, and --check accepts what train accepts."""
        cache = tmp_path / "my cache"
        assert cli.main(["data", "cache", str(photos), str(cache), "--num-workers", "0"]) == 0
        command = shlex.split(capsys.readouterr().out.splitlines()[-1].removeprefix("next: miniclip "))
        assert command == ["train", "--data", str(cache), "--preset", "bert_vit_tiny"]
        arguments = [*command, "--run-dir", str(tmp_path / "run"), *SMALL]
        assert cli.main([*arguments, "--max-steps", "1"]) == 0
        assert (
            cli.main(["train", "--data", str(cache), "--max-steps", "1", "--run-dir", str(tmp_path / "b"), *SMALL]) == 0
        )

    @pytest.mark.parametrize("check", [[], ["--check"]], ids=["train", "check"])
    def test_preset_of_another_size(self, photos, tmp_path, fails, check):
        cache = tmp_path / "cache"
        assert cli.main(["data", "cache", str(photos), str(cache), "--preset", "vit_b_32", "--num-workers", "0"]) == 0
        message = fails("train", "--data", cache, "--run-dir", tmp_path / "run", *check)
        assert "the cache holds images of 224 px, and the preset bert_vit_tiny takes images of 64 px" in message
        assert "bert_vit_b_16, vit_b_32, vit_b_16, vit_l_14)" in message

    def test_next_command_of_a_checkpoint_and_of_an_image_size(self):
        from miniclip.cli.data.cache import next_command

        assert next_command("c", "p", "my model", None) == "next: miniclip train --data c --model 'my model'"
        assert next_command("c", "p", None, 96) == "next: miniclip train --data c --model with a checkpoint of 96 px"


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--batch-size", "1"], "batch_size is 1"),
        (["--run-dir", "RUN"], "already holds a run"),
        (["--fsdp", "--on-error", "skip"], "fsdp needs whole batches"),
        (["--tensorboard"], "the setting tensorboard needs the package"),
    ],
    ids=["batch", "run", "fsdp", "logger"],
)
@pytest.mark.parametrize("check", [[], ["--check"]], ids=["train", "check"])
def test_check_refuses_all_that_train_refuses(photos, run, fails, tmp_path, monkeypatch, flags, message, check):
    def missing():
        raise ImportError("the setting tensorboard needs the package tensorboard")

    monkeypatch.setattr("miniclip.loggers.tensorboard.TensorBoardLogger", missing)
    arguments = [str(run) if flag == "RUN" else flag for flag in flags]
    default = [] if "--run-dir" in flags else ["--run-dir", tmp_path / "run"]
    assert message in fails("train", "--data", photos, "--device", "cpu", *default, *arguments, *check)


class TestEval:
    def test_repeats_the_recall_of_the_run(self, run, capsys):
        assert cli.main(["eval", str(run), "--device", "cpu"]) == 0
        printed = capsys.readouterr().out
        history = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        evaluations = [record for record in history if "val_loss" in record]
        best = max(evaluations, key=lambda r: r["text_to_image"]["R@1"] + r["image_to_text"]["R@1"])
        rows = [line.split("  ") for line in printed.splitlines()]
        values = {row[0]: row[-1].strip().split(" ")[0] for row in rows}
        for way in ("text_to_image", "image_to_text"):
            for k in ("R@1", "R@5", "R@10"):
                assert values[f"{way} {k}"] == f"{best[way][k]:.1f}"

    def test_other_checkpoint_data_and_split(self, run, capsys):
        assert cli.main(["eval", str(run / "last"), "--split", "test"]) == 0
        assert "test, 4 images, 20 captions" in capsys.readouterr().out
        assert cli.main(["eval", str(run), "--data", "shapes", "--dtype", "bfloat16"]) == 0
        assert "shapes val, 500 images, 2,500 captions" in capsys.readouterr().out


class TestModels:
    def test_lists_all(self, capsys):
        assert cli.main(["models"]) == 0
        printed = capsys.readouterr().out
        assert all(name in printed for name in miniclip.list_models())

    def test_shows_the_reference_system(self, capsys):
        assert cli.main(["models", "bert_vit_b_16"]) == 0
        printed = capsys.readouterr().out
        image, text, both = (int(n.replace(",", "")) for n in re.findall(r"([\d,]+) parameters", printed))
        assert image == pytest.approx(86e6, rel=0.01)
        assert text == pytest.approx(63e6, rel=0.01)
        assert both == image + text + 1  # logit_scale
        assert "196 patches" in printed
        assert "bidirectional" in printed


class TestErrors:
    def test_wrong_path(self, fails):
        assert "/no/such/folder: does not exist" in fails("train", "--data", "/no/such/folder")

    def test_empty_folder(self, fails, tmp_path):
        assert "results.csv" in fails("train", "--data", tmp_path)

    def test_truncated_jpeg(self, fails, photos, tmp_path):
        copy = copy_of(photos, tmp_path / "photos")
        for image in (copy / "images").iterdir():
            if image.name != "0.jpg":
                continue
            image.write_bytes(image.read_bytes()[:300])
        message = fails("train", "--data", copy, "--run-dir", tmp_path / "run", *SMALL)
        assert "0.jpg: cannot be read as an image" in message
        assert not (tmp_path / "run").exists()

    def test_csv_without_a_column(self, fails, photos, tmp_path):
        copy = copy_of(photos, tmp_path / "photos")
        text = (copy / "results.csv").read_text().replace("comment_number| comment", "number| what")
        (copy / "results.csv").write_text(text)
        message = fails("train", "--data", copy)
        assert "results.csv, line 1: no column comment_number, comment" in message

    def test_checkpoint_of_another_shape(self, fails, run, tmp_path):
        copy = copy_of(run / "last", tmp_path / "last")
        config = json.loads((copy / "config.json").read_text())
        config["embed_dim"] = 48
        (copy / "config.json").write_text(json.dumps(config))
        message = fails("eval", copy, "--data", "shapes")
        assert "image.projection.weight has the shape (128, 128), expected (48, 128)" in message

    def test_used_run_directory(self, fails, run, photos):
        message = fails("train", "--data", photos, "--run-dir", run, *SMALL)
        assert f"{run} already holds a run" in message
        assert f"--resume {run}" in message

    def test_missing_run(self, fails, tmp_path):
        assert "no run there" in fails("train", "--resume", tmp_path / "run")
        assert "neither a path nor the name of a model" in fails("eval", tmp_path / "run")

    def test_unknown_names(self, fails, tmp_path):
        assert "did you mean 'bert_vit_b_16'" in fails("train", "--preset", "bert_vit_b16")
        assert "did you mean '--epochs'" in fails("train", "--epoch", "3")
        assert "did you mean '--batch-size'" in fails("train", "--batchsize", "3")
        assert "did you mean 'vit_b_32'" in fails("models", "vit_b_33")
        (tmp_path / "recipe.toml").write_text("epoch = 3\n")
        assert "recipe.toml: unknown setting 'epoch'; did you mean 'epochs'" in fails(
            "train", "--config", tmp_path / "recipe.toml"
        )

    def test_invalid_values(self, fails, run, tmp_path):
        assert "lr is -1.0; expected above 0" in fails("train", "--lr", "-1")
        assert "invalid int value: 'many'" in fails("train", "--epochs", "many")
        assert "invalid int or auto value: 'all'" in fails("train", "--micro-batch-size", "all")
        assert "--preset and --model exclude each other" in fails("train", "--preset", "bert_vit_tiny", "--model", run)
        assert "--preset is for a new run" in fails("train", "--resume", run, "--preset", "bert_vit_tiny")
        (tmp_path / "other.toml").write_text("[model.image]\nlayers = 3\n")
        assert "remove the table [model]" in fails("train", "--resume", run, "--config", tmp_path / "other.toml")
        assert "no state of step 3" in fails("train", "--resume", run, "--step", "3")
        assert "--allow-changes and --step are for --resume" in fails("train", "--allow-changes")
        assert "no such file" in fails("train", "--config", tmp_path / "none.toml")
        (tmp_path / "bad.toml").write_text("epochs = = 3")
        assert "not TOML" in fails("train", "--config", tmp_path / "bad.toml")
        assert "no split 'tset'" in fails("eval", run, "--split", "tset")


@pytest.mark.parametrize("command", [[], ["train"], ["eval"], ["convert"], ["models"]])
def test_help_has_an_example(command, capsys):
    with pytest.raises(SystemExit) as exit_:
        cli.main([*command, "--help"])
    assert exit_.value.code == 0
    printed = capsys.readouterr().out
    assert f"miniclip {' '.join(command)}".strip() in printed
    if command:
        assert "example" in printed


def copy_of(source: Path, target: Path) -> Path:
    import shutil

    return Path(shutil.copytree(source, target))


def test_convert(tmp_path, capsys):
    save(fresh(PRESETS["bert_vit_tiny"][1]), tmp_path / "mine")
    assert cli.main(["convert", str(tmp_path / "mine"), str(tmp_path / "half"), "--dtype", "bfloat16"]) == 0
    assert "in bfloat16, in the layout of miniclip" in capsys.readouterr().out
    half = miniclip.load(tmp_path / "half")
    assert torch.equal(half.image.positions, miniclip.load(tmp_path / "mine").image.positions.bfloat16())
    assert cli.main(["convert", str(tmp_path / "mine"), str(tmp_path / "converted"), "--layout", "open_clip"]) == 2
    assert "no bidirectional text tower with masked padding" in capsys.readouterr().err
    assert not (tmp_path / "converted").exists()


def test_convert_to_other_layouts_and_from_bare_weights(tmp_path, capsys):
    image = ImageConfig(16, 8, 64, 1, 1, activation="quickgelu")
    text = TextConfig(12, 600, 64, 1, 1, activation="quickgelu", causal=True, pooling="end")
    model = fresh(CLIPConfig(image, text, 32))
    save(model, tmp_path / "mine")
    for layout, name in (("openai", "model.pt"), ("open_clip", "open_clip_model.safetensors")):
        assert cli.main(["convert", str(tmp_path / "mine"), str(tmp_path / layout), "--layout", layout]) == 0
        assert (tmp_path / layout / name).is_file()
    bare = tmp_path / "bare.safetensors"
    (tmp_path / "open_clip" / "open_clip_model.safetensors").rename(bare)
    capsys.readouterr()
    assert cli.main(["convert", str(bare), str(tmp_path / "again")]) == 2
    assert "--architecture ViT-B-32 for weights" in capsys.readouterr().err
    settings = str(tmp_path / "open_clip" / "open_clip_config.json")
    assert cli.main(["convert", str(bare), str(tmp_path / "again"), "--architecture", settings]) == 0
    again = miniclip.load(tmp_path / "again")
    assert all(torch.equal(a, b) for a, b in zip(again.parameters(), model.parameters(), strict=True))


def test_models_lists_presets_and_pretrained_checkpoints(capsys):
    assert cli.main(["models"]) == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == list(miniclip.list_models())
    assert cli.main(["models", "vit_h_14_dfn"]) == 0
    assert "apple/DFN5B-CLIP-ViT-H-14" in capsys.readouterr().out
    assert cli.main(["models", "vit_b16"]) == 2
    assert (
        capsys.readouterr().err
        == "miniclip: vit_b16: neither a path nor the name of a model; did you mean 'vit_b_16'? "
        "`miniclip models` lists all names\n"
    )
