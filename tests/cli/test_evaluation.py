"""`miniclip eval` on labelled data and several models, `miniclip classify` and `miniclip explain`."""

import csv
import json

import pytest
from PIL import Image

import miniclip
from miniclip import cli
from miniclip.cli import explain
from miniclip.evaluation import ShapeClasses, zero_shot
from miniclip.evaluation.probes import linear_models
from miniclip.explanation.relevance import METHODS
from tests.toys import make_model


@pytest.fixture(scope="module")
def saved(tokenizer, tmp_path_factory):
    """Two checkpoints that differ by a small change of the weights."""
    folder = tmp_path_factory.mktemp("models")
    model = make_model(tokenizer)
    miniclip.save(model, folder / "a")
    model.image.positions.data[0] += 0.5
    miniclip.save(model, folder / "b")
    return folder


@pytest.fixture(scope="module")
def classes(tmp_path_factory):
    """Folder of red and blue images."""
    folder = tmp_path_factory.mktemp("classes")
    for color in ("red", "blue"):
        (folder / color).mkdir()
        for number in range(3):
            Image.new("RGB", (20, 20), color).save(folder / color / f"{number}.png")
    return folder


def run(*arguments) -> int:
    return cli.main([*map(str, arguments), "--device", "cpu"])


def test_all_tasks_on_shapes(saved, capsys, monkeypatch):
    pytest.importorskip("sklearn")
    monkeypatch.setattr(linear_models, "MAX_ITERATIONS", 10)
    assert run("eval", saved / "a", "--task", "all", "--data", "shapes", "--split", "test") == 0
    out = capsys.readouterr().out
    for line in (
        "retrieval, shapes test, 500 images",
        "zero-shot, color, 117 images, 8 classes",
        "probe, shape, 113 images",
    ):
        assert line in out
    model = miniclip.load(saved / "a", device="cpu")
    assert f"{zero_shot(model, ShapeClasses('color', 'test'))['top1']:.1f} [" in out


def test_two_models_with_files_and_figures(saved, classes, tmp_path, capsys):
    files = ["--json", tmp_path / "r.json", "--csv", tmp_path / "deep" / "r.csv", "--out", tmp_path / "figures"]
    command = [
        "eval",
        saved / "a",
        saved / "b",
        "--task",
        "zero-shot",
        "--data",
        classes,
        "--cache",
        tmp_path / "cache",
    ]
    assert run(*command, *files) == 0
    first = capsys.readouterr().out
    assert f"zero-shot, {classes.name}, 6 images, 2 classes" in first
    records = json.loads((tmp_path / "r.json").read_text())
    assert {record["model"] for record in records} == {str(saved / "a"), str(saved / "b")}
    assert records[0]["difference"] is None
    second = next(r for r in records if r["model"] == str(saved / "b") and r["metric"] == "top1")
    assert second["difference_low"] <= second["difference"] <= second["difference_high"]
    with (tmp_path / "deep" / "r.csv").open() as file:
        assert [row["metric"] for row in csv.DictReader(file)] == [record["metric"] for record in records]
    assert {path.name.split("-")[-1] for path in (tmp_path / "figures").iterdir()} >= {
        "bars.png",
        "confusion.png",
        "reliability.png",
    }
    assert len(list((tmp_path / "cache").iterdir())) == 2
    assert run(*command) == 0  # from the cache
    assert capsys.readouterr().out == first.split("wrote ")[0]


def test_templates_and_corruptions(saved, classes, tmp_path, capsys):
    (tmp_path / "t.txt").write_text("a {} circle\nthe {} square\n")
    command = ["eval", saved / "a", "--task", "zero-shot", "--data", classes, "--templates", tmp_path / "t.txt"]
    assert run(*command, "--corruptions") == 0
    out = capsys.readouterr().out
    assert f"zero-shot top1 under corruptions, {classes.name}, 6 images" in out
    assert all(name in out for name in ("gaussian_noise", "jpeg", "severity 5", "without corruption", "drop"))
    (tmp_path / "t.txt").write_text("a circle\n")
    assert run(*command) == 2
    assert "template 1: 'a circle' has 0 fields" in capsys.readouterr().err


def test_messages_name_what_to_do(saved, classes, tmp_path, capsys):
    assert run("eval", saved / "a", "--task", "zero-shot", "--data", tmp_path / "none") == 2
    assert "expected 'shapes', a folder with a folder per class" in capsys.readouterr().err
    assert run("eval", saved / "a") == 2
    assert "add --data" in capsys.readouterr().err
    assert run("explain", saved / "a") == 2
    assert "expected an image and a text" in capsys.readouterr().err


@pytest.mark.parametrize("options", [("zero-shot", "trian"), ("zero-shot", "test"), ("probe", "val")], ids=str)
def test_a_folder_without_splits_is_not_both_train_and_test(saved, classes, capsys, options):
    assert run("eval", saved / "a", "--data", classes, "--task", options[0], "--split", options[1]) == 2
    assert "put the images of each split into a folder" in capsys.readouterr().err


def test_classify_prints_a_table_or_json(saved, classes, capsys):
    images = [classes / "red" / "0.png", classes / "blue" / "1.png"]
    command = ["classify", saved / "a", *images, "--labels", "red", "blue", "--template", "a {} circle"]
    assert run(*command) == 0
    table = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in table] == list(map(str, images))
    assert run(*command, "--json") == 0
    records = json.loads(capsys.readouterr().out)
    assert sum(records[0]["probabilities"].values()) == pytest.approx(1)
    assert f"{records[0]['label']} {max(records[0]['probabilities'].values()):.1%}" in table[0]
    assert run("classify", saved / "a", classes, "--labels", "red", "blue") == 2
    assert f"{classes}: a folder; name its images, as in {classes}/*.jpg" in capsys.readouterr().err
    assert run(*command, "--labels", "red", "red") == 2
    assert "'red' stands for two classes" in capsys.readouterr().err


def test_explain_offers_all_methods():
    assert explain.METHODS == METHODS  # the parser does not import torch


def test_explain_writes_a_plot(saved, classes, tmp_path, capsys):
    output = tmp_path / "e.png"
    assert run("explain", saved / "a", classes / "red" / "0.png", "a red circle", "-o", output) == 0
    assert f"wrote {output}" in capsys.readouterr().out
    assert run("explain", saved / "a", "shapes:3", "-o", output) == 0
    assert miniclip.data.Shapes("test")[3][1][0] in capsys.readouterr().out
    assert run("explain", saved / "a", "shapes:3", " ", "-o", output) == 2
    assert "text: it is empty" in capsys.readouterr().err
    assert run("explain", saved / "a", "shapes:x", "-o", output) == 2
    assert "expected a number from 0 to 499" in capsys.readouterr().err
    assert Image.open(output).format == "PNG"
