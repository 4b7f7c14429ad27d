"""`encode_text`, 12 layers of 512, on ready token ids: captions of natural length, and a classifier's prompts.

python -m benchmarks texts
"""

from collections.abc import Iterator
from functools import partial

import torch

from benchmarks.frame import Row, Scale, agree, in_turns
from benchmarks.peers import captions, contenders, prompts, smaller
from miniclip.config import preset


def rows(scale: Scale) -> Iterator[Row]:
    config = smaller(preset("vit_b_16"), 1) if scale.small else preset("vit_b_16")
    models = contenders(config.replace_image(layers=1), scale.device)
    natural = captions(16 if scale.small else 256)
    labelled = prompts(2, 8) if scale.small else prompts(2, 500)
    cases = {
        f"{len(natural)} captions, mean {(natural != 0).sum() / len(natural):.0f} tokens": (
            natural,
            {"transformers": 2.7, "open_clip": 7.0},
        ),
        f"{len(labelled)} prompts of a classifier, mean {(labelled != 0).sum() / len(labelled):.0f} tokens": (
            labelled,
            {"transformers": 2.7, "open_clip": 2.7},
        ),
    }
    for case, (tokens, reach) in cases.items():
        tokens = tokens.to(scale.device)
        worst = agree({name: model.texts(tokens) for name, model in models.items()}, 1e-4, "encode_text")
        calls = {name: partial(model.texts, tokens) for name, model in models.items()}
        work = dict.fromkeys(calls, len(tokens))
        # every text costs it the same, whatever the others are: some of them will do
        calls["open_clip"], work["open_clip"] = partial(models["open_clip"].texts, tokens[:64]), min(64, len(tokens))
        values = in_turns(calls, scale.rounds, work)
        note = f"float32; they differ by {worst:.0e} at most"
        yield Row("encode_text", case, "texts/s", values, reach, note=note)
    del models, calls
    bf16 = contenders(config.replace_image(layers=1), scale.device, torch.bfloat16)
    calls = {name: partial(model.texts, natural.to(scale.device)) for name, model in bf16.items()}
    worst = agree({name: call().float() for name, call in calls.items()}, 0.1, "encode_text in bfloat16")
    values = in_turns(calls, scale.rounds, work=len(natural))
    yield Row("encode_text", f"{len(natural)} captions, bfloat16", "texts/s", values, {}, note=f"apart by {worst:.0e}")
