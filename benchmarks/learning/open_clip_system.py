"""open_clip at its best: its classes with fresh weights, tokenizer, loss and augmentation, in a loop as in its script.

It gets the best options that it has for short runs:

- a context that is cut to the captions, and images that are resized before the clock starts;
- autocast to bfloat16 if that is faster, and the fused AdamW;
- no weight decay on gains and biases, as in its script, and patch dropout;
- settings that `--tune` has chosen with the budget of the claim.
"""

import copy
import itertools
import math
import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.transforms.functional import resize

from benchmarks.learning.systems import Start
from miniclip.runtime.precision import resolve
from miniclip.train.schedule import learning_rate

IMAGE_SIZE = 64
TEXT_WIDTH, TEXT_HEADS, HEAD_WIDTH = 128, 2, 64
# The towers of bert_vit_small and bert_vit_tiny, the latter with one text layer, and CLIP's ResNet at a tiny size: a
# smaller model makes more of a short budget, for open_clip too.
SIZES: dict[str, dict[str, Any]] = {
    "small": {"width": 192, "layers": 6, "patch_size": 8, "text_layers": 3},
    "tiny": {"width": 128, "layers": 4, "patch_size": 16, "text_layers": 2},
    "tiny_one_text_layer": {"width": 128, "layers": 4, "patch_size": 16, "text_layers": 1},
    "resnet": {"width": 16, "layers": (1, 1, 1, 1), "text_layers": 1},
}
RESNET_EMBEDDING = 128
SETTINGS = {
    "size": "tiny",
    "lr": 1e-3,
    "batch_size": 128,
    "patch_dropout": 0.0,
    "weight_decay": 0.2,
    "warmup": 0.1,
    "scale": 0.9,
    "compile": False,
}
CANDIDATES: dict[str, tuple[Any, ...]] = {
    "size": tuple(SIZES),
    "lr": (5e-4, 1e-3, 2e-3, 4e-3),
    "patch_dropout": (0.0, 0.5),
    "batch_size": (64, 128, 256),
    "scale": (0.9, 0.7),
    "compile": (False, True),  # on a GPU
}
WARM_UP_STEPS = 3
TRUNCATED = 0.01  # fraction of the captions that the context cuts
TOTAL = 10**6  # resolution of the schedule


class OpenClipSystem:
    """open_clip's CLIP in training."""

    def __init__(self, start: Start) -> None:
        from open_clip.loss import ClipLoss
        from open_clip.tokenizer import SimpleTokenizer
        from open_clip.transform import AugmentationCfg, image_transform

        self.settings, self.device = dict(start.settings), start.device
        self.batch_size = min(self.settings["batch_size"], len(start.train))
        torch.manual_seed(start.seed)
        random.seed(start.seed)
        self.random = random.Random(start.seed)
        tokenizer = SimpleTokenizer()
        texts = [tokenizer(captions) for captions in start.train.captions]
        lengths = torch.cat(texts).count_nonzero(dim=1).float()
        self.context = int(lengths.quantile(1 - TRUNCATED).ceil())
        self.tokenize = SimpleTokenizer(context_length=self.context)
        self.texts = [self.tokenize(captions) for captions in start.train.captions]
        self.model = self._build().to(self.device).train()
        if self.settings["compile"]:
            self.model.compile()
        aug = AugmentationCfg(scale=(self.settings["scale"], 1.0))
        self.transform = image_transform(IMAGE_SIZE, is_train=True, aug_cfg=aug)
        self.preprocess = image_transform(IMAGE_SIZE, is_train=False)
        self.images = [resize(image, [IMAGE_SIZE], interpolation=3) for image in start.train.images]
        self.loss = ClipLoss()
        self.optimizer = self._optimizer()
        self.precision = resolve("auto", self.device)
        self.facts = {
            "precision": self.precision,
            "parameters": sum(parameter.numel() for parameter in self.model.parameters()),
            "context": self.context,
        }

    def _build(self) -> nn.Module:
        from open_clip.model import CLIP, CLIPTextCfg, CLIPVisionCfg

        size = dict(SIZES[self.settings["size"]])
        text = CLIPTextCfg(self.context, width=TEXT_WIDTH, heads=TEXT_HEADS, layers=size.pop("text_layers"))
        dropout = self.settings["patch_dropout"]
        vision = CLIPVisionCfg(**size, head_width=HEAD_WIDTH, image_size=IMAGE_SIZE, patch_dropout=dropout)
        return CLIP(RESNET_EMBEDDING if self.settings["size"] == "resnet" else size["width"], vision, text)

    def _optimizer(self) -> torch.optim.Optimizer:
        """Return AdamW with the groups of open_clip's script."""
        named = list(self.model.named_parameters())
        excluded = [p for n, p in named if p.ndim < 2 or "bn" in n or "ln" in n or "bias" in n or "logit_scale" in n]
        ids = {id(p) for p in excluded}
        groups = [
            {"params": excluded, "weight_decay": 0.0},
            {"params": [p for _, p in named if id(p) not in ids], "weight_decay": self.settings["weight_decay"]},
        ]
        return torch.optim.AdamW(groups, lr=self.settings["lr"], betas=(0.9, 0.98), eps=1e-6, fused=True)

    def batches(self) -> Iterator[tuple[Tensor, Tensor]]:
        order = list(range(len(self.images)))
        while True:
            self.random.shuffle(order)
            for first in range(0, len(order) - self.batch_size + 1, self.batch_size):
                rows = order[first : first + self.batch_size]
                tokens = torch.stack([self.random.choice(self.texts[row]) for row in rows])
                yield torch.stack([self.transform(self.images[row]) for row in rows]), tokens

    def step(self, batch: tuple[Tensor, Tensor], progress: float) -> None:
        peak, warmup = self.settings["lr"], round(self.settings["warmup"] * TOTAL)
        rate = learning_rate(min(round(progress * TOTAL), TOTAL - 1), peak=peak, warmup=warmup, total=TOTAL)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        pixels, tokens = (tensor.to(self.device, non_blocking=True) for tensor in batch)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bfloat16"):
            loss = self.loss(*self.model(pixels, tokens))
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()
        with torch.no_grad():
            self.model.logit_scale.clamp_(0, math.log(100))

    def warm_up(self) -> None:
        weights, state = copy.deepcopy(self.model.state_dict()), copy.deepcopy(self.optimizer.state_dict())
        for batch in itertools.islice(self.batches(), WARM_UP_STEPS):
            self.step(batch, 0.5)
        self.model.load_state_dict(weights)
        self.optimizer.load_state_dict(state)

    @contextmanager
    def encoder(self) -> Iterator["OpenClipSystem"]:
        self.model.eval()
        yield self
        self.model.train()

    @torch.no_grad()
    def encode_image(self, images: Any) -> Tensor:
        """Return unit vectors of PIL images, in float32."""
        pixels = torch.stack([self.preprocess(image) for image in images])
        parts = [self.model.encode_image(part.to(self.device), normalize=True) for part in pixels.split(256)]
        return torch.cat(parts).float()

    @torch.no_grad()
    def encode_text(self, texts: Any) -> Tensor:
        """Return unit vectors of captions, in float32."""
        parts = [
            self.model.encode_text(part.to(self.device), normalize=True) for part in self.tokenize(texts).split(256)
        ]
        return torch.cat(parts).float()
