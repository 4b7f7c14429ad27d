"""Cost: the count against torch's own counter, the measured peak, and the plan of a run that is not started."""

import dataclasses
import json
import math

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from miniclip import cli
from miniclip.config import PRESETS, CLIPConfig, ImageConfig, TextConfig
from miniclip.diagnostics.plan import plan
from miniclip.models.clip import CLIP
from miniclip.models.vision import draw_patches
from miniclip.runtime.flops import image_flops, pair_flops, peak_flops, text_flops
from miniclip.train import Callback

SMALL = CLIPConfig(ImageConfig(32, 8, 64, 2, 2), TextConfig(24, 600, 48, 3, 2), 32)
ATTENTION = ImageConfig(
    32, 8, 64, 2, 2, patch_bias=True, class_token=False, norm_before=False, pooling="attention", projection="none"
)
SIGLIP = CLIPConfig(ATTENTION, TextConfig(24, 600, 64, 2, 2, padding="attended", pooling="last", projection="bias"), 64)


def counted(run):
    """FLOPs by torch's counter, attention as plain products: the fused one of a CPU is not in its table."""
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops()


@pytest.mark.parametrize("config", [SMALL, SIGLIP, PRESETS["bert_vit_tiny"][1]])
@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_a_picture_as_torch_counts_it(config, dropout):
    model = CLIP(config).initialise()
    size, patches = config.image.image_size, config.image.patches
    kept = draw_patches(2, patches, dropout, torch.Generator()) if dropout else None
    found = counted(lambda: model.image(torch.zeros(2, 3, size, size), kept))
    extra = 2 * config.image.width**2 if config.image.pooling == "attention" else 0  # the query, once a batch
    assert found == pytest.approx(2 * image_flops(config, dropout), abs=extra, rel=1e-3)


@pytest.mark.parametrize("config", [SMALL, SIGLIP])
def test_a_caption_as_torch_counts_it(config):
    model = CLIP(config).initialise()
    tokens = torch.full((2, 24), 5)
    tokens[:, -1] = config.text.end_id
    assert counted(lambda: model.text(tokens)) == 2 * text_flops(config, 24)


def test_a_step_is_three_times_forward():
    """Backward makes no gradient for the pixels, so torch counts one product of the patches less."""
    config = SMALL
    model = CLIP(config).initialise()
    tokens = torch.full((2, 24), 5)
    tokens[:, -1] = config.text.end_id

    def step():
        out = model(torch.randn(2, 3, 32, 32), tokens)
        (out.image_embeddings.sum() + out.text_embeddings.sum()).backward()

    patches = 2 * config.image.patches * 3 * 8**2 * config.image.width
    assert counted(step) == 2 * (pair_flops(model, 24) - patches)


def test_what_is_frozen_costs_forward_alone_and_own_towers_are_not_counted():
    model = CLIP(SMALL)
    both = pair_flops(model, 10)
    model.image.requires_grad_(False)
    assert both - pair_flops(model, 10) == 2 * image_flops(SMALL)
    model.image = torch.nn.Identity()
    assert pair_flops(model, 10) is None


def test_the_reference_system():
    """17.6 GFLOPs a picture of a ViT-B/16 are in the field's tables as multiply-adds; two each here.

    Less what of the last block no more than the class token needs: a query, the output and the MLP of the 196 patches.
    """
    spared = 196 * 2 * (2 * 768**2 + 2 * 768 * 3072 + 2 * 197 * 768)
    assert image_flops(PRESETS["vit_b_16"][1]) == pytest.approx(2 * 17.6e9 - spared, rel=0.03)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_the_peak_is_measured_once(precision, monkeypatch):
    monkeypatch.setattr("miniclip.runtime.flops.SIDE", {"cpu": 64})
    peak_flops.cache_clear()
    peak = peak_flops(torch.device("cpu"), precision)
    assert math.isfinite(peak)
    assert peak > 1e6
    assert peak_flops(torch.device("cpu"), precision) == peak
    peak_flops.cache_clear()


