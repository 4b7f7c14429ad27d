"""Training on several ranks: the run of one process up to the order of sums, one writer, a common end.

The file also holds the functions of the ranks. All cases share one start, and end with a failure.
"""

import dataclasses
import json
import os
import signal
import sys
from pathlib import Path

import pytest
import torch

from miniclip import cli
from miniclip.data import Replay, Shapes
from miniclip.data.loader import ImageCaptionLoader
from miniclip.data.options import LoaderOptions
from miniclip.errors import DataError
from miniclip.inference.model import CLIPModel
from miniclip.loggers.defaults import default_callbacks
from miniclip.runs.metrics_file import MetricsFile
from miniclip.runs.progress import Progress
from miniclip.runs.state import read_state
from miniclip.runtime import distributed
from miniclip.runtime.fsdp import require_even
from miniclip.tokenizer import Tokenizer
from miniclip.train import History, TrainConfig, Trainer
from tests.toys import make_model

RANDOM = {"color_jitter": 0.3, "max_rotation_degrees": 10.0, "patch_dropout": 0.5}
# By ranks and name: settings. What a second epoch changes (the order, evaluations, skipped images) has its cases.
CASES = {
    2: {
        "plain": {"batch_size": 8, "ema_decay": 0.5, "save_every": 2, "keep_checkpoints": 2, **RANDOM},
        "cached": {"epochs": 1, "batch_size": 9, "micro_batch_size": 2, **RANDOM},  # 5 and 4 rows, 3 and 2 parts
        "sigmoid": {"epochs": 1, "batch_size": 7, "loss": "sigmoid"},
        "sigmoid-cached": {"batch_size": 7, "loss": "sigmoid", "micro_batch_size": 3, "num_workers": 1},
        "skip": {"batch_size": 8, "on_error": "skip", "max_skip_fraction": 0.2, **RANDOM},  # 4 and 3 rows, in turn
        "skip-cached": {
            "batch_size": 9,
            "on_error": "skip",
            "max_skip_fraction": 0.2,
            "micro_batch_size": 2,
            "num_workers": 0,
        },
        "fsdp": {"batch_size": 8, "fsdp": True, "ema_decay": 0.5, **RANDOM},
        "fsdp-cached": {"batch_size": 10, "fsdp": True, "micro_batch_size": 2, "loss": "sigmoid", **RANDOM},
        "fsdp-checkpointed": {
            "epochs": 1,
            "batch_size": 8,
            "fsdp": True,
            "gradient_checkpointing": True,
            "micro_batch_size": 3,
        },
        "fsdp-rates": {"batch_size": 8, "fsdp": True, "epochs": 1, "layer_decay": 0.5, "first_image_size": 8},
        "captions": {
            "epochs": 1,
            "batch_size": 8,
            "captions_per_image": 2,
            "positives": "all",
            "label_smoothing": 0.1,
            "on_error": "skip",
            "max_skip_fraction": 0.2,
            "micro_batch_size": 3,
            **RANDOM,
        },
        "fsdp-captions": {
            "epochs": 1,
            "batch_size": 8,
            "fsdp": True,
            "captions_per_image": 3,
            "loss": "sigmoid",
            **RANDOM,
        },
        "lora": {
            "epochs": 1,
            "batch_size": 9,
            "tune_image": "lora",
            "tune_text": "last-1",
            "micro_batch_size": 3,
            "ema_decay": 0.5,
        },
        "fsdp-lora": {"batch_size": 8, "fsdp": True, "tune_image": "lora", "tune_text": "lora", "ema_decay": 0.5},
        "checkpointed": {"epochs": 1, "batch_size": 9, "gradient_checkpointing": True, "micro_batch_size": 3, **RANDOM},
        "replay": {"batch_size": 9, "share": 0.4, "micro_batch_size": 3, **RANDOM},
        "fsdp-replay": {"batch_size": 8, "share": 0.5, "fsdp": True, "epochs": 1},
    },
    3: {
        "three": {"batch_size": 10, **RANDOM},  # 4, 3 and 3 rows
        "three-fsdp": {"epochs": 1, "batch_size": 12, "fsdp": True, **RANDOM},
        "three-cached": {"epochs": 1, "batch_size": 10, "micro_batch_size": 2, "loss": "sigmoid", **RANDOM},
    },
}
RANK_VARIABLES = ("RANK", "LOCAL_", "WORLD_", "MASTER_", "TORCHELASTIC_")  # torchrun sets them
OWN = {"samples_per_second", "data_wait", "other_cores", "mfu", "tokens"}  # belong to rank 0 or to the machine


