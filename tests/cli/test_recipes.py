"""TOML recipes: those of the package, the table of the model, and damaged or hostile files, refused in one line."""

import os

import pytest

from benchmarks.finetuning.methods import BATCH, METHODS
from benchmarks.finetuning.starts import STARTS
from miniclip import cli, recipes
from miniclip.cli.finetuning.finetune import defaults
from miniclip.cli.replay import replay_of
from miniclip.cli.running import parse
from miniclip.cli.train import with_defaults
from miniclip.cli.trainers import SHAPES_SETTINGS, fresh_model, merge_settings, preset_defaults, read_toml
from miniclip.config import preset
from miniclip.train.config import TrainConfig


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("lr = " + "[" * 5000, "not TOML"),
        ("lr = " + "{a=" * 5000, "not TOML"),
        (".".join(["a"] * 5000) + " = 1", "unknown setting 'a'"),
        ("epochs = " + "1" * 5000, "not TOML"),
        ("lr = 1979-13-45", "not TOML"),
        ("data = 3", "data is 3; expected text in quotes"),
        ("run_dir = [1]", "run_dir is [1]; expected text in quotes"),
        ("device = true", "device is True; expected text in quotes"),
        ('"a\\nb" = 1', "unknown setting"),
    ],
    ids=["lists", "objects", "dots", "digits", "date", "data", "run_dir", "device", "newline"],
)
def test_refuses_damaged_recipes(text, words, tmp_path, capsys):
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(text)
    with pytest.raises((ValueError, TypeError)) as caught:
        read_toml(str(recipe))
    message = str(caught.value)
    assert message.startswith(f"{recipe}: ")
    assert words in message
    assert message.isprintable()
    assert cli.main(["train", "--config", str(recipe)]) == 2
    assert words in capsys.readouterr().err


@pytest.mark.parametrize("kind", ["pipe", "/dev/zero", "directory", "large"])
def test_refuses_recipes_that_are_not_regular(kind, tmp_path):
    recipe = tmp_path / "recipe.toml"
    if kind == "pipe":
        os.mkfifo(recipe)
    elif kind == "directory":
        recipe.mkdir()
    elif kind == "large":
        with recipe.open("wb") as file:
            file.truncate(1 << 40)
    else:
        recipe.symlink_to(kind)
    with pytest.raises((FileNotFoundError, ValueError), match=r"expected a regular file|expected at most") as caught:
        read_toml(str(recipe))
    assert str(recipe) in str(caught.value)


@pytest.mark.parametrize("value", [10**19, 10**400, -(10**400), float("nan"), float("inf"), True, "3", [3], {}])
@pytest.mark.parametrize("name", ["epochs", "batch_size", "lr", "seed", "warmup_fraction", "ema_decay", "num_workers"])
def test_refuses_settings_out_of_range(name, value):
    with pytest.raises((ValueError, TypeError), match=f"{name} is") as caught:
        TrainConfig(**{name: value})
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize("name", recipes.names())
def test_recipes_of_the_package_are_valid(name, capsys):
    settings = read_toml(str(recipes.path_of(name)))
    if recipes.is_for_tuning(name):
        assert not {"preset", "architecture", "model"} & settings.keys()
        replay_of("old", settings.pop("replay_share", None))
    else:
        recipes.changed(preset(settings.pop("preset")), settings.pop("architecture", {}))
    TrainConfig.from_dict(settings)
    assert len(recipes.card(name)) >= 2, "the use, and what was measured"
    assert cli.main(["recipes", name]) == 0
    assert capsys.readouterr().out == recipes.path_of(name).read_text()


def test_lists_recipes(capsys):
    assert cli.main(["recipes"]) == 0
    text = capsys.readouterr().out
    assert all(line in text for name in recipes.names() for line in [name, *recipes.card(name)])
    assert cli.main(["recipes", "smal-set"]) == 2
    assert "unknown recipe 'smal-set'; did you mean 'small-set'?" in capsys.readouterr().err


