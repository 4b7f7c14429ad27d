"""Memory: measured in a process of its own; blocks computed again to the same bit; the micro batch that fits."""

import copy
import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from miniclip.models.layers import Block
from miniclip.runtime import memory
from miniclip.runtime.memory import Alive, available_bytes, checkpoint_blocks, reserved_bytes, settle_memory
from miniclip.train import Trainer
from miniclip.train.config import TrainConfig
from miniclip.train.step import cached_step
from tests.toys import make_model
from tests.train.test_step import caching, random_inputs, taken, with_dropout

FLOAT32 = TrainConfig(precision="float32", batch_size=64, micro_batch_size="auto")

# The peak of resident memory in a step, over what there was before it: weights, AdamW's moments, and the whole batch's
# inputs, which the loader holds as uint8. One thread, so that the figures do not depend on the machine.
MEASURE = """
import json, torch
from pathlib import Path
from miniclip.config import CLIPConfig, ImageConfig, TextConfig
from miniclip.models.clip import CLIP, CLIPOutput
from miniclip.runtime.memory import COUNTED, Alive, _trial, checkpoint_blocks, peak
from miniclip.train.optimizer import build_optimizer
from miniclip.train.config import TrainConfig
from miniclip.train.step import cached_step, loss_function, plain_step

torch.set_num_threads(1)
model = CLIP(CLIPConfig(ImageConfig(48, 8, 32, 3, 2), TextConfig(8, 300, 32, 2, 2), 16)).initialise()
optimizer = build_optimizer(model, TrainConfig())
pixels, tokens = torch.randint(256, (4096, 3, 48, 48), dtype=torch.uint8), torch.randint(299, (4096, 8))
tokens[:, -1] = 299

def status(name):
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(name))

def measured(kind, batch, **settings):
    config = TrainConfig(precision="float32", **settings)
    checkpoint_blocks(model, config.gradient_checkpointing)
    inputs = lambda rows: (model.preprocess.normalise(pixels[rows]), tokens[rows], None)
    step = lambda size: kind(model, optimizer, inputs, size, loss_function(config, model), config)
    # The first call of anything loads its code, and the first product of a size makes some: resident memory, too, and
    # not what is measured.
    step(batch if kind is plain_step else 128)
    sides = torch.randn(2, batch, 16, requires_grad=True).unbind()
    loss_function(config, model)(CLIPOutput(*sides, model.log_scale.exp(), None)).backward()
    optimizer.zero_grad()
    del sides
    Path("/proc/self/clear_refs").write_text("5")  # VmHWM begins anew
    before = status("VmRSS")
    step(batch)
    return status("VmHWM") - before

results = {
    "batch of 64": measured(plain_step, 64),
    "batch of 256": measured(plain_step, 256),
    "4096 in parts of 64": measured(cached_step, 4096, micro_batch_size=64),
    "256, checkpointed": measured(plain_step, 256, gradient_checkpointing=True),
}
for name, on in (("256, reckoned", False), ("256, checkpointed, reckoned", True)):
    checkpoint_blocks(model, on)
    traces = []
    for pairs in COUNTED:
        with Alive(model.parameters()) as alive:
            _trial(model, TrainConfig(precision="float32"), pairs)
        traces.append(alive.moments)
    results[name] = peak(*traces, 256)
print(json.dumps(results))
"""


@pytest.fixture(scope="module")
def measured():
    if not os.access("/proc/self/clear_refs", os.W_OK):
        pytest.skip("only Linux resets the peak of resident memory")
    # every larger tensor gets pages of its own, which go back to the system when it is freed: no residue in the peaks
    environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", MEASURE]
    run = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout)


@pytest.mark.slow
def test_a_large_batch_needs_little_more_than_one_of_its_parts(measured):
    """At most 1.5 times the memory of a batch of 64, and the embeddings: 2 sides and their gradients, as float32."""
    embeddings = 2 * 2 * 4096 * 16 * 4
    assert measured["4096 in parts of 64"] <= 1.5 * measured["batch of 64"] + embeddings
    assert measured["batch of 256"] > 3 * measured["batch of 64"], "the measure does not see the activations"


@pytest.mark.slow
def test_checkpointing_saves_memory(measured):
    assert measured["256, checkpointed"] < 0.6 * measured["batch of 256"]


@pytest.mark.slow
def test_what_is_reckoned_from_two_small_trials_is_what_a_large_step_takes(measured):
    for name in ("256", "256, checkpointed"):
        real = measured.get(name, measured["batch of 256"])
        assert measured[f"{name}, reckoned"] == pytest.approx(real, rel=0.1), name


# checkpointing


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("micro", [None, 3])
def test_checkpointing_changes_no_bit(tokenizer, precision, micro):
    model = with_dropout(make_model(tokenizer, logit_bias=-10.0))
    results, config = [], dataclasses.replace(caching(micro), precision=precision)
    for on in (False, True):
        checkpoint_blocks(model, on)
        torch.manual_seed(3)
        results.append(taken(cached_step, model, random_inputs(model, 7, 0, 0.5), 7, config))
    (loss, gradients), (other_loss, others) = results
    assert torch.equal(loss, other_loss)
    assert gradients.keys() == others.keys()
    assert all(torch.equal(gradient, others[name]) for name, gradient in gradients.items())


