"""LoRA beside peft on transformers' CLIPModel: the same weights, adapters and batches give the same losses."""

import pytest
import torch

import miniclip
from miniclip.config import CLIPConfig, ImageConfig, TextConfig
from miniclip.finetuning import add_lora, load_adapter, save_adapter
from miniclip.inference.model import CLIPModel
from miniclip.train.config import TrainConfig
from miniclip.train.optimizer import build_optimizer
from miniclip.train.step import Inputs, plain_step
from miniclip.train.step_arguments import loss_function, step_options

CONFIG = CLIPConfig(
    ImageConfig(16, 8, 64, 2, 1, activation="quickgelu"),
    TextConfig(8, 99, 64, 2, 1, causal=True, pooling="end", activation="quickgelu"),
    16,
)
STEPS, RATE = 8, 0.01

pytestmark = pytest.mark.peer


@pytest.mark.parametrize("targets", [("q", "k", "v"), ("q", "v", "out", "mlp")], ids="".join)
def test_losses_equal_those_of_peft(targets, tmp_path):
    transformers, peft = pytest.importorskip("transformers"), pytest.importorskip("peft")
    miniclip.export(CLIPModel(CONFIG).initialise().eval(), tmp_path / "base", layout="transformers")
    model = add_lora(miniclip.load(tmp_path / "base").train(), rank=2, alpha=6.0, targets=targets)
    save_adapter(model, tmp_path / "adapter")
    other = transformers.CLIPModel.from_pretrained(tmp_path / "base")
    other.logit_scale.requires_grad_(False)
    other = peft.PeftModel.from_pretrained(other, tmp_path / "adapter", is_trainable=True).train()
    counts = [sum(p.numel() for p in one.parameters() if p.requires_grad) for one in (model, other)]
    assert counts[0] == counts[1] > 0

    losses = list(zip(ours(model), theirs(other), strict=True))
    assert losses[-1][0] < losses[0][0] - 0.1
    assert max(abs(one - two) for one, two in losses) < 1e-4

    save_adapter(model, tmp_path / "trained")
    fresh = transformers.CLIPModel.from_pretrained(tmp_path / "base")
    tuned = peft.PeftModel.from_pretrained(fresh, tmp_path / "trained").eval().merge_and_unload()
    again = load_adapter(miniclip.load(tmp_path / "base"), tmp_path / "trained")
    pixels, tokens = next(batches())
    expected = tuned(input_ids=tokens, pixel_values=pixels).text_embeds
    assert (again.encode_text(tokens) - expected).abs().max() < 1e-5


def batches():
    generator = torch.Generator().manual_seed(0)
    pixels, tokens = torch.randn(6, 3, 16, 16, generator=generator), torch.randint(1, 97, (6, 8), generator=generator)
    tokens[:, -1] = 98
    tokens[3, 4:] = 98
    for _ in range(STEPS):
        order = torch.randperm(6, generator=generator)[:5]
        yield pixels[order], tokens[order]


def ours(model):
    config = TrainConfig(lr=RATE, weight_decay=0.0, max_grad_norm=1e9)
    optimizer, loss = build_optimizer(model, config), loss_function(config, model)
    for pixels, tokens in batches():
        options = step_options(config, torch.device("cpu"))
        yield float(plain_step(model, optimizer, Inputs(pixels, tokens), loss, options).metrics["loss"])


def theirs(model):
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=RATE, betas=(0.9, TrainConfig().beta2), eps=1e-6, weight_decay=0.0)
    for pixels, tokens in batches():
        loss = model(input_ids=tokens, pixel_values=pixels, return_loss=True).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        yield float(loss)