class WithBroken(Shapes):
    """Dataset in which some images cannot be read."""

    def __getitem__(self, index: int):
        if index in {3, 17, 21}:
            raise DataError(f"photos/{index}.jpg: not an image")
        return super().__getitem__(index)


def trainer_of(run_dir: Path, callbacks=None, share: float | None = None, **settings) -> Trainer:
    """A trainer whose model is the same in every process; in float64, where nothing but the order of sums differs."""
    train_data = (WithBroken if settings.get("on_error") == "skip" else Shapes)("train", 30, image_size=16)
    tokenizer = Tokenizer.train([caption for group in train_data.captions for caption in group], 600)
    model = make_model(tokenizer, logit_scale=10.0, logit_bias=-10.0).double()
    torch.nn.init.constant_(model.logit_bias, -9.5)  # a trained one, which adapters may leave as it is
    if distributed.rank():  # rank 0's weights must be taken
        torch.nn.init.ones_(model.image.positions)
    model.image.register_forward_pre_hook(in_float64)
    config = TrainConfig(**{"epochs": 2, "batch_size": 8, "precision": "float32", "log_every": 3, **settings})
    if share is not None:
        train_data = Replay(train_data, Shapes("train", 13, image_size=16, seed=1), share)
    callbacks = [MetricsFile()] if callbacks is None else callbacks
    return Trainer(model, train_data, held_out(), config=config, run_dir=run_dir, callbacks=callbacks, device="cpu")


def held_out() -> Shapes:
    return Shapes("val", 11, image_size=16)  # uneven for 2 ranks, and for 3


def resumed(run_dir: Path) -> Trainer:
    trainer = Trainer.resume(
        run_dir, Shapes("train", 30, image_size=16), held_out(), callbacks=[MetricsFile()], device="cpu"
    )
    trainer.model.image.register_forward_pre_hook(in_float64)
    return trainer


def in_float64(tower: CLIPModel, arguments: tuple) -> tuple:
    return arguments[0].double(), *arguments[1:]


# functions of a rank


def train_all(folder: Path) -> None:
    with distributed.process_group("cpu"):
        for name, settings in CASES[distributed.world_size()].items():
            trainer = trainer_of(folder / name, **settings)
            history = trainer.fit()
            (folder / f"{name}-{distributed.rank()}.held").write_text(str(share_held(trainer.model)))
            (folder / f"{name}-{distributed.rank()}.json").write_text(json.dumps(figures(history)))
        if distributed.world_size() == 2:
            stop_and_go_on(folder)
        (folder / f"{distributed.rank()}.done").touch()
        (fail if distributed.world_size() == 2 else other_data)(folder / "failed")


def stop_and_go_on(folder: Path) -> None:
    """Stop runs by a signal to rank 1 only, in an epoch, and resume one of them; tests resume the others."""
    for run, case, number, last in (
        ("stopped", "plain", signal.SIGTERM, 2),
        ("resumed-by-one", "plain", signal.SIGINT, 4),
        ("resumed-by-one-fsdp", "fsdp", signal.SIGTERM, 4),
    ):
        trainer = trainer_of(folder / run, **CASES[2][case])
        step = trainer.train_step

        def train_step(batch, step=step, trainer=trainer, last=last, number=number):
            step(batch)
            if trainer.step == last and distributed.rank() == 1:
                os.kill(os.getpid(), number)

        trainer.train_step = train_step
        try:
            trainer.fit()
        except KeyboardInterrupt:
            (folder / f"{run}-{distributed.rank()}.step").write_text(str(trainer.step))
    resumed(folder / "stopped").fit()


def share_held(model: CLIPModel) -> float:
    """Return the fraction of the weights that this process holds."""
    held = sum((p.to_local() if distributed.is_sharded(p) else p).numel() for p in model.parameters())
    return held / sum(p.numel() for p in model.parameters())


