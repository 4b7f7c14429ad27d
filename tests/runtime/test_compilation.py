"""Blocks translated by torch.compile: the plain run's losses, within what the precision allows."""

import shutil

import pytest
import torch

from miniclip.runtime.compilation import in_few_widths

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not (shutil.which("g++") or shutil.which("clang++")), reason="torch.compile needs a compiler"),
]


def losses(start, run, **settings):
    torch.compiler.reset()
    trainer = start(run, callbacks=[], max_steps=6, **settings)
    return torch.tensor([record["loss"] for record in trainer.fit().steps]), trainer


def test_in_float32_the_run_is_the_plain_one_but_for_rounding(start):
    """The same products in another order of summation: 1e-6 a step, which training multiplies a little.

    With all that touches the blocks: parts of a batch, blocks computed again, patches left out.
    """
    settings = {"micro_batch_size": 3, "gradient_checkpointing": True, "patch_dropout": 0.5}
    plain, _ = losses(start, "plain", **settings)
    compiled, _ = losses(start, "compiled", compile=True, **settings)
    torch.testing.assert_close(compiled, plain, rtol=1e-4, atol=0)


def test_in_bfloat16_it_is_as_near_to_float32_as_the_plain_run_is(start):
    """bfloat16 keeps 8 bits, 2^-9 = 0.2% a rounding; over some layers and steps 2% of the loss.

    The compiled blocks round less often (what is fused stays in float32), so the two differ by as much as either does
    from float32.
    """
    exact, _ = losses(start, "exact")
    plain, _ = losses(start, "plain", precision="bfloat16")
    compiled, trainer = losses(start, "compiled", precision="bfloat16", compile=True)
    for run in (plain, compiled):
        torch.testing.assert_close(run, exact, rtol=2e-2, atol=0)
    torch.testing.assert_close(compiled, plain, rtol=2e-2, atol=0)
    assert {name.split(".")[0] for name in trainer.model.state_dict()} == {
        name.split(".")[0] for name, _ in start("names", callbacks=[]).model.named_parameters()
    }


def test_captions_in_few_widths():
    tokens = torch.arange(1, 14).expand(2, 13)
    wide = in_few_widths(tokens, 20)
    assert wide.shape == (2, 16)
    assert torch.equal(wide[:, :13], tokens)
    assert not wide[:, 13:].any()
    assert torch.equal(in_few_widths(wide, 20), wide)
    assert in_few_widths(torch.ones(2, 17), 20).shape == (2, 20)
