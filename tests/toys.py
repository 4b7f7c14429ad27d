"""Model so small that a run takes a second, and the settings of each kind of tower."""

import dataclasses

import torch

from miniclip.config import CLIPConfig, ImageConfig, TextConfig
from miniclip.hub import fresh
from miniclip.inference.model import CLIPModel
from miniclip.tokenizer import Tokenizer
from miniclip.train import Callback

CONFIG = CLIPConfig(ImageConfig(16, 8, 32, 1, 2), TextConfig(77, 600, 32, 1, 2), 16)
IMAGE_KINDS = {
    "class": {},
    "quickgelu": {"activation": "quickgelu"},
    "mean": {"pooling": "mean", "norm_before": False},
    "attention": {"pooling": "attention", "class_token": False, "patch_bias": True, "projection": "none"},
    "conv": {"stem": "conv", "stem_residual_layers": 1, "pooling": "mean", "norm_before": False},
}
TEXT_KINDS = {
    "causal": {"causal": True, "pooling": "end", "activation": "quickgelu"},
    "bert": {},
    "bidirectional end": {"pooling": "end"},
    "siglip": {"padding": "attended", "pooling": "last", "projection": "bias"},
}


def make_model(tokenizer: Tokenizer, **changes: object) -> CLIPModel:
    torch.manual_seed(0)
    return fresh(dataclasses.replace(CONFIG, **changes), tokenizer)


class StopAt(Callback):
    """Ends a run as Ctrl-C does, when the record of a step is logged."""

    def __init__(self, step):
        self.step = step

    def on_step(self, trainer, record):
        if record["step"] == self.step:
            raise KeyboardInterrupt