def test_train_takes_a_recipe_by_name(tmp_path, capsys):
    with pytest.raises(SystemExit):
        cli.main(["train", "--recipe", "smal-set"])
    assert "did you mean 'small-set'" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        cli.main(["train", "--recipe", "small-set", "--config", "mine.toml"])
    assert "not allowed with" in capsys.readouterr().err
    assert cli.main(["train", "--resume", "runs/mine", "--recipe", "small-set"]) == 2
    assert "remove --recipe" in capsys.readouterr().err
    options = parse(["train", "--recipe", "small-set", "--lr", "1e-3"])
    settings = merge_settings(options["recipe"], {"lr": options["lr"]})
    assert settings == {**read_toml(str(recipes.path_of("small-set"))), "lr": 1e-3}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["train", "--recipe", "tune-full"], "use `miniclip finetune MODEL DATA --recipe tune-full`"),
        (["finetune", "base", "new.csv", "--recipe", "tune-replay"], "has no old data: add --replay DATA"),
        (["finetune", "base", "new.csv", "--recipe", "tune-ful"], "did you mean 'tune-full'"),
        (
            ["finetune", "base", "new.csv", "--recipe", "small-set"],
            "use `miniclip train --recipe small-set`",
        ),
        (["finetune", "--resume", "runs/mine", "--recipe", "tune-replay"], "remove --recipe"),
    ],
    ids=["for fine-tuning", "no old images", "unknown", "for fresh weights", "resume"],
)
def test_refuses_a_recipe_for_another_case(arguments, words, capsys):
    try:
        code = cli.main(arguments)
    except SystemExit as exit:
        code = exit.code
    assert code == 2
    assert words in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "method"),
    [("tune-full", "full"), ("tune-replay", "replay, share 0.67"), ("tune-lit", "LiT"), ("tune-lora", "LoRA")],
)
def test_recipes_for_fine_tuning_have_the_measured_settings_but_the_rate(name, method):
    measured = dict(METHODS[method])
    share, batch = measured.pop("share", None), BATCH
    settings = read_toml(str(recipes.path_of(name)))
    if share is not None:
        assert round(settings.pop("replay_share") * batch) == round(share * batch), "old images in a batch"
    assert "lr" not in settings, "that of a small model would ruin a published one"
    complete = with_defaults(settings, defaults) | {"evaluate_first": False, "lr": measured["lr"]}
    epochs = STARTS["emoji and icons to things"].epochs
    assert TrainConfig(**complete) == TrainConfig(epochs=epochs, batch_size=batch, **{"tune_text": "full"} | measured)


def test_small_presets_have_the_settings_of_a_recipe():
    tiny = read_toml(str(recipes.path_of("few-minutes")))
    defaults = preset_defaults({"data": "photos"})
    assert {"optimizer", "lr", "batch_size", "epochs"} <= defaults.keys() <= tiny.keys()
    assert all(tiny[name] == value for name, value in defaults.items())
    assert not {"preset", "architecture", "eval_every"} & defaults.keys()
    assert preset_defaults({"data": "photos", "preset": "bert_vit_small"}) == defaults
    assert preset_defaults({}) == defaults | SHAPES_SETTINGS
    assert "lr" not in preset_defaults({"data": "photos", "optimizer": "adamw"})
    for other in ({"preset": "bert_vit_b_16"}, {"model": "vit_b_32"}):
        assert preset_defaults({"data": "photos", **other}) == {}


class TestModelTable:
    TEXT = """preset = "bert_vit_tiny"
        [model]
        embed_dim = 64
        [model.image]
        layers = 1
        [model.text]
        vocab_size = 600
    """

    def test_changes_the_preset(self, tmp_path):
        (tmp_path / "recipe.toml").write_text(self.TEXT)
        settings = read_toml(str(tmp_path / "recipe.toml"))
        model = fresh_model(settings["preset"], [["a red ring"]], TrainConfig(), settings["architecture"])
        assert (model.config.image.layers, model.config.text.vocab_size, model.config.embed_dim) == (1, 600, 64)
        assert model.config.text.end_id == model.tokenizer.end_id < 600
        assert model.config.text.layers == preset("bert_vit_tiny").text.layers

    def test_the_run_records_it(self, small_shapes, tmp_path, capsys):
        (tmp_path / "recipe.toml").write_text(self.TEXT)
        assert cli.main(["train", "--config", str(tmp_path / "recipe.toml"), "--dry-run"]) == 0
        line = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("  architecture"))
        assert "'embed_dim': 64" in line
        assert line.endswith("file")

    @pytest.mark.parametrize("flag", ["preset", "model"])
    def test_a_flag_replaces_the_architecture(self, flag, tmp_path):
        (tmp_path / "recipe.toml").write_text("lr = 1e-4\n" + self.TEXT)
        assert merge_settings(str(tmp_path / "recipe.toml"), {flag: "other"}) == {"lr": 1e-4, flag: "other"}

    @pytest.mark.parametrize(
        ("text", "words"),
        [
            ("[model]\nlayers = 2", "layers"),
            ("[model.image]\npatch = 8", "patch"),
            ("[model.image]\npatch_size = 128", "patch_size"),
            ("[model]\nimage = 3", "image is 3; expected a table"),
            ("[model.embed_dim]\na = 3", "embed_dim is {'a': 3}; expected a value"),
            ("[model]\nembed_dim = 'a'", "embed_dim is 'a'"),
            ("preset = 'bert_vit_tin'\n[model]\nembed_dim = 4", "did you mean 'bert_vit_tiny'"),
        ],
    )
    def test_refuses_wrong_tables(self, text, words, tmp_path):
        (tmp_path / "recipe.toml").write_text(text)
        with pytest.raises((ValueError, TypeError)) as caught:
            read_toml(str(tmp_path / "recipe.toml"))
        assert words in str(caught.value)
        assert str(caught.value).startswith(f"{tmp_path / 'recipe.toml'}: ")
