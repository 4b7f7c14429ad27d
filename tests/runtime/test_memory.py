"""Training memory: measured in a separate process; exact gradient checkpointing; the micro batch size that fits."""

import copy
import dataclasses
import json
import os
import subprocess
import sys

import pytest
import torch

from miniclip import losses
from miniclip.models.layers import Block
from miniclip.runtime import memory
from miniclip.runtime.allocation import AllocationTrace
from miniclip.runtime.memory import checkpoint_blocks, find_micro_batch_size, reserved_bytes, step_bytes, synthetic_step
from miniclip.train import Trainer
from miniclip.train.gradient_caching import cached_step
from tests.toys import make_model
from tests.train.test_step import caching, random_inputs, taken, with_dropout

# Peak resident memory of a step, above the weights, AdamW's moments and the whole batch's inputs (uint8).
# One thread, so that the numbers do not depend on the machine.
MEASURE = """
import json, torch
from collections.abc import Sequence
from pathlib import Path
from miniclip.config import CLIPConfig, ImageConfig, TextConfig
from miniclip.inference.model import CLIPModel
from miniclip.models.clip import CLIPOutput
from miniclip.runtime.allocation import peak_bytes, trace_two_sizes
from miniclip.runtime.memory import checkpoint_blocks, synthetic_step
from miniclip.train.optimizer import build_optimizer
from miniclip.train.config import TrainConfig
from miniclip.train.gradient_caching import cached_step
from miniclip.train.step import Inputs, plain_step
from miniclip.train.step_arguments import loss_function, split, step_options

torch.set_num_threads(1)
model = CLIPModel(CLIPConfig(ImageConfig(48, 8, 32, 3, 2), TextConfig(8, 300, 32, 2, 2), 16)).initialise()
optimizer = build_optimizer(model, TrainConfig())
pixels, tokens = torch.randint(256, (1024, 3, 48, 48), dtype=torch.uint8), torch.randint(299, (1024, 8))
tokens[:, -1] = 299

def status(name):
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(name))

def follows_allocations():
    Path("/proc/self/clear_refs").write_text("5")
    before = status("VmRSS")
    torch.ones(16 << 20)
    return 60 << 20 < status("VmHWM") - before < 70 << 20 and status("VmRSS") - before < 4 << 20

def measured(kind, batch, **settings):
    config = TrainConfig(precision="float32", **settings)
    checkpoint_blocks(model, config.gradient_checkpointing)
    inputs = lambda rows: Inputs(model.preprocess.normalise(pixels[rows]), tokens[rows])
    options = step_options(config, model.device)

    class Parts(Sequence):  # a sequence of slices; inputs are made when they are indexed
        def __init__(self, slices):
            self.slices = slices

        def __len__(self):
            return len(self.slices)

        def __getitem__(self, index):
            return inputs(self.slices[index])

    def step(size):
        batch = inputs(slice(0, size)) if kind is plain_step else Parts(split(size, config.micro_batch_size))
        kind(model, optimizer, batch, loss_function(config, model), options)

    # The first call loads code, and the first matrix product of a size generates some: resident memory that is not
    # part of the measurement.
    step(batch if kind is plain_step else 128)
    sides = torch.randn(2, batch, 16, requires_grad=True).unbind()
    loss_function(config, model)(CLIPOutput(*sides, model.log_scale.exp(), None)).backward()
    optimizer.zero_grad()
    del sides
    Path("/proc/self/clear_refs").write_text("5")  # resets VmHWM
    before = status("VmRSS")
    step(batch)
    return status("VmHWM") - before

torch.ones(1).add(1)
if not follows_allocations():
    print(json.dumps(None))
    raise SystemExit
results = {
    "batch of 64": measured(plain_step, 64),
    "batch of 256": measured(plain_step, 256),
    "1024 in micro batches of 64": measured(cached_step, 1024, micro_batch_size=64),
    "256, checkpointed": measured(plain_step, 256, gradient_checkpointing=True),
}
for name, enabled in (("256, predicted", False), ("256, checkpointed, predicted", True)):
    checkpoint_blocks(model, enabled)
    results[name] = peak_bytes(*trace_two_sizes(list(model.parameters()), synthetic_step(model)), 256)
print(json.dumps(results))
"""


@pytest.fixture(scope="module")
def measured():
    if not os.access("/proc/self/clear_refs", os.W_OK):
        pytest.skip("only Linux resets the peak of resident memory")
    # larger tensors get their own pages, which are returned to the system when they are freed
    environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536", "OMP_NUM_THREADS": "1", "LD_PRELOAD": ""}
    command = [sys.executable, "-c", MEASURE]
    run = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert run.returncode == 0, run.stderr
    results = json.loads(run.stdout)
    if results is None:
        pytest.skip("this system's allocator keeps what is freed, so that resident memory is not that of a step")
    return results