def fail(run_dir: Path) -> None:
    """Rank 1 fails on a broken image while the others compute; no rank gets beyond this."""
    trainer = trainer_of(run_dir, default_callbacks())
    step = trainer.train_step

    def train_step(batch):
        if trainer.step == 2 and distributed.rank() == 1:
            raise DataError("photos/17.jpg: not an image")
        step(batch)

    trainer.train_step = train_step
    trainer.fit()


def other_data(run_dir: Path) -> None:
    data = Shapes("train", 30 + (distributed.rank() == 1), image_size=16)
    Trainer(make_model(Tokenizer.train(data.captions[0], 514)), data, run_dir=run_dir, device="cpu")


# comparison


def figures(history: History) -> list[dict]:
    return [{k: v for k, v in r.items() if k not in OWN} for r in history.steps + history.evaluations]


def flat(record: dict) -> list[float]:
    values = [flat(v) if isinstance(v, dict) else [float(v)] for v in record.values()]
    return [number for group in values for number in group]


def position(progress: Progress) -> dict[str, float]:
    return {name: value for name, value in dataclasses.asdict(progress).items() if name != "callbacks"}


def assert_same_run(a: Path, b: Path, tolerance: float = 1e-9) -> None:
    one, other = (figures(History.read(run)) for run in (a, b))
    assert len(one) == len(other)
    for mine, theirs in zip(one, other, strict=True):
        assert mine.keys() == theirs.keys()
        exact = "val_loss" not in mine  # evaluation is in float32
        assert flat(mine) == pytest.approx(flat(theirs), rel=tolerance if exact else 1e-6, abs=1e-12)
    mine, theirs = (read_state(run / "state.safetensors") for run in (a, b))
    assert position(mine.progress) == pytest.approx(position(theirs.progress))
    for x, y in zip(
        (mine.weights, mine.optimizer, mine.ema), (theirs.weights, theirs.optimizer, theirs.ema), strict=True
    ):
        assert x.keys() == y.keys()
        for key, value in x.items():
            error = float((value - y[key]).abs().max())
            assert error <= tolerance * float(y[key].abs().max()) + 1e-12, (key, error)


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """Function that trains a case on one process and returns its run directory."""
    folder, done = tmp_path_factory.mktemp("alone"), {}

    def run(settings: dict) -> Path:
        key = json.dumps(settings, sort_keys=True)
        if key not in done:
            done[key] = folder / str(len(done))
            trainer_of(done[key], **settings).fit()
        return done[key]

    return run


RESULTS: dict[int, tuple[Path, list[tuple[int, str, str]]]] = {}


@pytest.fixture
def finished(ranks, tmp_path_factory):
    """Function that runs all cases of a number of ranks; it returns their folder, exit codes and outputs."""

    def run(count: int) -> tuple[Path, list[tuple[int, str, str]]]:
        if count not in RESULTS:
            folder = tmp_path_factory.mktemp(f"ranks{count}")
            results = ranks(count, train_all, folder, succeed=False)
            assert len(list(folder.glob("*.done"))) == count, "\n".join(error for *_, error in results)
            RESULTS[count] = folder, results
        return RESULTS[count]

    return run


@pytest.fixture
def trained(finished):
    """Function that runs all cases of a number of ranks and returns their folder."""
    return lambda count: finished(count)[0]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*skipped")
@pytest.mark.parametrize(("count", "name"), [(count, name) for count, names in CASES.items() for name in names])
def test_ranks_train_like_one_process(trained, alone, count, name):
    folder = trained(count)
    assert_same_run(folder / name, alone(CASES[count][name]))
    histories = [json.loads((folder / f"{name}-{rank}.json").read_text()) for rank in range(count)]
    for other in histories[1:]:
        for mine, theirs in zip(histories[0], other, strict=True):
            assert flat(mine) == pytest.approx(flat(theirs), rel=1e-12)
    assert not [path for path in (folder / name).iterdir() if path.name.startswith(".")]
    held = [float((folder / f"{name}-{rank}.held").read_text()) for rank in range(count)]
    assert max(held) < 1.2 / count if "fsdp" in name else held == [1.0] * count
    lines = (folder / name / "metrics.jsonl").read_text().splitlines()
    assert len(lines) == len(histories[0]), "a rank besides the first has written"


