"""`encode_image`, ViT-B/16, on ready pixels: float32 and bfloat16, against open_clip and transformers.

python -m benchmarks pictures
"""

from collections.abc import Iterator
from functools import partial

import torch

from benchmarks.baselines import implementations, with_layers, with_medium_precision
from benchmarks.harness import Row, Scale, interleaved, require_agreement
from miniclip.config import preset

TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 0.1}  # of the greatest value


def rows(scale: Scale) -> Iterator[Row]:
    config = with_layers(preset("vit_b_16"), 1) if scale.small else preset("vit_b_16")
    sizes = (1, 2) if scale.small else (1, 8, 32) if scale.device == "cpu" else (32, 256)
    exact = {}
    for dtype in (torch.float32, torch.bfloat16):
        models = implementations(config, scale.device, dtype)
        for size in sizes:
            pixels = torch.randn(size, 3, 224, 224, generator=torch.Generator().manual_seed(size))
            ready = pixels.to(scale.device, dtype)
            found = {name: model.images(ready).float() for name, model in models.items()}
            worst = require_agreement(found, TOLERANCE[dtype], f"encode_image of {size}")
            calls = {name: partial(model.images, ready) for name, model in models.items()}
            name = str(dtype).removeprefix("torch.")
            if dtype == torch.float32:
                exact[size] = found["miniclip"]
                peers = [peer for peer in models if peer != "miniclip"]
                calls |= {f"{peer}, medium": with_medium_precision(calls[peer]) for peer in peers}
                reach = dict.fromkeys(peers, 2.0) | {f"{peer}, medium": 1.2 for peer in peers}
                note = f"they differ by {worst:.0e} at most"
            else:
                reach = {peer: 1.15 for peer in models if peer != "miniclip"}
                errors = {peer: float((f - exact[size]).norm() / exact[size].norm()) for peer, f in found.items()}
                note = "off float32 by " + ", ".join(f"{peer} {error:.2%}" for peer, error in errors.items())
            values = interleaved(calls, scale.rounds, work=size)
            yield Row("encode_image", f"ViT-B/16, batch {size}, {name}", "pictures/s", values, reach, note=note)
