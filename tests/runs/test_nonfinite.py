"""Non-finite steps: weights stay, the cause is named, the batch is kept, and too many in a row stop the run."""

import json
import math

import pytest
import torch

from miniclip.checkpoints.formats.safetensors import read_tensors
from miniclip.runs.nonfinite import cause
from miniclip.train import Callback, History
from miniclip.train.step_arguments import update_if


class Poison(Callback):
    """Makes the pixels of some images infinite."""

    def __init__(self, trainer, images):
        prepare = trainer.prepare

        def poisoned(batch, step):
            parts, start = list(prepare(batch, step)), 0
            rows = torch.isin(batch.indices, torch.tensor(images))
            for part in parts:
                part.pixels[rows[start : start + len(part.pixels)]] = math.inf
                start += len(part.pixels)
            return parts

        trainer.prepare = poisoned


@pytest.mark.parametrize("micro", [None, 3])
def test_bad_image_is_named_and_its_batch_kept(start, micro):
    trainer = start(micro_batch_size=micro, log_every=4)
    Poison(trainer, [7])
    history = trainer.fit()
    assert len(history.skipped) == 2  # once an epoch
    assert len(history.steps) == 8
    for record in history.skipped:
        assert record["skipped"] == "the embedding of image 7 (1 of 8 rows)"
        about = json.loads((trainer.run_dir / "skipped" / record["batch"]).read_text())
        tensors, _ = read_tensors(trainer.run_dir / "skipped" / record["batch"].replace("json", "safetensors"))
        assert 7 in about["images"]
        assert tensors["indices"].tolist() == about["images"]
        assert tensors["pixels"].shape == (8, 3, 16, 16)
        assert len(about["captions"][0]) == 5
    assert all(p.isfinite().all() for p in trainer.model.parameters())
    assert History.read(trainer.run_dir) == history


def test_skipped_step_changes_nothing(start):
    trainer = start(log_every=1, max_steps=1)
    Poison(trainer, list(range(40)))
    before = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    trainer.fit()
    assert all(torch.equal(value, before[name]) for name, value in trainer.model.state_dict().items())
    assert all(int(state["step"]) == 0 for state in trainer.optimizer.state.values())


@pytest.mark.parametrize(("allowed", "done"), [(0, 1), (2, 3), (10, None)])
def test_too_many_in_a_row_stop_the_run(start, allowed, done):
    trainer = start(max_nonfinite_steps=allowed, log_every=1)
    Poison(trainer, list(range(40)))
    if done is None:  # ten steps in all
        trainer.fit()
        return
    with pytest.raises(FloatingPointError, match=rf"at step {done}, the last of {done} in a row"):
        trainer.fit()
    assert trainer.step == done


def test_cause_is_named():
    indices, fine = torch.tensor([10, 20, 30]), torch.ones(2, 3, dtype=torch.bool)
    figures = {"loss": 1.0, "logit_scale": 14.0, "grad_norm_image": 1.0, "grad_norm_text": math.nan}
    texts, loss = fine.clone(), figures | {"loss": math.inf}
    texts[1, 1] = False
    assert cause(loss, texts, indices).startswith("the embedding of the caption of image 20 (1 of 3 rows)")
    assert "scale of 14" in cause(loss, fine, indices)
    assert cause(figures, fine, indices) == "the gradient of the text tower, at a finite loss"
    finite = figures | {"grad_norm_text": 1.0}
    assert cause(finite, fine, indices) == "the gradient of the scale, at a finite loss"


@pytest.mark.parametrize("fused", [True, False])
def test_optimizer_steps_only_if_finite(fused):
    p = torch.nn.Parameter(torch.ones(3))
    optimizer = torch.optim.AdamW([p], lr=0.1, fused=fused)
    p.grad = torch.ones(3)
    update_if(optimizer, torch.tensor(False))
    assert torch.equal(p, torch.ones(3))
    update_if(optimizer, torch.tensor(True))
    assert not torch.equal(p, torch.ones(3))
    assert int(optimizer.state[p]["step"]) == 1
