"""FLOPs: the count against torch's FlopCounterMode, and the measured peak."""

import math

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from miniclip.config import PRESETS, CLIPConfig, ImageConfig, TextConfig
from miniclip.inference.model import CLIPModel
from miniclip.models.vision import draw_patches
from miniclip.runtime.flops import image_flops, pair_flops, peak_flops, text_flops

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
    model = CLIPModel(config).initialise()
    size, patches = config.image.image_size, config.image.patches
    kept = draw_patches(2, patches, dropout, torch.Generator()) if dropout else None
    found = counted(lambda: model.image(torch.zeros(2, 3, size, size), kept))
    extra = 2 * config.image.width**2 if config.image.pooling == "attention" else 0  # the query, once a batch
    assert found == pytest.approx(2 * image_flops(config, dropout), abs=extra, rel=1e-3)


@pytest.mark.parametrize("config", [SMALL, SIGLIP])
def test_a_caption_as_torch_counts_it(config):
    model = CLIPModel(config).initialise()
    tokens = torch.full((2, 24), 5)
    tokens[:, -1] = config.text.end_id
    assert counted(lambda: model.text(tokens)) == 2 * text_flops(config, 24)


def test_a_step_is_three_times_forward():
    """Backward makes no gradient for the pixels, so torch counts one product of the patches less."""
    config = SMALL
    model = CLIPModel(config).initialise()
    tokens = torch.full((2, 24), 5)
    tokens[:, -1] = config.text.end_id

    def step():
        out = model(torch.randn(2, 3, 32, 32), tokens)
        (out.image_embeddings.sum() + out.text_embeddings.sum()).backward()

    patches = 2 * config.image.patches * 3 * 8**2 * config.image.width
    assert counted(step) == 2 * (pair_flops(model, 24) - patches)


def test_what_is_frozen_costs_forward_alone_and_own_towers_are_not_counted():
    model = CLIPModel(SMALL)
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
