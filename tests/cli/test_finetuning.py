"""Fine-tuning from the command line: the figures before the first step, what was gained and lost, and interpolation."""

import json
import re
import shlex

import pytest
import torch

import miniclip
from miniclip import cli, recipes
from miniclip.cli.finetuning.against import spec_and_split, task_of
from miniclip.cli.finetuning.finetune import defaults, tower_settings
from miniclip.cli.trainers import with_group
from miniclip.data import Shapes, open_data
from miniclip.data.opening import parse_spec
from miniclip.runs.history import History
from miniclip.train import TrainConfig, Trainer
from tests.toys import make_model

FAST = ["--epochs", "2", "--batch-size", "8", "--precision", "float32", "--device", "cpu", "--num-workers", "0"]


@pytest.fixture(scope="module")
def base(toy_tokenizer, tmp_path_factory):
    """A checkpoint to start from."""
    path = tmp_path_factory.mktemp("models") / "base"
    miniclip.save(make_model(toy_tokenizer), path)
    return path


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    """A table of 40 synthetic images with captions, split by the seed into 32, 4 and 4."""
    root = tmp_path_factory.mktemp("products")
    data, rows = Shapes("train", 40), ["image,caption"]
    for i, captions in enumerate(data.captions):
        data[i][0].save(root / f"{i}.png")
        rows.append(f'{i}.png,"{captions[0]}"')
    (root / "products.csv").write_text("\n".join(rows) + "\n", encoding="utf-8")
    return root / "products.csv"


@pytest.fixture(scope="module")
def tuned(base, table, tmp_path_factory):
    """A finished run of fine-tuning."""
    run = tmp_path_factory.mktemp("runs") / "products"
    assert cli.main(["finetune", str(base), str(table), "--run-dir", str(run), "--lr", "1e-3", *FAST]) == 0
    return run


def test_run_starts_with_the_figures_of_the_untouched_model(base, table, tuned):
    first, *later = History.read(tuned).evaluations
    assert (first["step"], first["epoch"]) == (0, 0)
    assert [record["epoch"] for record in later] == [1, 2]
    untouched = miniclip.evaluation.retrieval(miniclip.load(base), open_data(table, "val"))
    assert {way: first[way] for way in untouched} == untouched


def test_defaults_are_those_of_the_method_and_flags_override_them(base, table, tmp_path, capsys):
    command = ["finetune", str(base), str(table), "--dry-run", "--run-dir", str(tmp_path / "run")]
    assert cli.main([*command, "--epochs", "3"]) == 0
    lines = capsys.readouterr().out.splitlines()
    rows = {line.split()[0]: line.split(maxsplit=2)[1:] for line in lines if line.startswith("  ")}
    assert rows["lr"] == ["1e-05", "default for fine-tuning"]
    assert rows["epochs"] == ["3", "flag"]
    assert rows["evaluate_first"][0] == "true"


RECIPES = [name for name in recipes.names() if recipes.is_for_tuning(name)]
NEEDED = {"tune-replay": ["--replay", "shapes:train"], "tune-lit": ["--no-cache-frozen"]}  # a plan would have to encode


@pytest.mark.parametrize("name", RECIPES)
def test_recipes_plan_a_run_and_flags_override_them(name, base, table, small_shapes, tmp_path, capsys):
    flags = ["--recipe", name, "--epochs", "3", "--batch-size", "8", "--run-dir", str(tmp_path / "run"), "--dry-run"]
    assert cli.main(["finetune", str(base), str(table), *flags, *NEEDED.get(name, []), "--device", "cpu"]) == 0
    lines = capsys.readouterr().out.splitlines()
    rows = {line.split()[0]: line.split(maxsplit=2)[1:] for line in lines if line.startswith("  ")}
    assert rows["lr"] == ["0.0001" if name == "tune-lora" else "1e-05", "default for fine-tuning"]
    assert rows["epochs"] == ["3", "flag"]
    assert rows["weight_decay"] == ["0.1", "file"], "not that of the command"