@pytest.mark.slow
def test_micro_batches_need_little_more_memory_than_one_of_them(measured):
    """At most 1.5 times the memory of a batch of 64, plus the embeddings: 2 sides and their gradients, in float32."""
    embeddings = 2 * 2 * 1024 * 16 * 4
    assert measured["1024 in micro batches of 64"] <= 1.5 * measured["batch of 64"] + embeddings
    assert measured["batch of 256"] > 3 * measured["batch of 64"], "the measurement misses the activations"


@pytest.mark.slow
def test_checkpointing_saves_memory(measured):
    assert measured["256, checkpointed"] < 0.6 * measured["batch of 256"]


@pytest.mark.slow
def test_two_small_traces_predict_the_peak_of_a_large_step(measured):
    for name in ("256", "256, checkpointed"):
        real = measured.get(name, measured["batch of 256"])
        assert measured[f"{name}, predicted"] == pytest.approx(real, rel=0.1), name


# checkpointing


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("micro", [None, 3])
def test_checkpointing_is_bitwise_exact(tokenizer, precision, micro):
    model = with_dropout(make_model(tokenizer, logit_bias=-10.0))
    results, config = [], dataclasses.replace(caching(micro), precision=precision)
    for enabled in (False, True):
        checkpoint_blocks(model, enabled)
        torch.manual_seed(3)
        results.append(taken(cached_step, model, random_inputs(model, 7, 0, 0.5), 7, config))
    (loss, gradients), (other_loss, others) = results
    assert torch.equal(loss, other_loss)
    assert gradients.keys() == others.keys()
    assert all(torch.equal(gradient, others[name]) for name, gradient in gradients.items())


def test_blocks_are_recomputed_only_in_training(model):
    calls = []
    for module in model.modules():
        if isinstance(module, Block):
            module.register_forward_pre_hook(lambda *_: calls.append(1))
    blocks = 2  # one in each tower
    pixels, tokens, _ = random_inputs(model, 3, 0)(slice(0, 3))
    for enabled, grad, expected in ((False, True, blocks), (True, True, 2 * blocks), (True, False, blocks)):
        checkpoint_blocks(model, enabled)
        calls.clear()
        with torch.set_grad_enabled(grad):
            out = model(pixels, tokens)
        if grad:
            (out.image_embeddings.sum() + out.text_embeddings.sum()).backward()
        assert len(calls) == expected


def test_checkpointing_adds_no_key_and_needs_blocks(model):
    before = model.state_dict().keys()
    checkpoint_blocks(model)
    assert model.state_dict().keys() == before
    checkpoint_blocks(torch.nn.Linear(2, 2), enabled=False)
    with pytest.raises(ValueError, match="gradient_checkpointing"):
        checkpoint_blocks(torch.nn.Linear(2, 2))


# the micro batch size that fits


def traced_peak(model, trial, samples):
    with AllocationTrace(model.parameters()) as trace:
        trial(samples)
    return max(trace.alive_bytes)


def set_available_bytes(monkeypatch, model, batch, micro_batch_bytes):
    """A machine with memory for a micro batch of this many bytes, and what is reserved beside it."""
    total = (micro_batch_bytes + reserved_bytes(model, batch)) / memory.CPU_FRACTION
    monkeypatch.setattr(memory, "available_bytes", lambda: total)


@pytest.mark.parametrize("checkpointed", [False, True])
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_finds_the_largest_power_of_two_that_fits(model, monkeypatch, checkpointed, precision):
    checkpoint_blocks(model, checkpointed)
    trial = synthetic_step(model, precision, patch_dropout=0.5)
    budget = traced_peak(model, trial, 24)
    set_available_bytes(monkeypatch, model, 64, budget)
    size = find_micro_batch_size(model, 64, trial)
    assert size == 16
    assert traced_peak(model, trial, size) <= budget < traced_peak(model, trial, 2 * size)


def test_returns_none_if_the_batch_fits_and_raises_if_nothing_fits(model, monkeypatch):
    trial = synthetic_step(model)
    set_available_bytes(monkeypatch, model, 60, traced_peak(model, trial, 60))
    assert find_micro_batch_size(model, 60, trial) is None
    set_available_bytes(monkeypatch, model, 60, traced_peak(model, trial, 59))
    assert find_micro_batch_size(model, 60, trial) == 32
    set_available_bytes(monkeypatch, model, 60, 0)
    with pytest.raises(ValueError, match="not one sample fits into the free memory of cpu"):
        find_micro_batch_size(model, 60, trial)


def test_similarities_larger_than_the_limit_are_computed_in_blocks():
    assert losses.CHUNKED_FROM == memory.MAX_SIMILARITY_SIDE


def test_step_bytes_grow_with_the_micro_batch(model):
    trial = synthetic_step(model)
    small, large = (step_bytes(model, batch, trial) - reserved_bytes(model, batch) for batch in (8, 64))
    assert large == pytest.approx(8 * small, rel=0.3)
    assert step_bytes(model, 64, trial, 8) - reserved_bytes(model, 64) == pytest.approx(small)


