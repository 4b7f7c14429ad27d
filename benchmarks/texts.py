"""`encode_text`, 12 layers of width 512, on token ids: captions of natural length, and a classifier's prompts.

python -m benchmarks texts
"""

from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor

from benchmarks.baselines import implementations, random_captions, random_prompts, with_layers
from benchmarks.harness import Row, Scale, interleaved, require_agreement
from miniclip import CLIPConfig
from miniclip.config import preset


def rows(scale: Scale) -> Iterator[Row]:
    config = with_layers(preset("vit_b_16"), 1) if scale.small else preset("vit_b_16")
    config = config.replace_image(layers=1)
    captions = random_captions(16 if scale.small else 256)
    prompts = random_prompts(2, 8) if scale.small else random_prompts(2, 500)
    yield from float32_rows(scale, config, captions, prompts)
    models = implementations(config, scale.device, torch.bfloat16)
    calls = {name: partial(model.texts, captions.to(scale.device)) for name, model in models.items()}
    results = {name: call().float() for name, call in calls.items()}
    difference = require_agreement(results, 0.1, "encode_text in bfloat16")
    values = interleaved(calls, scale.rounds, work=len(captions))
    note = f"largest difference {difference:.0e}"
    yield Row("encode_text", f"{len(captions)} captions, bfloat16", "texts/s", values, {}, note=note)


def float32_rows(scale: Scale, config: CLIPConfig, captions: Tensor, prompts: Tensor) -> Iterator[Row]:
    models = implementations(config, scale.device)
    cases = {
        f"{len(captions)} captions, mean {mean_length(captions):.0f} tokens": (
            captions,
            {"transformers": 2.7, "open_clip": 7.0},
        ),
        f"{len(prompts)} prompts of a classifier, mean {mean_length(prompts):.0f} tokens": (
            prompts,
            {"transformers": 2.7, "open_clip": 2.7},
        ),
    }
    for case, (tokens, targets) in cases.items():
        tokens = tokens.to(scale.device)
        results = {name: model.texts(tokens) for name, model in models.items()}
        difference = require_agreement(results, 1e-4, "encode_text")
        calls = {name: partial(model.texts, tokens) for name, model in models.items()}
        work = dict.fromkeys(calls, len(tokens))
        # open_clip's cost of a text does not depend on the others, so a part of them is enough
        calls["open_clip"], work["open_clip"] = partial(models["open_clip"].texts, tokens[:64]), min(64, len(tokens))
        values = interleaved(calls, scale.rounds, work)
        note = f"float32; largest difference {difference:.0e}"
        yield Row("encode_text", case, "texts/s", values, targets, note=note)


def mean_length(tokens: Tensor) -> float:
    """Return the mean number of tokens of texts (N, T), zeros after the end."""
    return float((tokens != 0).sum() / len(tokens))
