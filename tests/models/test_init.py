"""Fresh weights: every parameter has its row of the table, and comes out with that row's spread."""

import re

import pytest
import torch

from miniclip.config import CLIPConfig, ImageConfig, TextConfig
from miniclip.inference.model import CLIPModel
from miniclip.models.init import TABLE

D, E, LAYERS, V = 128, 64, 3, 600
CONFIG = CLIPConfig(ImageConfig(32, 4, D, LAYERS, 2), TextConfig(40, V, D, LAYERS, 2), E)

# standard deviations, by the papers: CLIP's initialize_parameters
SPREAD = {
    r"text\.tokens\.weight": 0.02,
    r"text\.positions": 0.01,
    r"image\.(class_token|positions|patches\.weight)": D**-0.5,
    r"(image|text)\.blocks\.\d\.attention\.qkv\.weight": D**-0.5,
    r"(image|text)\.blocks\.\d\.attention\.out\.weight": D**-0.5 * (2 * LAYERS) ** -0.5,
    r"(image|text)\.blocks\.\d\.mlp\.up\.weight": (2 * D) ** -0.5,
    r"(image|text)\.blocks\.\d\.mlp\.down\.weight": D**-0.5 * (2 * LAYERS) ** -0.5,
    r"(image|text)\.projection\.weight": D**-0.5,
}
ONES = r"(image|text)\.(.*\.)?norm(1|2|_before|_after)\.weight"
ZEROS = r"(image|text)\..*bias"


def fresh(seed: int = 0) -> CLIPModel:
    """A model that had other weights before."""
    model = CLIPModel(CONFIG)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(7.0)
    torch.manual_seed(seed)
    return model.initialise()


def test_every_parameter_is_matched_by_a_row_and_every_row_is_used():
    towers = [key for key in dict(CLIPModel(CONFIG).named_parameters()) if key.startswith(("image.", "text."))]
    used = set()
    for key in towers:
        matching = [pattern for pattern, _ in TABLE if re.search(pattern, key)]
        assert matching, key
        used.add(matching[0])
    assert used == {pattern for pattern, _ in TABLE}


def test_spreads():
    seen = set()
    for key, parameter in fresh().named_parameters():
        if key == "log_scale":
            assert parameter.item() == 7.0  # only the weights of a tower
        elif re.fullmatch(ONES, key):
            assert torch.equal(parameter, torch.ones_like(parameter)), key
        elif re.fullmatch(ZEROS, key):
            assert torch.equal(parameter, torch.zeros_like(parameter)), key
        else:
            pattern, std = next((pattern, std) for pattern, std in SPREAD.items() if re.fullmatch(pattern, key))
            seen.add(pattern)
            tolerance = 0.05 if parameter.numel() > 2000 else 0.25  # the spread of 128 numbers is only known to 6%
            assert parameter.std().item() == pytest.approx(std, rel=tolerance), key
            assert abs(parameter.mean().item()) < 5 * std * parameter.numel() ** -0.5, key
    assert seen == set(SPREAD)


def test_the_same_seed_gives_the_same_weights():
    one, same, other = fresh(1).state_dict(), fresh(1).state_dict(), fresh(2).state_dict()
    assert all(torch.equal(one[key], same[key]) for key in one)
    assert not torch.equal(one["image.class_token"], other["image.class_token"])
    assert not torch.equal(one["text.blocks.0.mlp.up.weight"], other["text.blocks.0.mlp.up.weight"])
    assert not torch.equal(one["text.blocks.0.mlp.up.weight"], one["text.blocks.1.mlp.up.weight"])