def test_the_search_restores_the_model_and_the_random_state(tokenizer, monkeypatch):
    model = with_dropout(make_model(tokenizer))
    model.image.norm_after = torch.nn.Sequential(model.image.norm_after, torch.nn.BatchNorm1d(32))
    model.log_scale.grad = torch.tensor(7.0)
    before, state = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    set_available_bytes(monkeypatch, model, 64, 1 << 20)
    assert find_micro_batch_size(model, 64, synthetic_step(model)) is not None
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert {name: p.grad for name, p in model.named_parameters() if p.grad is not None} == {"log_scale": 7.0}


class FakeGpu:
    """Replaces torch.cuda by a GPU with `free` bytes, of which a trial takes `sample_bytes` for each sample."""

    def __init__(self, monkeypatch, free, sample_bytes):
        self.tried, self.peak, self.free, self.sample_bytes = [], 0, free, sample_bytes
        monkeypatch.setattr(memory, "reserved_bytes", lambda model, batch, captions=1: 0)
        monkeypatch.setattr(memory, "_fits_by_prediction", memory._fits_by_trial)  # the test's model is on the CPU
        for name, answer in {
            "empty_cache": lambda: None,
            "memory_allocated": lambda device: 1000,
            "mem_get_info": lambda device: (free, 2 * free),
            "reset_peak_memory_stats": lambda device: None,
            "max_memory_allocated": lambda device: self.peak,
        }.items():
            monkeypatch.setattr(torch.cuda, name, answer)

    def trial(self, samples):
        self.tried.append(samples)
        self.peak = 1000 + samples * self.sample_bytes
        if samples * self.sample_bytes > self.free:
            raise torch.OutOfMemoryError


@pytest.mark.parametrize(
    ("free", "expected", "tried"),
    [
        (10_000, 64, [1, 2, 4, 8, 16, 32, 64, 100]),  # 100 samples exceed the fraction of the free memory
        (5_000, 32, [1, 2, 4, 8, 16, 32, 64]),  # 64 samples are out of memory
        (20_000, None, [1, 2, 4, 8, 16, 32, 64, 100]),
    ],
)
def test_a_gpu_is_tried_until_its_memory_or_the_fraction_is_exceeded(model, monkeypatch, free, expected, tried):
    gpu = FakeGpu(monkeypatch, free, sample_bytes=100)
    assert find_micro_batch_size(model, 100, gpu.trial) == expected
    assert gpu.tried == tried


@pytest.mark.gpu
def test_finds_the_size_on_a_gpu(tokenizer, monkeypatch):
    model = make_model(tokenizer).cuda()
    trial = synthetic_step(model)
    trial(24)  # the libraries allocate their workspaces, which stay
    before = torch.cuda.memory_allocated(), torch.cuda.get_rng_state()
    torch.cuda.reset_peak_memory_stats()
    trial(24)
    budget = torch.cuda.max_memory_allocated() - before[0] + reserved_bytes(model, 64)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (budget / memory.GPU_FRACTION, 0))
    assert find_micro_batch_size(model, 64, trial) == 16
    assert torch.equal(torch.cuda.get_rng_state(), before[1])
    assert all(p.grad is None for p in model.parameters())


def test_all_ranks_take_a_size_that_fits_on_every_rank(model, monkeypatch):
    trial = synthetic_step(model)
    set_available_bytes(monkeypatch, model, 64, traced_peak(model, trial, 40))
    for others, expected in (([8, 0], 8), ([64, 1], 32)):
        monkeypatch.setattr(memory, "all_gather_ints", lambda values, others=others: [values, others])
        assert find_micro_batch_size(model, 64, trial) == expected
    monkeypatch.setattr(memory, "all_gather_ints", lambda values: [values, [0, 0]])
    with pytest.raises(ValueError, match="not one sample"):
        find_micro_batch_size(model, 64, trial)
    monkeypatch.setattr(memory, "all_gather_ints", lambda values: [values])
    monkeypatch.setattr(memory, "local_world_size", lambda: 2)
    assert find_micro_batch_size(model, 64, trial) < 32


def test_a_resumed_run_keeps_the_micro_batch_size(start, train_data, val_data, monkeypatch):
    """Even if another size fits by then: other micro batches round differently."""
    searched = []

    def find(model, batch, trial, captions):
        searched.append(batch)
        return 4

    monkeypatch.setattr(memory, "find_micro_batch_size", find)
    trainer = start(micro_batch_size="auto", gradient_checkpointing=True, max_steps=2)
    trainer.fit()
    assert json.loads((trainer.run_dir / "config.json").read_text())["train"]["micro_batch_size"] == 4
    resumed = Trainer.resume(trainer.run_dir, train_data, val_data, device="cpu")
    assert resumed.config.micro_batch_size == 4
    assert resumed.model.image.blocks.checkpointed
    assert searched == [8]


def test_the_setting_switches_checkpointing(start):
    for enabled in (True, False):
        model = start(f"checkpointing {enabled}", gradient_checkpointing=enabled).model
        assert model.image.blocks.checkpointed is model.text.blocks.checkpointed is enabled
