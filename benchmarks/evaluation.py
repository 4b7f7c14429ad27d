"""Zero-shot classification at the speed of `encode_text` and `encode_image`, and its memory.

- The weights of ImageNet's 1,000 classes with OpenAI's 80 templates: miniclip, open_clip's
  `build_zero_shot_classifier` (10 classes at a time, its default, or 1), CLIP_benchmark's, and `encode_text` of the
  same prompts, which is the limit.
- The evaluation of labelled images, against `encode_image` of the same images, which is the limit.
- Peak memory of a process that evaluates few and ten times as many images.

python -m benchmarks evaluation
"""

import contextlib
import io
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import open_clip
import torch
from PIL import Image
from torch import Tensor

from benchmarks.baselines import with_layers
from benchmarks.harness import MINICLIP, Row, Scale, interleaved, require_agreement
from miniclip import export
from miniclip.config import preset
from miniclip.data import Shapes
from miniclip.evaluation import zero_shot
from miniclip.hub import fresh
from miniclip.inference.model import CLIPModel
from miniclip.inference.zero_shot import class_embeddings, fill
from miniclip.tokenizer import Tokenizer

NAMES, TEMPLATES = open_clip.IMAGENET_CLASSNAMES, open_clip.OPENAI_IMAGENET_TEMPLATES
ROUNDS = 3  # at most: 80,000 prompts take minutes on a CPU
SEED_IMAGES = 200  # different encoded images, which are repeated


def rows(scale: Scale) -> Iterator[Row]:
    yield weights_row(scale)
    images = 200 if scale.small else 10_000
    yield images_row(scale, images)
    yield memory_row(images)


def weights_row(scale: Scale) -> Row:
    """Prompts per second; the peers take some of the classes, since each class costs them the same."""
    torch.manual_seed(0)
    config = with_layers(preset("vit_b_16"), 1) if scale.small else preset("vit_b_16")
    model = fresh(config.replace_image(layers=1)).eval().to(scale.device)
    model.tokenizer = Tokenizer.load(open_clip.tokenizer.default_bpe())
    names, templates = (NAMES[:10], TEMPLATES[:4]) if scale.small else (NAMES, TEMPLATES)
    few = names[: 10 if scale.small else 20]
    prompts = [prompt for template in templates for prompt in fill(template, names)]
    calls: dict[str, Callable[[Sequence[str]], Tensor]] = {
        MINICLIP: lambda chosen: class_embeddings(model.encode_text, chosen, templates),
        **peers(model, templates, scale.device),
    }
    results = {name: call(few).float().cpu() for name, call in calls.items()}
    worst = require_agreement(results, 1e-3, "zero-shot weights")
    timed = {name: partial(call, names if name == MINICLIP else few) for name, call in calls.items()}
    work: dict[str, float] = {name: len(few) * len(templates) for name in timed} | {MINICLIP: len(prompts)}
    timed["encode_text"], work["encode_text"] = partial(model.encode_text, prompts), len(prompts)
    values = interleaved(timed, min(ROUNDS, scale.rounds), work)
    targets = {"encode_text": 0.95} | dict.fromkeys((name for name in calls if name != MINICLIP), 2.7)
    case = f"{len(names):,} classes, {len(templates)} templates"
    return Row("zero-shot weights", case, "prompts/s", values, targets, note=f"they differ by {worst:.0e} at most")


def peers(model: CLIPModel, templates: Sequence[Any], device: str) -> dict[str, Callable[[Sequence[str]], Tensor]]:
    """Build the classifiers of open_clip and CLIP_benchmark, both with open_clip's model of the same weights."""
    from clip_benchmark.metrics.zeroshot_classification import zero_shot_classifier

    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about image preprocessing, which is not used here
        export(model, Path(folder), layout="open_clip")
        peer = open_clip.create_model(f"local-dir:{folder}").eval().to(device)
    tokenizer = open_clip.SimpleTokenizer(context_length=peer.context_length)
    texts = [template("{c}") for template in templates]

    def by_open_clip(names: Sequence[str], classes: int) -> Tensor:
        options = {"num_classes_per_batch": classes, "device": device}
        return open_clip.build_zero_shot_classifier(peer, tokenizer, names, templates, **options).T

    def by_clip_benchmark(names: Sequence[str]) -> Tensor:
        with contextlib.redirect_stderr(io.StringIO()):  # its progress bar
            return zero_shot_classifier(peer, tokenizer, list(names), texts, device, amp=False).T

    return {
        "open_clip": partial(by_open_clip, classes=10),
        "open_clip, class by class": partial(by_open_clip, classes=1),
        "CLIP_benchmark": by_clip_benchmark,
    }


class Encoded:
    """Labelled images as the bytes of JPEG files, N of them from `SEED_IMAGES` different ones."""

    def __init__(self, count: int) -> None:
        data = Shapes("test", SEED_IMAGES)
        self.class_names = [f"class {number}" for number in range(10)]
        self.count, self.files = count, [jpeg(data[index][0]) for index in range(SEED_IMAGES)]

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> tuple[bytes, int]:
        return self.files[index % SEED_IMAGES], index % 10


def jpeg(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, "JPEG")
    return file.getvalue()


def small_model(device: str) -> CLIPModel:
    """Build a small model with random weights."""
    torch.manual_seed(0)
    captions = [caption for group in Shapes("train", 50).captions for caption in group]
    tokenizer = Tokenizer.train(captions, preset("bert_vit_tiny").text.vocab_size)
    return fresh(preset("bert_vit_tiny"), tokenizer).eval().to(device)


def images_row(scale: Scale, count: int) -> Row:
    """Images per second of the evaluation and of `encode_image`, decoding included."""
    model, data = small_model(scale.device), Encoded(count)
    files = [data[index][0] for index in range(count)]
    calls = {MINICLIP: partial(zero_shot, model, data), "encode_image": partial(model.encode_image, files)}
    values = interleaved(calls, min(ROUNDS, scale.rounds), work=count)
    return Row("zero-shot evaluation", f"{count:,} images, bert_vit_tiny", "images/s", values, {"encode_image": 0.95})


def memory_row(count: int) -> Row:
    """Peak memory of a process that evaluates the images, and of one with a tenth of them."""
    few = f"{count // 10:,} images"
    values = {MINICLIP: [peak_memory(count)], few: [peak_memory(count // 10)]}
    case = f"memory of {count:,} images, bert_vit_tiny, on the CPU"
    return Row("zero-shot evaluation", case, "MiB", values, {few: 0.95}, lower_is_better=True)


def peak_memory(count: int) -> float:
    """Return the peak of the resident memory in MiB during the evaluation; Linux can forget the peak before it."""
    code = (
        "from pathlib import Path; from benchmarks.evaluation import Encoded, small_model, zero_shot; "
        f"model, data = small_model('cpu'), Encoded({count}); zero_shot(model, Encoded(64)); "
        "Path('/proc/self/clear_refs').write_text('5'); zero_shot(model, data); "
        "line = next(line for line in Path('/proc/self/status').read_text().splitlines() if 'VmHWM' in line); "
        "print(int(line.split()[1]) / 1024)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return float(done.stdout)
