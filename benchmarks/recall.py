"""What bfloat16 costs in recall, not only in error: a model trained for a minute, evaluated in both.

python -m benchmarks recall
"""

import copy
import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch

import miniclip
from benchmarks.frame import Row, Scale
from miniclip.cli.train import fresh_model
from miniclip.evaluation.retrieval import embed, recalls


def rows(scale: Scale) -> Iterator[Row]:
    """Drawn pictures, text to image and back; the embeddings' error beside it."""
    pictures, steps = (60, 2) if scale.small else (2000, 200)
    train, val = miniclip.data.Shapes("train", pictures), miniclip.data.Shapes("val", pictures // 4)
    config = miniclip.TrainConfig(epochs=1000, max_steps=steps, batch_size=min(128, pictures), precision="float32")
    torch.manual_seed(0)
    model = fresh_model("bert_vit_tiny", train.captions, config)
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        miniclip.Trainer(model, train, config=config, run_dir=run, callbacks=[], device=scale.device).fit()
    exact = embed(model, val.captions, [val[i][0] for i in range(len(val))])
    rounded = embed(copy.deepcopy(model).bfloat16(), val.captions, [val[i][0] for i in range(len(val))])
    off = [float((a - b).norm() / b.norm()) for a, b in zip(rounded[:2], exact[:2], strict=True)]
    note = f"{steps} steps of bert_vit_tiny; embeddings off by {off[0]:.2%} (pictures) and {off[1]:.2%} (texts)"
    of_both = recalls(rounded), recalls(exact)
    for way, name in (("text_to_image", "text to image"), ("image_to_text", "image to text")):
        for k in ("R@1", "R@5"):
            values = dict(zip(("miniclip", "float32"), ([float(found[way][k])] for found in of_both), strict=True))
            yield Row("recall in bfloat16", f"{name}, {k}, {len(val)} pictures", "%", values, {}, note=note)
