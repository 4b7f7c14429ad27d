"""Effect of bfloat16 on recall: a model trained for a minute, evaluated in float32 and bfloat16.

python -m benchmarks recall
"""

import copy
import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch

import miniclip
from benchmarks.harness import Row, Scale
from miniclip.cli.trainers import fresh_model
from miniclip.evaluation.retrieval import LazyImages, embed, recalls

DIRECTIONS = (("text_to_image", "text to image"), ("image_to_text", "image to text"))


def rows(scale: Scale) -> Iterator[Row]:
    """Recall on synthetic images in both directions, with the error of the embeddings."""
    size, steps = (60, 2) if scale.small else (2000, 200)
    train_data, val_data = miniclip.data.Shapes("train", size), miniclip.data.Shapes("val", size // 4)
    config = miniclip.TrainConfig(epochs=1000, max_steps=steps, batch_size=min(128, size), precision="float32")
    torch.manual_seed(0)
    model = fresh_model("bert_vit_tiny", train_data.captions, config)
    with tempfile.TemporaryDirectory() as folder:
        run_dir = Path(folder) / "run"
        miniclip.Trainer(model, train_data, config=config, run_dir=run_dir, callbacks=[], device=scale.device).fit()
    float32 = embed(model, val_data.captions, LazyImages(val_data))
    bfloat16 = embed(copy.deepcopy(model).bfloat16(), val_data.captions, LazyImages(val_data))
    errors = [float((a - b).norm() / b.norm()) for a, b in zip(bfloat16[:2], float32[:2], strict=True)]
    note = f"{steps} steps of bert_vit_tiny; embedding errors {errors[0]:.2%} (images) and {errors[1]:.2%} (texts)"
    results = {"miniclip": recalls(bfloat16), "float32": recalls(float32)}
    for direction, name in DIRECTIONS:
        for k in ("R@1", "R@5"):
            values = {label: [float(result[direction][k])] for label, result in results.items()}
            yield Row("recall in bfloat16", f"{name}, {k}, {len(val_data)} images", "%", values, {}, note=note)
