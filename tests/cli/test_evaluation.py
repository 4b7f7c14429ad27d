"""`miniclip eval` on labelled data and several models, `miniclip classify` and `miniclip explain`."""

import csv
import json
import sys

import pytest
from PIL import Image

import miniclip
from miniclip import cli
from miniclip.cli import explain
from miniclip.cli.evaluation import measuring
from miniclip.evaluation import ShapeClasses, corruptions, robustness, zero_shot
from miniclip.evaluation.probes import linear_models
from miniclip.explanation.relevance import METHODS
from miniclip.inference.model import CLIPModel
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


@pytest.fixture(scope="module")
def split_classes(tmp_path_factory):
    """Folders train and test of red and blue images."""
    folder = tmp_path_factory.mktemp("split")
    for split, counts in (("train", (3, 3)), ("test", (3, 2))):
        for color, count in zip(("red", "blue"), counts, strict=True):
            (folder / split / color).mkdir(parents=True)
            for number in range(count):
                Image.new("RGB", (20, 20 + number), color).save(folder / split / color / f"{number}.png")
    return folder


def run(*arguments) -> int:
    return cli.main([*map(str, arguments), "--device", "cpu"])


def test_all_tasks_on_shapes(saved, capsys, monkeypatch):
    pytest.importorskip("sklearn")
    monkeypatch.setattr(linear_models, "MAX_ITERATIONS", 10)
    command = ["eval", saved / "a", "--task", "all", "--data", "shapes", "--split", "test"]
    assert run(*command, "--shots", "1", "--seeds", "1") == 0
    out = capsys.readouterr().out
    for line in (
        "retrieval, shapes test, 500 images",
        "zero-shot, color, 117 images, 8 classes",
        "probe, shape, 113 images",
        "few-shot, shape, 113 images",
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


def test_few_shot_with_splits_of_folders(saved, split_classes, tmp_path, capsys):
    pytest.importorskip("sklearn")
    command = ["eval", saved / "a", saved / "b", "--task", "few-shot", "--data", split_classes, "--split", "test"]
    assert run(*command, "--seeds", "2", "--out", tmp_path / "out", "--json", tmp_path / "r.json") == 0
    out = capsys.readouterr().out
    assert [line.split()[0] for line in out.splitlines() if " shot" in line] == ["1", "2"]  # 3 images per class
    records = json.loads((tmp_path / "r.json").read_text())
    assert [(record["shots"], len(record["seeds"])) for record in records] == [(1, 2), (2, 2)] * 2
    assert [path.name for path in (tmp_path / "out").iterdir()] == [f"few-shot-{split_classes.name}-curve.png"]
    assert run(*command, "--shots", "5") == 2
    assert "5 shots: expected 1 to 3" in capsys.readouterr().err


def test_corruptions_of_retrieval_and_probes(saved, split_classes, tmp_path, capsys, monkeypatch):
    pytest.importorskip("sklearn")
    monkeypatch.setattr(robustness, "CORRUPTIONS", {"jpeg": corruptions.CORRUPTIONS["jpeg"]})
    command = ["eval", saved / "a", "--corruptions", "--csv", tmp_path / "r.csv", "--out", tmp_path / "out"]
    assert run(*command, "--task", "probe", "--data", split_classes, "--split", "test") == 0
    assert "probe top1 under corruptions" in capsys.readouterr().out
    with (tmp_path / "r.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["corruption"] == "jpeg"]
    assert [row["severity"] for row in rows] == ["1", "2", "3", "4", "5", ""]
    assert f"probe-top1-under-corruptions-{split_classes.name}-severities.png" in {
        path.name for path in (tmp_path / "out").iterdir()
    }
    (tmp_path / "photos").mkdir()
    for name in ("a", "b", "c"):
        Image.new("RGB", (20, 20), "red").save(tmp_path / "photos" / f"{name}.png")
        (tmp_path / "photos" / f"{name}.txt").write_text(f"the letter {name}")
    assert run(*command, "--data", tmp_path / "photos", "--split", "all") == 0
    assert "text_to_image R@1 under corruptions" in capsys.readouterr().out
    assert run("eval", saved / "a", "--task", "few-shot", "--data", "shapes", "--corruptions") == 2
    assert "--corruptions measures retrieval, zero-shot, probe, and not few-shot" in capsys.readouterr().err


def test_images_are_encoded_once_for_all_tasks(saved, split_classes, monkeypatch):
    pytest.importorskip("sklearn")
    encoded = []
    plain = CLIPModel.encode_image
    count = lambda self, images, **options: encoded.append(len(images)) or plain(self, images, **options)  # noqa: E731
    monkeypatch.setattr(CLIPModel, "encode_image", count)
    monkeypatch.setitem(measuring.PARTS, "all", ("zero-shot", "probe", "few-shot"))
    assert run("eval", saved / "a", "--task", "all", "--data", split_classes, "--split", "test") == 0
    assert sorted(encoded) == [5, 6]  # the test and the training images


def test_progress_is_shown_on_a_terminal_only(saved, classes, capsys, monkeypatch):
    command = ["eval", saved / "a", "--task", "zero-shot", "--data", classes]
    monkeypatch.delenv("TQDM_DISABLE", raising=False)
    assert run(*command) == 0
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    assert run(*command) == 0
    captured = capsys.readouterr()
    assert "6/6" in captured.err
    assert "6/6" not in captured.out


def test_outputs_are_checked_before_measuring(saved, classes, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(miniclip, "load", lambda *_, **__: pytest.fail("a model was loaded"))
    (tmp_path / "file").write_text("")
    command = ["eval", saved / "a", "--task", "zero-shot", "--data", classes]
    for options, message in (
        (("--json", tmp_path), "is a folder; expected a file"),
        (("--csv", tmp_path / "file" / "r.csv"), "is a file; expected a folder"),
        (("--out", tmp_path / "file"), "is a file; expected a folder"),
        (("--cache", tmp_path / "file"), "is a file; expected a folder"),
        (("--json", tmp_path / "r", "--csv", tmp_path / "r"), "are the same file"),
    ):
        assert run(*command, *options) == 2
        assert message in capsys.readouterr().err
    assert run("explain", saved / "a", "shapes:1", "-o", tmp_path) == 2
    assert "is a folder; expected a file" in capsys.readouterr().err


def test_classes_that_are_numbers_get_a_warning(saved, tmp_path, capsys):
    for name in ("0", "1"):
        (tmp_path / name).mkdir()
        Image.new("RGB", (8, 8)).save(tmp_path / name / "0.png")
    assert run("eval", saved / "a", "--task", "zero-shot", "--data", tmp_path) == 0
    assert "are numbers (0, 1, …), and the prompts will hold them" in capsys.readouterr().err


def test_probes_need_other_images_than_those_of_training(saved, split_classes, capsys):
    assert run("eval", saved / "a", "--task", "probe", "--data", split_classes, "--split", "train") == 2
    assert "need another split; add --split test" in capsys.readouterr().err
    (split_classes / "test" / "green").mkdir()
    try:
        assert run("eval", saved / "a", "--task", "probe", "--data", split_classes, "--split", "test") == 2
    finally:
        (split_classes / "test" / "green").rmdir()
    assert "the test split has 'green', which the train split lacks" in capsys.readouterr().err


def test_a_probe_is_not_tested_on_all_splits(saved, tmp_path, capsys):
    datasets = pytest.importorskip("datasets")
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["red", "blue"])})
    rows = {"image": [Image.new("RGB", (8, 8), color) for color in ("red", "blue")], "label": [0, 1]}
    for split in ("train", "test"):
        datasets.Dataset.from_dict(rows, features=features).to_parquet(tmp_path / f"{split}.parquet")
    assert run("eval", saved / "a", "--task", "probe", "--data", tmp_path, "--split", "all") == 2
    assert "need another split; add --split test" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--task", "few-shot", "--shots", 0], "--shots"),
        (["--task", "few-shot", "--seeds", 0], "--seeds"),
        (["--task", "probe", "--shots", 4], "--shots is for few-shot, and not for probe"),
        (["--task", "zero-shot", "--seeds", 4], "--seeds is for few-shot, and not for zero-shot"),
        (["--task", "retrieval", "--templates", "a.txt"], "--templates is for zero-shot, and not for retrieval"),
    ],
    ids=["shots", "seeds", "shots of a probe", "seeds of zero-shot", "templates of retrieval"],
)
def test_options_are_checked_before_measuring(saved, capsys, options, message):
    assert run("eval", saved / "a", "--data", "shapes", "--split", "test", *options) == 2
    assert message in capsys.readouterr().err


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