@pytest.mark.slow
def test_a_signal_to_one_rank_stops_all_after_the_same_step(trained, alone):
    folder = trained(2)
    assert [(folder / f"stopped-{rank}.step").read_text() for rank in range(2)] == ["2", "2"]
    assert_same_run(folder / "stopped", alone(CASES[2]["plain"]))  # the ranks resumed it


@pytest.mark.slow
@pytest.mark.parametrize(("run", "case"), [("resumed-by-one", "plain"), ("resumed-by-one-fsdp", "fsdp")])
def test_one_process_resumes_a_run_of_two(trained, alone, run, case):
    run = trained(2) / run
    assert read_state(run / "state.safetensors").progress.step == 4
    resumed(run).fit()
    assert_same_run(run, alone(CASES[2][case]))


@pytest.mark.slow
def test_failing_rank_ends_all_with_only_its_error(finished):
    """The fixture `ranks` limits the time: the rank that waits for the failed one ends too."""
    folder, ((code0, _, error0), (code1, _, error1)) = finished(2)
    assert (code0, code1) == (1, 1), error0 + error1
    assert "DataError: photos/17.jpg: not an image" in error1
    assert "Traceback" not in error0, error0
    assert read_state(folder / "failed" / "state.safetensors").progress.step == 0


@pytest.mark.slow
def test_ranks_with_other_data_are_refused(finished):
    folder, results = finished(3)
    assert all(code != 0 for code, *_ in results)  # 1, or what gloo ends a rank with whose peer is gone
    assert "rank 1 has train data (31 images" in results[1][2] + results[0][2]
    assert not (folder / "failed").exists()


def test_batch_smaller_than_the_ranks_is_refused(monkeypatch, tmp_path):
    monkeypatch.setattr(distributed, "world_size", lambda: 9)
    data = Shapes("train", 8, image_size=16)
    tokenizer = Tokenizer.train(data.captions[0], 514)
    with pytest.raises(ValueError, match="a batch of 8 pairs for 9 ranks"):
        ImageCaptionLoader(data, tokenizer, make_model(tokenizer).preprocess, LoaderOptions(100))
    monkeypatch.setattr("miniclip.runtime.fsdp.world_size", lambda: 3)
    with pytest.raises(ValueError, match="a batch of 8 samples is not a multiple of 3 ranks"):
        require_even(8)


def command_of(folder: Path) -> list[str]:
    """Arguments of a short run on the photos of a folder."""
    options = ["--device", "cpu", "--precision", "float32", "--max-steps", 2, "--batch-size", 8]
    return list(map(str, ["train", "--data", folder / "photos", "--run-dir", folder / "run", *options]))


def call_command(folder: Path) -> None:
    """Run the command in this rank."""
    sys.exit(cli.main(command_of(folder)))


def call_torchrun(folder: Path) -> None:
    """Start the command in two processes as torchrun does, in this process, which has imported torch."""
    from torch.distributed import run

    for name in [name for name in os.environ if name.startswith(RANK_VARIABLES)]:
        del os.environ[name]
    run.main(["--standalone", "--nproc-per-node", "2", "-m", "miniclip", *command_of(folder)])


@pytest.mark.slow
def test_command_under_torchrun(tmp_path, ranks):
    """The first run is torchrun's; the second one is refused, which needs no more than its ranks."""
    photos = tmp_path / "photos"
    (photos / "images").mkdir(parents=True)
    rows = ["image_name| comment_number| comment"]
    for i, (picture, captions) in enumerate(Shapes("train", 40)):
        picture.save(photos / "images" / f"{i}.jpg")
        rows += [f"{i}.jpg| {k}| {caption}" for k, caption in enumerate(captions)]
    (photos / "results.csv").write_text("\n".join(rows) + "\n", encoding="utf-8")
    ((_, output, _),) = ranks(1, call_torchrun, tmp_path)
    assert output.count("2 ranks; writing to") == 1
    assert output.count("learning curve:") == 1
    assert [r["step"] for r in History.read(tmp_path / "run").steps] == [1, 2]
    again = ranks(2, call_command, tmp_path, succeed=False)
    assert all(code != 0 for code, *_ in again)
    lines = [line for *_, error in again for line in error.splitlines() if line.startswith("miniclip, rank ")]
    assert len(lines) == 1, again
    assert "already holds a run" in lines[0]
