"""Compiled blocks: the losses of the eager run, within the precision.

Inductor's C++ takes the compiler half a minute, so only one tower goes through it. The runs use the backend
"aot_eager": it traces and partitions forward and backward as inductor does, then runs torch's own kernels.
"""

import functools
import itertools
import shutil

import pytest
import torch

from miniclip.config import CLIPConfig, ImageConfig, TextConfig
from miniclip.inference.model import CLIPModel
from miniclip.runtime.compilation import compile_blocks, pad_to_multiple
from tests.toys import make_model

slow = pytest.mark.slow


@slow
def test_a_compiled_run_equals_the_eager_one(start, monkeypatch):
    """The settings use every feature that affects the blocks; bfloat16 keeps 8 bits, 0.2% a rounding."""
    settings = {"micro_batch_size": 4, "gradient_checkpointing": True, "patch_dropout": 0.5, "precision": "bfloat16"}
    backend = functools.partialmethod(torch.nn.Module.compile, backend="aot_eager")
    monkeypatch.setattr(torch.nn.Module, "compile", backend)
    torch.compiler.reset()
    plain, compiled = (
        start(run, callbacks=[], max_steps=4, compile=run == "compiled", **settings) for run in ("plain", "compiled")
    )
    losses = [torch.tensor([record["loss"] for record in trainer.fit().steps]) for trainer in (plain, compiled)]
    torch.testing.assert_close(*losses, rtol=1e-2, atol=0)
    assert compiled.model.state_dict().keys() == plain.model.state_dict().keys()


@slow
@pytest.mark.skipif(not (shutil.which("g++") or shutil.which("clang++")), reason="inductor needs a compiler")
def test_inductor_gives_the_values_and_gradients_of_the_eager_blocks(tokenizer, monkeypatch):
    """Another order of summation costs 1e-6. The compiler is not tried out first, a third of its time."""
    backend = functools.partialmethod(torch.nn.Module.compile, options={"cpp.vec_isa_ok": True})
    monkeypatch.setattr(torch.nn.Module, "compile", backend)
    torch.compiler.reset()
    pixels, results = torch.randn(2, 3, 16, 16), []
    for compiled in (False, True):
        model = make_model(tokenizer)
        if compiled:
            compile_blocks(model)
        embeddings = model.image(pixels)
        (embeddings * torch.linspace(-1, 1, embeddings.shape[1])).sum().backward()
        results.append([embeddings.detach(), *(parameter.grad for parameter in model.image.parameters())])
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


@slow
def test_no_graph_is_one_too_many(monkeypatch):
    """Gradient caching runs the blocks with and without gradient, here for two lengths of captions: 12 graphs."""
    monkeypatch.setattr(torch.nn.Module, "compile", functools.partialmethod(torch.nn.Module.compile, backend="eager"))
    monkeypatch.setattr(torch.compiler.config, "fail_on_recompile_limit_hit", True)
    monkeypatch.setattr(torch.compiler.config, "recompile_limit", torch.compiler.config.recompile_limit)
    torch.compiler.reset()
    model = CLIPModel(CLIPConfig(ImageConfig(16, 8, 16, 2, 2), TextConfig(24, 600, 32, 2, 2), 16))
    compile_blocks(model)
    for tokens, gradient in itertools.product((8, 16), (False, True)):
        with torch.set_grad_enabled(gradient):
            model(torch.zeros(2, 3, 16, 16), torch.zeros(2, tokens, dtype=torch.int64))


def test_captions_are_padded_to_a_multiple():
    tokens = torch.arange(1, 14).expand(2, 13)
    padded = pad_to_multiple(tokens, 20)
    assert padded.shape == (2, 16)
    assert torch.equal(padded[:, :13], tokens)
    assert not padded[:, 13:].any()
    assert torch.equal(pad_to_multiple(padded, 20), padded)
    assert pad_to_multiple(torch.ones(2, 17), 20).shape == (2, 20)