def test_recipes_train(base, table, small_shapes, tmp_path):
    for name in ("tune-replay", "tune-lit"):
        flags = ["--recipe", name, *FAST, "--max-steps", "1", "--run-dir", str(tmp_path / name)]
        old = NEEDED[name] if name == "tune-replay" else []
        assert cli.main(["finetune", str(base), str(table), *flags, *old]) == 0
    assert [step["replayed"] for step in History.read(tmp_path / "tune-replay").steps] == [5]
    before, after = (miniclip.load(path).state_dict() for path in (base, tmp_path / "tune-lit" / "last"))
    moved = {key.split(".")[0] for key, weight in before.items() if not torch.equal(weight, after[key])}
    assert "text" in moved
    assert "image" not in moved


def test_groups_are_a_part_of_the_run_s_data(tmp_path, capsys):
    assert with_group("a.csv", "product id") == "a.csv?group=product%20id"
    assert with_group("a.csv?image=file", "sku") == "a.csv?image=file&group=sku"
    assert parse_spec(with_group("a.csv", "a&b=c")).columns.group == "a&b=c"
    assert cli.main(["train", "--group-by", "product"]) == 2
    assert "--group-by is for tables" in capsys.readouterr().err


def test_summary_shows_harm_and_names_commands(base, table, tmp_path, capsys):
    run = tmp_path / "run"
    assert cli.main(["finetune", str(base), str(table), "--run-dir", str(run), "--lr", "1e-30", *FAST]) == 0
    out = capsys.readouterr().out
    assert "before the first step: text to image R@1" in out
    assert "no evaluation is better than the model before the first step" in out
    assert f"next: miniclip eval {run} --against {base}" in out
    start, best = miniclip.load(base), miniclip.load(run / "best")
    assert all(torch.equal(a, b) for a, b in zip(start.parameters(), best.parameters(), strict=True))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["model"], "expected a model and data, as in `miniclip finetune vit_b_32 products.csv`"),
        (["--resume", "run", "data"], "continues that run with its own model, data and method: remove data"),
        (["--resume", "run", "--method", "lora"], "remove --method"),
        (["model", "data", "--method", "last-0"], "invalid method value: 'last-0'"),
    ],
)
def test_refuses_arguments_before_torch_is_imported(arguments, words, capsys):
    try:
        code = cli.main(["finetune", *arguments])
    except SystemExit as error:
        code = error.code
    assert code == 2
    assert words in capsys.readouterr().err


@pytest.mark.parametrize(
    ("method", "frozen", "lr"), [("lora", (), 1e-4), ("lit", ("image.",), 1e-5), ("last-1", (), 1e-5)]
)
def test_method_trains_its_parts_and_is_interpolated(method, frozen, lr, base, table, tmp_path):
    run, target = tmp_path / "run", tmp_path / "between"
    short = [*FAST, "--max-steps", "2", "--lr", "1e-2", "--method", method]
    assert cli.main(["finetune", str(base), str(table), "--run-dir", str(run), *short]) == 0
    before, after = (miniclip.load(path).state_dict() for path in (base, run / "last"))
    changed = {name for name, value in after.items() if not torch.equal(value, before[name])}
    assert any(name.startswith("text.blocks.") for name in changed)
    assert not [name for name in changed if name.startswith(frozen)] or not frozen
    assert any(name.startswith("image.blocks.") for name in changed) != bool(frozen)
    assert cli.main(["interpolate", str(base), str(run / "last"), "--alpha", "1", "-o", str(target)]) == 0
    assert all(torch.equal(value, after[name]) for name, value in miniclip.load(target).state_dict().items())
    assert defaults(tower_settings(method))["lr"] == lr


def test_contrastive_model_is_tuned_with_the_sigmoid_loss_and_longer_captions(base, table, tmp_path, capsys):
    run = tmp_path / "run"
    sizes = ["--loss", "sigmoid", "--context-length", "100", "--image-size", "24"]
    with pytest.warns(UserWarning, match="stretched to 100"):
        assert cli.main(["finetune", str(base), str(table), "--run-dir", str(run), *sizes, *FAST]) == 0
    assert "has no logit bias: added one of -10" in capsys.readouterr().out
    model = miniclip.load(run / "last")
    assert (model.config.text.context_length, model.config.image.image_size) == (100, 24)
    assert model.logit_bias is not None
    with pytest.warns(UserWarning, match="stretched to 100"):
        assert cli.main(["interpolate", str(base), str(run), "--alpha", "0", "-o", str(tmp_path / "between")]) == 0
    start = miniclip.load(base, image_size=24, context_length=100).state_dict()
    assert torch.equal(miniclip.load(tmp_path / "between").image.positions, start["image.positions"])
    assert cli.main(["finetune", "--resume", str(run), "--context-length", "77"]) == 2
    assert "remove --context-length" in capsys.readouterr().err


