"""Shared fixtures: derandomised hypothesis, seeded torch, a toy CLIP, a Hub server, and groups of ranks."""

import importlib.util
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import settings

from miniclip.config import CLIPConfig, ImageConfig, TextConfig
from miniclip.data import Shapes
from miniclip.inference.model import CLIPModel
from miniclip.plots.callbacks import EvaluationPlots, LearningCurve
from miniclip.runtime import devices
from miniclip.tokenizer import Tokenizer
from miniclip.train import Callback, TrainConfig, Trainer
from tests.ranks import Ranks
from tests.toys import make_model

settings.register_profile("miniclip", deadline=None, derandomize=True, max_examples=50)
settings.load_profile("miniclip")

os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # deterministic products on a GPU
torch.set_num_threads(1)  # for tensors of toy size a second thread is one more to wait for
os.environ["OMP_NUM_THREADS"] = "1"  # the same sums in the processes that tests start

# At its first gradient a process starts a thread for each device that torch counts, and cannot be forked after that, as
# some tests are. Later, libraries and fake GPUs let torch count a GPU that is not there.
if not torch.cuda.is_available():
    torch.zeros(1, requires_grad=True).sum().backward()  # type: ignore[no-untyped-call]

CAPTIONS = ["a red circle above a blue square", "a blue square", "a green triangle left of a red circle", "a dog"] * 3


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _on_a_cpu(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the CPU the default device of tests that are not for a GPU, and the only one of the processes they start."""
    if torch.cuda.is_available() and not request.node.get_closest_marker("gpu"):
        monkeypatch.setattr(devices, "default_device", lambda: torch.device("cpu"))
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")


@pytest.fixture(scope="session")
def toy_tokenizer() -> Tokenizer:
    """Tokenizer of 540 tokens, trained on captions of shapes."""
    return Tokenizer.train(CAPTIONS, 540)


@pytest.fixture(scope="session")
def toy_config(toy_tokenizer: Tokenizer) -> CLIPConfig:
    """Configuration of a toy model: 16 px images, 16 patches, 12 tokens of context, embeddings of 8 numbers."""
    text = TextConfig(12, toy_tokenizer.vocab_size, width=16, layers=2, heads=2)
    return CLIPConfig(ImageConfig(16, 4, width=24, layers=2, heads=3), text, embed_dim=8)


@pytest.fixture
def hub_server(monkeypatch, tmp_path_factory):
    """Hub server without repositories (`hub_server.py`), and an empty cache; huggingface_hub uses only these."""
    spec = importlib.util.spec_from_file_location("hub_server", Path(__file__).with_name("hub_server.py"))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    with module.HubServer({}) as server:
        server.attach(monkeypatch, tmp_path_factory.mktemp("hub"))
        yield server


@pytest.fixture(scope="session")
def rank_starter():
    """Process that starts ranks; it and they end with the session."""
    starter = Ranks()
    yield starter
    starter.close()


@pytest.fixture
def ranks(rank_starter):
    """Function that calls a function in several ranks; see `Ranks.run`."""
    return rank_starter.run


@pytest.fixture(autouse=True)
def _undrawn(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Skip the plots of runs, which take longer than the toy runs; `drawn` keeps all, `curve_drawn` only the curve."""
    if "drawn" not in request.fixturenames:
        monkeypatch.setattr(EvaluationPlots, "draw", lambda self, trainer: None)
        if "curve_drawn" not in request.fixturenames:
            monkeypatch.setattr(LearningCurve, "draw", lambda self, trainer: None)


@pytest.fixture
def drawn() -> None:
    """Keep all plots of runs."""


@pytest.fixture
def curve_drawn() -> None:
    """Keep the learning curve."""


@pytest.fixture
def small_shapes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Give Shapes 48 training images by default, since 6,000 take seconds."""
    monkeypatch.setattr("miniclip.data.shapes.dataset.DEFAULT_SIZES", {"train": 48, "val": 24, "test": 24})


@pytest.fixture(scope="session")
def train_data() -> Shapes:
    return Shapes("train", 40, image_size=16)


@pytest.fixture(scope="session")
def val_data() -> Shapes:
    return Shapes("val", 20, image_size=16)


@pytest.fixture(scope="session")
def tokenizer(train_data: Shapes) -> Tokenizer:
    return Tokenizer.train([caption for group in train_data.captions for caption in group], 600)


@pytest.fixture
def model(tokenizer: Tokenizer) -> CLIPModel:
    return make_model(tokenizer)


@pytest.fixture
def start(tmp_path: Path, tokenizer: Tokenizer, train_data: Shapes, val_data: Shapes) -> Callable[..., Trainer]:
    """A trainer of a fresh model: 5 steps an epoch, 2 epochs, quiet; the same model and data at each call."""

    def make(
        run: str = "run", callbacks: list[Callback] | None = None, model: CLIPModel | None = None, **settings: object
    ) -> Trainer:
        config = TrainConfig(**{"epochs": 2, "batch_size": 8, "precision": "float32", "log_every": 3, **settings})
        return Trainer(
            make_model(tokenizer) if model is None else model,
            train_data,
            val_data,
            config=config,
            run_dir=tmp_path / run,
            callbacks=callbacks,
            device="cpu",
        )

    return make


@pytest.fixture(scope="module")
def whole_runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Trainer]]:
    """Folder of the runs of `undisturbed`, and these runs by their settings."""
    return tmp_path_factory.mktemp("whole"), {}


@pytest.fixture
def undisturbed(whole_runs: tuple[Path, dict[str, Trainer]], start: Callable[..., Trainer]) -> Callable[..., Trainer]:
    """Function that trains a run of `start` once for all tests of a module; they only compare with it."""
    folder, runs = whole_runs

    def run(callbacks: list[Callback] | None = None, **settings: object) -> Trainer:
        key = repr((callbacks, settings))
        if key not in runs:
            trainer = start(str(folder / str(len(runs))), callbacks, **settings)
            trainer.fit()
            runs[key] = trainer
        return runs[key]

    return run