def test_records_carry_the_share_of_the_peak(start, monkeypatch):
    monkeypatch.setattr("miniclip.runtime.flops.peak_flops", lambda device, precision: 1e12)
    trainer = start(max_steps=4)
    for record in trainer.fit().steps:
        flops = pair_flops(trainer.model, record["tokens"])
        assert record["mfu"] == pytest.approx(record["samples_per_second"] * flops / 1e12, abs=1e-4)
    logged = [json.loads(line) for line in (trainer.run_dir / "metrics.jsonl").read_text().splitlines()]
    assert all("mfu" in record for record in logged if "loss" in record)


def test_a_plan_counts_right_and_leaves_no_trace(start):
    trainer, same = start("planned"), start("same")
    before, random = {k: v.clone() for k, v in trainer.model.state_dict().items()}, torch.get_rng_state()
    found = plan(trainer)
    assert torch.equal(torch.get_rng_state(), random)
    assert all(torch.equal(v, before[k]) for k, v in trainer.model.state_dict().items())
    assert all(p.grad is None for p in trainer.model.parameters())
    assert not trainer.run_dir.exists()
    assert (found.pictures, found.validation_pictures, found.batch_size) == (40, 20, 8)
    assert (found.steps, found.steps_per_epoch, found.epochs, found.evaluations) == (10, 5, 2, 2)
    assert found.captions == sum(map(len, trainer.loader._data.captions))
    assert found.parameters == found.image_parameters + found.text_parameters + 1
    assert found.weights == 4 * found.parameters
    assert found.step_memory > found.weights
    assert found.step_seconds > 0
    assert found.seconds == pytest.approx(10 * found.step_seconds + 2 * found.evaluation_seconds)
    words = found.describe()
    assert "10 of 8 pairs; 5 an epoch, 2 epochs, 1 steps of warmup" in words
    assert "NOT ENOUGH" not in words
    assert "NOT ENOUGH" in dataclasses.replace(found, free=0).describe()
    assert "not counted" in dataclasses.replace(found, flops=None).describe()
    planned, unplanned = trainer.fit(), same.fit()
    assert [r["loss"] for r in planned.steps] == [r["loss"] for r in unplanned.steps]


def test_the_plan_of_a_run_that_is_taken_up_is_what_is_left(start, train_data, val_data):
    class Stop(Callback):
        def on_step(self, trainer, record):
            raise KeyboardInterrupt

    stopped = start(callbacks=[Stop()], save_every=3)
    with pytest.raises(KeyboardInterrupt):
        stopped.fit()
    stopped.callbacks = []
    resumed = type(stopped).resume(stopped.run_dir, train_data, val_data, device="cpu")
    found = plan(resumed)
    assert found.steps == 10 - resumed.step
    assert found.evaluations == 2


class TestDryRun:
    FLAGS = ("--batch-size", "8", "--device", "cpu", "--max-steps", "3")

    def test_it_says_where_each_setting_comes_from_and_writes_nothing(self, tmp_path, monkeypatch, capsys):
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr("miniclip.data.shapes.Shapes.__len__", lambda self: 24)
        (tmp_path / "recipe.toml").write_text('lr = 1e-4\nseed = 3\nprecision = "float32"\n')
        assert cli.main(["train", "--dry-run", "--config", "recipe.toml", "--seed", "5", *self.FLAGS]) == 0
        out = capsys.readouterr().out
        rows = {line.split()[0]: line.split()[1:] for line in out.splitlines() if line.startswith("  ")}
        assert rows["lr"] == ["0.0001", "file"]
        assert rows["seed"] == ["5", "flag"]
        assert rows["batch_size"] == ["8", "flag"]
        assert rows["warmup_fraction"] == ["0.1", "default"]
        assert rows["epochs"] == ["10", "default", "for", "this", "set"]
        assert rows["device"] == ["cpu", "flag"]
        assert rows["preset"] == ["bert_vit_tiny", "default"]
        assert "nothing was written" in out
        assert [path.name for path in tmp_path.iterdir()] == ["recipe.toml"]

    def test_errors_are_those_of_a_run(self, tmp_path, capsys):
        assert cli.main(["train", "--dry-run", "--data", str(tmp_path / "none")]) == 2
        assert len(capsys.readouterr().err.splitlines()) == 1
