"""Training on a GPU: resuming bit for bit, gradient caching, the micro batch size, mixed precision, no waiting.

The first test also runs on the CPU.
"""

import copy

import pytest
import torch

from miniclip.fast import accelerate, plain
from miniclip.losses import contrastive_loss
from miniclip.models.clip import CLIP
from miniclip.runs.state import read_state
from miniclip.train import TrainConfig, Trainer
from miniclip.train.gradient_caching import cached_step
from miniclip.train.optimizer import build_optimizer
from miniclip.train.step import Inputs, plain_step
from miniclip.train.step_arguments import loss_function, step_options
from tests.fast.test_seam import PAIRS, inputs, model_of
from tests.toys import make_model
from tests.train.test_step import assert_same, caching, random_inputs, taken
from tests.train.test_trainer import StopAt

GPU = pytest.param("cuda", marks=pytest.mark.gpu)
DEVICES = ["cpu", GPU]
SETTINGS = [
    {},
    {"micro_batch_size": 3},
    {"loss": "sigmoid"},
    {"precision": "bfloat16", "patch_dropout": 0.5},
    {"captions_per_image": 2, "label_smoothing": 0.1},
]


@pytest.fixture(autouse=True)
def _exact_convolutions(monkeypatch):
    """Convolutions in float32 on a GPU without TF32, as products are: the plain forms have convolutions."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)


@pytest.fixture
def deterministic():
    """Deterministic kernels; a kernel that has no such form fails the comparison, and is named in a warning."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_resumed_run_is_the_same_bit_for_bit(
    deterministic, tokenizer, train_data, val_data, tmp_path, device, precision
):
    def trainer(name, callbacks):
        config = TrainConfig(
            epochs=2, batch_size=8, precision=precision, log_every=1, save_every=3, ema_decay=0.9, patch_dropout=0.5,
            color_jitter=0.3, micro_batch_size=5,
        )  # fmt: skip
        options = {"config": config, "run_dir": tmp_path / name, "callbacks": callbacks, "device": device}
        return Trainer(make_model(tokenizer), train_data, val_data, **options)

    trainer("whole", []).fit()
    with pytest.raises(KeyboardInterrupt):
        trainer("stopped", [StopAt(4)]).fit()
    resumed = Trainer.resume(tmp_path / "stopped", train_data, val_data, callbacks=[], device=device)
    assert resumed.loader.source.pixels.device.type == device
    resumed.fit()
    whole, stopped = (read_state(tmp_path / name / "state.safetensors") for name in ("whole", "stopped"))
    for one, other in zip(whole[:3], stopped[:3], strict=True):  # weights, moments, average
        assert one.keys() == other.keys()
        assert all(torch.equal(value, other[name]) for name, value in one.items())


@pytest.mark.gpu
@pytest.mark.parametrize("loss", ["contrastive", "sigmoid"])
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_gradient_caching_is_the_plain_step(tokenizer, loss, precision):
    model = make_model(tokenizer, logit_bias=-10.0).cuda()
    batch, config = random_inputs(model, 9, 0, 0.5), caching(4, loss, precision=precision)
    one, other = (taken(kind, model, batch, 9, config) for kind in (plain_step, cached_step))
    assert_same(one, other, 1e-5 if precision == "float32" else 3e-2)


@pytest.mark.gpu
def test_auto_finds_a_micro_batch_size_for_a_run(tokenizer, train_data, val_data, tmp_path):
    config = TrainConfig(epochs=1, batch_size=8, micro_batch_size="auto")
    options = {"config": config, "run_dir": tmp_path / "run", "device": "cuda"}
    trainer = Trainer(make_model(tokenizer), train_data, val_data, **options)
    assert trainer.config.micro_batch_size is None, "the whole batch fits"
    assert len(trainer.fit().steps) == 5


@pytest.mark.gpu
def test_a_step_in_bfloat16_is_near_the_one_on_a_cpu_in_float32(tokenizer):
    model = make_model(tokenizer)
    batch, results = random_inputs(model, 8, 0)(slice(0, 8)), []
    for device, precision in (("cpu", "float32"), ("cuda", "float32"), ("cuda", "bfloat16")):
        moved = copy.deepcopy(model).to(device)
        config = TrainConfig(precision=precision)
        moved_batch = Inputs(*(None if x is None else x.to(device) for x in batch))
        optimizer, loss = build_optimizer(moved, config), loss_function(config, moved)
        results.append(plain_step(moved, optimizer, moved_batch, loss, step_options(config, moved.device)))
    exact, single, rough = ({name: float(value) for name, value in result.metrics.items()} for result in results)
    assert single == pytest.approx(exact, rel=1e-3)
    assert rough == pytest.approx(exact, rel=0.05)


@pytest.mark.gpu
@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_a_step_does_not_wait_for_the_device(tokenizer, train_data, settings, tmp_path):
    """From the loader's batch to the update; only the log reads the metrics."""
    model = make_model(tokenizer, logit_bias=-10.0)
    config = TrainConfig(**{"batch_size": 8, "color_jitter": 0.1, "precision": "float32", "ema_decay": 0.9, **settings})
    trainer = Trainer(model, train_data, config=config, run_dir=tmp_path / "run", callbacks=[], device="cuda")
    batches = trainer.loader.epoch(0)
    trainer.train_step(next(batches))  # makes moments and workspaces
    batch = next(batches)
    torch.cuda.set_sync_debug_mode("error")
    try:
        trainer.train_step(batch)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.gpu
@pytest.mark.parametrize(("image", "text"), PAIRS)
def test_fast_forms_equal_the_plain_ones(image, text):
    model, (pixels, tokens) = model_of(image, text).float().cuda(), inputs(text)
    pixels, tokens = pixels.float().cuda(), tokens.cuda()

    def results(model: CLIP):
        model.zero_grad()
        out = model(pixels, tokens)
        contrastive_loss(out.image_embeddings, out.text_embeddings, 5.0).backward()
        gradients = [p.grad.clone() for p in model.parameters() if p.grad is not None]
        return [out.image_embeddings.detach(), out.text_embeddings.detach(), *gradients]

    fast = results(accelerate(model))
    torch.testing.assert_close(fast, results(plain(model)), rtol=1e-3, atol=1e-4)


@pytest.mark.gpu
def test_embeddings_of_a_gpu_are_those_of_the_cpu(tokenizer, train_data):
    """In one batch and in several, from token ids, strings, images and tensors."""
    model = make_model(tokenizer).eval()
    captions = [caption for group in train_data.captions for caption in group]
    images = [train_data[i][0] for i in range(9)]
    pixels = torch.stack([model.preprocess(image) for image in images])
    expected = model.encode_text(captions), model.encode_image(images)
    model.cuda()
    for texts, batch in ((captions, None), (tokenizer(captions), 7)):
        torch.testing.assert_close(model.encode_text(texts, batch_size=batch).cpu(), expected[0], rtol=1e-3, atol=1e-4)
    for items, batch in ((images, None), (pixels, 4), (pixels.cuda(), None)):
        torch.testing.assert_close(model.encode_image(items, batch_size=batch).cpu(), expected[1], rtol=1e-3, atol=1e-4)
