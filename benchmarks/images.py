"""Speed of `encode_image` on preprocessed pixels, ViT-B/16, against open_clip and transformers.

python -m benchmarks images
"""

from collections.abc import Iterator
from functools import partial

import torch

from benchmarks.baselines import implementations, with_layers, with_medium_precision
from benchmarks.harness import Row, Scale, interleaved, require_agreement
from miniclip.config import preset
from miniclip.fast.private import has_amx

TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 0.1}  # relative to the greatest value


def rows(scale: Scale) -> Iterator[Row]:
    config = with_layers(preset("vit_b_16"), 1) if scale.small else preset("vit_b_16")
    sizes = (1, 2) if scale.small else (1, 8, 32) if scale.device == "cpu" else (32, 256)
    exact = {}
    for dtype in (torch.float32, torch.bfloat16):
        models = implementations(config, scale.device, dtype)
        for size in sizes:
            pixels = torch.randn(size, 3, 224, 224, generator=torch.Generator().manual_seed(size))
            pixels = pixels.to(scale.device, dtype)
            embeddings = {name: model.images(pixels).float() for name, model in models.items()}
            difference = require_agreement(embeddings, TOLERANCE[dtype], f"encode_image of {size}")
            calls = {name: partial(model.images, pixels) for name, model in models.items()}
            name = str(dtype).removeprefix("torch.")
            if dtype == torch.float32:
                exact[size] = embeddings["miniclip"]
                baselines = [baseline for baseline in models if baseline != "miniclip"]
                targets = dict.fromkeys(baselines, 2.0)
                if not has_amx():  # else it is bfloat16, as in the rows below
                    calls |= {f"{baseline}, medium": with_medium_precision(calls[baseline]) for baseline in baselines}
                    targets |= {f"{baseline}, medium": 1.2 for baseline in baselines}
                note = f"they differ by {difference:.0e} at most"
            else:
                targets = {baseline: 1.15 for baseline in models if baseline != "miniclip"}
                norm = exact[size].norm()
                errors = {
                    baseline: float((value - exact[size]).norm() / norm) for baseline, value in embeddings.items()
                }
                note = "off float32 by " + ", ".join(f"{baseline} {error:.2%}" for baseline, error in errors.items())
            values = interleaved(calls, scale.rounds, work=size)
            yield Row("encode_image", f"ViT-B/16, batch {size}, {name}", "images/s", values, targets, note=note)