def test_blocks_are_computed_again_in_training_alone(model):
    calls = []
    for module in model.modules():
        if isinstance(module, Block):
            module.register_forward_pre_hook(lambda *_: calls.append(1))
    blocks = 2  # one a tower
    pixels, tokens, _ = random_inputs(model, 3, 0)(slice(0, 3))
    for on, grad, expected in ((False, True, blocks), (True, True, 2 * blocks), (True, False, blocks)):
        checkpoint_blocks(model, on)
        calls.clear()
        with torch.set_grad_enabled(grad):
            out = model(pixels, tokens)
        if grad:
            (out.image_embeddings.sum() + out.text_embeddings.sum()).backward()
        assert len(calls) == expected


def test_checkpointing_leaves_no_key_and_needs_blocks(model):
    before = model.state_dict().keys()
    checkpoint_blocks(model)
    assert model.state_dict().keys() == before
    checkpoint_blocks(torch.nn.Linear(2, 2), on=False)
    with pytest.raises(ValueError, match="gradient_checkpointing"):
        checkpoint_blocks(torch.nn.Linear(2, 2))


# the micro batch that fits


def most_alive(model, config, pairs):
    with Alive(model.parameters()) as alive:
        memory._trial(model, config, pairs)
    return max(alive.moments)


def give(monkeypatch, model, batch, bytes_of_a_step):
    """A machine with memory for a micro batch of so many bytes, and what is reserved beside it."""
    total = (bytes_of_a_step + reserved_bytes(model, batch)) / memory.CPU_SHARE
    monkeypatch.setattr(memory, "available_bytes", lambda: total)


@pytest.mark.parametrize("checkpointed", [False, True])
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_auto_takes_what_fits_and_not_the_double(model, monkeypatch, checkpointed, precision):
    config = dataclasses.replace(FLOAT32, gradient_checkpointing=checkpointed, precision=precision, patch_dropout=0.5)
    checkpoint_blocks(model, checkpointed)
    budget = most_alive(model, config, 24)
    give(monkeypatch, model, 64, budget)
    found = settle_memory(model, config, 64).micro_batch_size
    assert found == 16
    assert most_alive(model, config, found) <= budget < most_alive(model, config, 2 * found)


def test_auto_is_exact_for_sizes_that_were_not_tried(model):
    few, more, many = [], [], []
    for moments, pairs in ((few, 2), (more, 4), (many, 50)):
        with Alive(model.parameters()) as alive:
            memory._trial(model, FLOAT32, pairs)
        moments += alive.moments
        assert alive._bytes == 0, "something of the trial is left"
    assert memory.peak(few, more, 50) == max(many)
    assert memory.peak([10, 30], [10, 50], 6) == 70
    assert memory.peak([10, 20], [10, 20, 40], 8) == 80  # another course of events: all of it grows


def test_auto_where_all_fits_where_nothing_does_and_off(model, monkeypatch):
    give(monkeypatch, model, 60, most_alive(model, FLOAT32, 60))
    assert settle_memory(model, FLOAT32, 60).micro_batch_size is None
    give(monkeypatch, model, 60, most_alive(model, FLOAT32, 59))
    assert settle_memory(model, FLOAT32, 60).micro_batch_size == 32
    give(monkeypatch, model, 60, 0)
    with pytest.raises(ValueError, match="not one pair fits into the free memory of cpu"):
        settle_memory(model, FLOAT32, 60)
    for micro in (None, 7):
        config = dataclasses.replace(FLOAT32, micro_batch_size=micro)
        assert settle_memory(model, config, 60) == config


def test_the_setting_switches_checkpointing_on_and_off(model):
    for on in (True, False):
        settle_memory(model, TrainConfig(gradient_checkpointing=on), 8)
        assert model.image.blocks.checkpointed is model.text.blocks.checkpointed is on


def test_auto_leaves_no_trace(tokenizer, monkeypatch):
    model = with_dropout(make_model(tokenizer))
    model.image.norm_after = torch.nn.Sequential(model.image.norm_after, torch.nn.BatchNorm1d(32))
    model.log_scale.grad = torch.tensor(7.0)
    before, state = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    give(monkeypatch, model, 64, 1 << 20)
    assert settle_memory(model, FLOAT32, 64).micro_batch_size is not None
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert {name: p.grad for name, p in model.named_parameters() if p.grad is not None} == {"log_scale": 7.0}


class Gpu:
    """Stands in for torch.cuda: of so many bytes, of which a trial takes some for each pair."""

    def __init__(self, monkeypatch, free, for_a_pair):
        self.tried, self.peak = [], 0

        def trial(model, config, pairs):
            self.tried.append(pairs)
            self.peak = 1000 + pairs * for_a_pair
            if pairs * for_a_pair > free:
                raise torch.OutOfMemoryError("no more")

        monkeypatch.setattr(memory, "_trial", trial)
        monkeypatch.setattr(memory, "reserved_bytes", lambda model, batch: 0)
        monkeypatch.setattr(memory, "_fits_by_count", memory._fits_by_trial)  # the test's model is on the CPU
        for name, answer in {
            "empty_cache": lambda: None,
            "memory_allocated": lambda device: 1000,
            "mem_get_info": lambda device: (free, 2 * free),
            "reset_peak_memory_stats": lambda device: None,
            "max_memory_allocated": lambda device: self.peak,
        }.items():
            monkeypatch.setattr(torch.cuda, name, answer)


