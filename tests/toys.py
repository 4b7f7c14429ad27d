"""Model so small that a run takes a second."""

import dataclasses

import torch

from miniclip.config import CLIPConfig, ImageConfig, TextConfig
from miniclip.hub import fresh
from miniclip.inference.model import CLIPModel
from miniclip.tokenizer import Tokenizer

CONFIG = CLIPConfig(ImageConfig(16, 8, 32, 1, 2), TextConfig(77, 600, 32, 1, 2), 16)


def make_model(tokenizer: Tokenizer, **changes: object) -> CLIPModel:
    torch.manual_seed(0)
    return fresh(dataclasses.replace(CONFIG, **changes), tokenizer)
