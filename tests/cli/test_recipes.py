"""TOML recipes that are damaged or hostile: refused in one line that names the file."""

import os

import pytest

from miniclip import cli
from miniclip.cli.trainers import read_toml
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