def test_sigmoid_run_is_interpolated_with_its_contrastive_start(base, table, tmp_path, capsys):
    run, target = tmp_path / "run", tmp_path / "between"
    assert cli.main(["finetune", str(base), str(table), "--run-dir", str(run), "--loss", "sigmoid", *FAST]) == 0
    advice = re.search(r"miniclip (interpolate .*) -o ", capsys.readouterr().out)
    assert cli.main([*shlex.split(advice[1]), "-o", str(target)]) == 0
    model, end = miniclip.load(target), miniclip.load(run)
    assert float(model.logit_bias) == pytest.approx((-10 + float(end.logit_bias)) / 2)
    assert cli.main(["interpolate", str(base), str(run), "--alpha", "0", "-o", str(target), "--overwrite"]) == 0
    assert torch.equal(miniclip.load(target).encode_text("a cat"), miniclip.load(base).encode_text("a cat"))


def test_adapters_only_get_no_new_logit_bias_which_would_stay_as_it_is(base, table, tmp_path, capsys):
    arguments = ["finetune", str(base), str(table), "--loss", "sigmoid", "--method", "lora", *FAST]
    assert cli.main([*arguments, "--run-dir", str(tmp_path / "run")]) == 2
    assert "a new one would not train with adapters only: use --loss contrastive" in capsys.readouterr().err
    assert cli.main([*arguments, "--tune-text", "full", "--run-dir", str(tmp_path / "run")]) == 0


