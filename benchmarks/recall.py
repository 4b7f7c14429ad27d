"""Effect of lower precisions on recall and zero-shot accuracy: a model trained for a minute, in float32 and in others.

python -m benchmarks recall

The others are bfloat16 and int8 in torch (`miniclip.quantize`, without and with calibration). On a CPU also the int8
files of `miniclip export --int8`, without and with calibration data, those of onnxruntime's own quantizer, and
OpenVINO's int8 if it is installed. The data are synthetic: 1,000 images of unseen combinations of colour and shape, and
the shapes as classes.
"""

import copy
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import miniclip
from benchmarks.deployment import engines, write_files
from benchmarks.harness import MINICLIP, Row, Scale
from miniclip.cli.trainers import fresh_model
from miniclip.evaluation import ShapeClasses
from miniclip.evaluation.labelled.images import as_labelled
from miniclip.evaluation.retrieval import Embeddings, LazyImages, recalls
from miniclip.evaluation.zero_shot import class_vectors, predictions
from miniclip.inference.texts import tokenize

BATCH = 50


def rows(scale: Scale) -> Iterator[Row]:
    size, steps = (60, 2) if scale.small else (4000, 400)
    train_data, val_data = miniclip.data.Shapes("train", size), miniclip.data.Shapes("val", size // 4)
    config = miniclip.TrainConfig(epochs=1000, max_steps=steps, batch_size=min(128, size), precision="float32")
    torch.manual_seed(0)
    model = fresh_model("bert_vit_tiny", train_data.captions, config)
    with tempfile.TemporaryDirectory() as folder:
        run_dir = Path(folder) / "run"
        miniclip.Trainer(model, train_data, config=config, run_dir=run_dir, callbacks=[], device=scale.device).fit()
        encoders = {MINICLIP: model, "miniclip bfloat16": copy.deepcopy(model).bfloat16()}
        if scale.device == "cpu":
            encoders |= int8_encoders(model, train_data, Path(folder))
        figures = {name: measure(encoder, val_data) for name, encoder in encoders.items()}
    exact = figures[MINICLIP]["embeddings"]
    cosines = (
        f"{name} {smallest_cosine(f['embeddings'], exact):.4f}" for name, f in figures.items() if name != MINICLIP
    )
    note = f"{steps} steps of bert_vit_tiny; smallest cosine with float32: {', '.join(cosines)}"
    for figure in ("text to image R@1", "image to text R@1", "zero-shot top-1"):
        values = {name: [f[figure]] for name, f in figures.items()}
        yield Row("lower precision", f"{figure}, {len(val_data)} images", "%", values, {}, note=note)


class EngineEncoder:
    """Calls of an engine, as an object with `encode_image` and `encode_text`."""

    def __init__(self, model: Any, name: str, calls: dict[str, Any]) -> None:
        self.model, self.image, self.text = model, calls["image"][name], calls["text"][name]

    def encode_image(self, images: Any) -> Tensor:
        pixels = torch.stack([self.model.preprocess(image) for image in images])
        return torch.cat([self.image(batch) for batch in pixels.split(BATCH)])

    def encode_text(self, texts: Any) -> Tensor:
        return torch.cat([self.text(batch) for batch in tokenize(self.model, self.model.tokenizer, texts).split(BATCH)])


def int8_encoders(model: Any, data: Any, folder: Path) -> dict[str, Any]:
    """The int8 forms by name; 200 images and their captions are calibration data."""
    images = [data[i][0] for i in range(min(200, len(data)))]
    texts = [caption for group in data.captions[: len(images)] for caption in group]
    calibrated = miniclip.quantize(model, images, texts)
    files = write_files(model, folder, images, texts)
    calls = {tower: engines(tower, files) for tower in ("image", "text")}
    names = [name for name in calls["image"] if "int8" in name]
    own = {"miniclip int8": miniclip.quantize(model), "miniclip int8, calibrated": calibrated}
    return own | {name: EngineEncoder(model, name, calls) for name in names}


def measure(encoder: Any, data: Any) -> dict[str, Any]:
    """Recalls and accuracy in percent, and the embeddings."""
    texts = [caption for group in data.captions for caption in group]
    indices = torch.arange(len(data)).repeat_interleave(torch.tensor([len(group) for group in data.captions]))
    images = encoder.encode_image(LazyImages(data)).float()
    embeddings = Embeddings(images, encoder.encode_text(texts).float(), indices.to(images.device))
    recall = recalls(embeddings)
    classes = as_labelled(ShapeClasses("shape", "val"))
    vectors, rows = class_vectors(encoder, classes, None), encoder.encode_image(classes)
    correct = predictions(rows.float(), vectors, classes.labels, 1.0, classes.class_names).correct
    return {
        "embeddings": embeddings,
        "text to image R@1": recall["text_to_image"]["R@1"],
        "image to text R@1": recall["image_to_text"]["R@1"],
        "zero-shot top-1": 100 * float(correct.double().mean()),
    }


def smallest_cosine(embeddings: Embeddings, exact: Embeddings) -> float:
    pairs = zip(embeddings[:2], exact[:2], strict=True)
    return min(float((torch.nn.functional.normalize(a) * b.float()).sum(1).min()) for a, b in pairs)