@pytest.mark.parametrize(
    ("free", "found", "tried"),
    [
        (10_000, 64, [1, 2, 4, 8, 16, 32, 64, 100]),  # 100 pairs are above the share of what is free
        (5_000, 32, [1, 2, 4, 8, 16, 32, 64]),  # 64 pairs are out of memory
        (20_000, None, [1, 2, 4, 8, 16, 32, 64, 100]),
    ],
)
def test_a_gpu_is_tried_until_its_memory_or_the_share_is_used_up(model, monkeypatch, free, found, tried):
    gpu = Gpu(monkeypatch, free, for_a_pair=100)
    assert settle_memory(model, FLOAT32, 100).micro_batch_size == found
    assert gpu.tried == tried


@pytest.mark.skipif(not torch.cuda.is_available(), reason="a GPU's own counters")
def test_auto_on_a_gpu(tokenizer, monkeypatch):
    model = make_model(tokenizer).cuda()
    before = torch.cuda.memory_allocated(), torch.cuda.get_rng_state()
    torch.cuda.reset_peak_memory_stats()
    memory._trial(model, FLOAT32, 24)
    budget = torch.cuda.max_memory_allocated() - before[0] + reserved_bytes(model, 64)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (budget / memory.GPU_SHARE, 0))
    assert settle_memory(model, FLOAT32, 64).micro_batch_size == 16
    assert torch.equal(torch.cuda.get_rng_state(), before[1])
    assert all(p.grad is None for p in model.parameters())


def test_the_ranks_take_what_fits_on_all_of_them(model, monkeypatch):
    give(monkeypatch, model, 64, most_alive(model, FLOAT32, 40))
    for others, expected in (([8, 0], 8), ([64, 1], 32)):
        monkeypatch.setattr(memory, "all_ranks", lambda mine, others=others: [mine, others])
        assert settle_memory(model, FLOAT32, 64).micro_batch_size == expected
    monkeypatch.setattr(memory, "all_ranks", lambda mine: [mine, [0, 0]])
    with pytest.raises(ValueError, match="not one pair"):
        settle_memory(model, FLOAT32, 64)
    monkeypatch.setattr(memory, "all_ranks", lambda mine: [mine])
    monkeypatch.setattr(memory, "ranks_here", lambda: 2)
    assert settle_memory(model, FLOAT32, 64).micro_batch_size < 32


FILES = {"/proc/meminfo": "MemTotal: 100 kB\nMemAvailable:     40 kB\n", "/proc/self/statm": "9 1 1 1 0 1 0"}


class TestAvailable:
    def with_files(self, monkeypatch, files):
        def read(path, **_):
            if str(path) not in files:
                raise FileNotFoundError(path)
            return files[str(path)]

        monkeypatch.setattr(Path, "read_text", read)
        return available_bytes()

    def test_what_the_system_says(self, monkeypatch):
        assert self.with_files(monkeypatch, FILES) == 40 * 1024

    @pytest.mark.parametrize("path", ["/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"])
    def test_a_containers_limit(self, monkeypatch, path):
        monkeypatch.setattr(os, "sysconf", {"SC_PAGE_SIZE": 10}.__getitem__, raising=False)
        assert self.with_files(monkeypatch, {**FILES, path: "1010\n"}) == 1000
        assert self.with_files(monkeypatch, {**FILES, path: "5\n"}) == 0
        assert self.with_files(monkeypatch, {**FILES, path: "max\n"}) == 40 * 1024

    def test_where_there_is_no_such_file(self, monkeypatch):
        monkeypatch.setattr(os, "sysconf", {"SC_PAGE_SIZE": 10, "SC_PHYS_PAGES": 6}.__getitem__, raising=False)
        assert self.with_files(monkeypatch, {}) == 30
        monkeypatch.delattr(os, "sysconf")
        assert self.with_files(monkeypatch, {}) == memory.UNKNOWN


def test_a_run_keeps_the_number_that_was_found(start, train_data, val_data, monkeypatch):
    """A resumed run takes the same, whatever fits by then: other parts would be other sums, in the last bit."""
    tried = []
    monkeypatch.setattr(memory, "fitting", lambda model, config, batch: tried.append(batch) or 4)
    trainer = start(micro_batch_size="auto", gradient_checkpointing=True, max_steps=2)
    trainer.fit()
    assert json.loads((trainer.run_dir / "config.json").read_text())["train"]["micro_batch_size"] == 4
    resumed = Trainer.resume(trainer.run_dir, train_data, val_data, device="cpu")
    assert resumed.config.micro_batch_size == 4
    assert resumed.model.image.blocks.checkpointed
    assert tried == [8]