@pytest.mark.parametrize("check", [[], ["--check"]], ids=["finetune", "check"])
@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (["--teacher", "no/such-model", "--distillation", "1"], "no/such-model"),
        (["--distillation", "1"], "teacher is not given"),
        (["--method", "lora", "--anchor-weights", "1"], "is an adapter"),
        (["--cache-frozen", "--min-crop-area", "1"], "cache"),
        (["--method", "last-9"], "the tower has"),
    ],
    ids=["no teacher", "half a teacher", "anchored adapters", "nothing frozen", "too many blocks"],
)
def test_objectives_and_parts_are_refused_by_the_check_too(settings, words, check, base, table, tmp_path, capsys):
    command = ["finetune", str(base), str(table), "--run-dir", str(tmp_path / "run"), *FAST]
    assert cli.main([*command, *settings, *check]) == 2
    assert words in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_interrupted_first_evaluation_is_repeated(toy_tokenizer, tmp_path, monkeypatch):
    """A run that is killed between the first state and the first evaluation evaluates after its resume, once."""
    train, val = Shapes("train", 16), Shapes("val", 8)
    config = TrainConfig(epochs=1, batch_size=8, evaluate_first=True, precision="float32", num_workers=0)
    trainer = Trainer(make_model(toy_tokenizer), train, val, config=config, run_dir=tmp_path / "a", device="cpu")

    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(trainer, "evaluate", stop)
    with pytest.raises(KeyboardInterrupt):
        trainer.fit()
    history = Trainer.resume(tmp_path / "a", train, val, device="cpu").fit()
    whole = Trainer(make_model(toy_tokenizer), train, val, config=config, run_dir=tmp_path / "b", device="cpu").fit()
    assert [record["step"] for record in history.evaluations] == [0, 2]
    assert history.evaluations == whole.evaluations
    lines = [json.loads(line) for line in (tmp_path / "a" / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "val_loss" in line] == [0, 2]


def test_eval_against_shows_gain_and_loss_with_intervals(base, table, tuned, tmp_path, capsys):
    out = tmp_path / "results.json"
    command = ["eval", str(tuned), "--against", str(base), "--old-data", "shapes:test", "--json", str(out)]
    assert cli.main([*command, "--device", "cpu"]) == 0
    text = capsys.readouterr().out
    head = next(line for line in text.splitlines() if line.startswith("retrieval, new data"))
    assert head.split("captions")[1].split() == [str(base), str(tuned), "difference"]
    assert "retrieval, old data shapes test, 500 images" in text
    rows = [r for r in json.loads(out.read_text()) if r["metric"] == "text_to_image R@1" and r["model"] == str(tuned)]
    for row, data in zip(rows, (open_data(table, "val"), Shapes("test")), strict=True):
        recalls = [
            miniclip.evaluation.retrieval(miniclip.load(path), data)["text_to_image"]["R@1"] for path in (base, tuned)
        ]
        assert row["difference"] == pytest.approx(recalls[1] - recalls[0])
        assert row["difference_low"] <= row["difference"] <= row["difference_high"]


@pytest.mark.parametrize(
    ("text", "spec", "split"),
    [("a.csv:test", "a.csv", "test"), ("a.csv", "a.csv", "val"), ("shapes:color", "shapes:color", "val")],
)
def test_split_stands_at_the_end_of_a_spec(text, spec, split):
    assert spec_and_split(text, "val") == (spec, split)


def test_task_is_that_of_the_data(table, tmp_path):
    assert task_of(str(table), "val", {}) == "retrieval"
    for name in ("cat", "dog"):
        (tmp_path / "animals" / name).mkdir(parents=True)
        Shapes("train", 1)[0][0].save(tmp_path / "animals" / name / "0.png")
    assert task_of(str(tmp_path / "animals"), "val", {}) == "zero-shot"
    (tmp_path / "empty").mkdir()
    with pytest.raises(miniclip.DataError, match=r"neither captions .* nor classes"):
        task_of(str(tmp_path / "empty"), "val", {})


def test_old_data_need_a_model_to_compare_with(tuned, capsys):
    assert cli.main(["eval", str(tuned), "--old-data", "shapes"]) == 2
    assert "--old-data is for --against MODEL" in capsys.readouterr().err


def test_interpolate_chooses_alpha_on_validation_data(base, table, tuned, tmp_path, capsys):
    target = tmp_path / "between"
    command = ["interpolate", str(base), str(tuned), "--alpha", "auto", "-o", str(target), "--device", "cpu"]
    assert cli.main([*command, "--old-data", f"{table}:val"]) == 0
    record = json.loads((target / "interpolation.json").read_text())
    assert [row["alpha"] for row in record["sweep"]] == [step / 10 for step in range(11)]
    best = max(
        (row for row in record["sweep"] if row["old_difference"] >= -1), key=lambda row: (row["new"], -row["alpha"])
    )
    assert record["alpha"] == best["alpha"]
    assert f"alpha {best['alpha']:g}: the greatest score" in capsys.readouterr().out
    expected = miniclip.interpolate(miniclip.load(base), miniclip.load(tuned), best["alpha"])
    assert torch.equal(miniclip.load(target).image.positions, expected.image.positions)
    assert (target / "interpolation.png").is_file()
    assert cli.main(["interpolate", str(base), str(tuned), str(tuned), "-o", str(target), "--overwrite"]) == 0
    mean = miniclip.soup([miniclip.load(path) for path in (base, tuned, tuned)])
    assert torch.equal(miniclip.load(target).image.positions, mean.image.positions)
    assert not (target / "interpolation.json").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["a", "--alpha", "0.5"], "found 1 models"),
        (["a", "b", "c", "--alpha", "0.5"], "--alpha needs two"),
        (["a", "b", "--alpha", "0.5", "--data", "c"], "add --alpha auto"),
        (["a", "b", "--alpha", "auto"], "needs --old-data"),
        (["a", "b", "--alpha", "auto", "--data", "shapes:test", "--old-data", "shapes"], "validation data"),
    ],
)
def test_interpolate_refuses_arguments_before_the_models_are_read(arguments, words, tmp_path, capsys):
    assert cli.main(["interpolate", *arguments, "-o", str(tmp_path / "out")]) == 2
    assert words in capsys.readouterr().err
