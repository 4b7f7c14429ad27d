"""Encoding in bf16: captions and prompts as token ids and as strings, images as tensors and as files.

The peers get batches of 512, the largest usual ones; transformers pads to the longest text of a batch, open_clip to the
context length. Images are JPEGs of 500 x 375, decoded by 16 threads, with Pillow in the peers' own preprocessing.
"""

import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.baselines import START, Implementation, pooled_features, random_captions, random_prompts, trim
from benchmarks.gpu.models import with_peers
from benchmarks.gpu.table import GpuRow, Session, absent, working
from benchmarks.harness import interleaved, require_agreement

BATCH = 512
TOLERANCE = 0.1  # relative to the largest value, in bf16
WORDS = (
    "a",
    "the",
    "man",
    "woman",
    "dog",
    "in",
    "on",
    "with",
    "red",
    "street",
    "ball",
    "two",
    "people",
    "holds",
    "water",
)
Encode = Callable[[Any], Tensor]


def rows(session: Session) -> None:
    """Write the rows."""
    captions, prompts, images = (32, (2, 4), 8) if session.small else (4096, (2, 500), 512)
    models, absences = with_peers(session, "vit_b_16", ("open_clip", "transformers"), torch.bfloat16)
    texts = {name: text_encoder(name, model) for name, model in models.items()}
    tokens = random_captions(captions)
    compared = partial(compare, session, absences)
    mean = float((tokens != 0).sum() / len(tokens))
    case = f"{captions:,} captions, mean {mean:.0f} tokens, ids"
    session.measure("encode_text", case, partial(compared, texts, tokens.to(session.device)), 6)
    prompt_ids = random_prompts(*prompts)
    case = f"{len(prompt_ids):,} prompts of a classifier, ids"
    session.measure("encode_text", case, partial(compared, texts, prompt_ids.to(session.device)), 4)
    session.measure("encode_text", f"{captions:,} captions, strings", partial(strings, session, models, captions), 12)
    side = models["miniclip"].model.config.image.image_size  # type: ignore[union-attr]
    pixels = torch.randn(images, 3, side, side, device=session.device, dtype=torch.bfloat16)
    encoders: dict[str, Encode] = {name: model.images for name, model in models.items()}
    session.measure("encode_image", f"{images} images, tensor", partial(compared, encoders, pixels), 4)
    session.measure("encode_image", f"{images} images, JPEG files", partial(files, session, models, images), 12)


def text_encoder(name: str, implementation: Implementation) -> Encode:
    """Return a function of token ids (N, T), zeros after the end."""
    if name == "miniclip":
        return implementation.texts
    model: Any = implementation.model

    @torch.no_grad()
    def open_clip(tokens: Tensor) -> Tensor:
        padded = nn.functional.pad(tokens, (0, model.context_length - tokens.shape[1]))
        return torch.cat([model.encode_text(part) for part in padded.split(BATCH)])

    @torch.no_grad()
    def transformers(tokens: Tensor) -> Tensor:
        embeddings = []
        for part in tokens.split(BATCH):
            ids, mask = trim(part)
            embeddings.append(pooled_features(model.get_text_features(input_ids=ids, attention_mask=mask)))
        return torch.cat(embeddings)

    return open_clip if name == "open_clip" else transformers


def compare(session: Session, absences: list[str], encoders: dict[str, Encode], inputs: Any, row: GpuRow) -> None:
    """Compare the embeddings, then time them."""
    calls = working(row, {name: partial(encode, inputs) for name, encode in encoders.items()})
    worst = require_agreement({name: call().float() for name, call in calls.items()}, TOLERANCE, row.part)
    row.notes += [*absences, f"bf16; embeddings differ by at most {worst:.0e} of the largest value"]
    row.unit, row.values = "a second", interleaved(calls, session.rounds, work=len(inputs))


def strings(session: Session, models: dict[str, Implementation], count: int, row: GpuRow) -> None:
    """Time strings to embeddings; every library tokenizes with its own tokenizer. Needs open_clip's vocabulary."""
    if reason := absent("open_clip"):
        raise RuntimeError(f"the vocabulary is open_clip's, and {reason}")
    import open_clip

    from miniclip.tokenizer import Tokenizer

    ours: Any = models["miniclip"].model
    ours.tokenizer = Tokenizer.load(open_clip.tokenizer.default_bpe())
    lengths = (random_captions(count) != 0).sum(dim=1).tolist()
    generator = torch.Generator().manual_seed(0)
    captions = [
        " ".join(WORDS[i] for i in torch.randint(len(WORDS), (length - 2,), generator=generator).tolist())
        for length in lengths
    ]
    tokenize, encode = open_clip.tokenizer.SimpleTokenizer(), text_encoder("open_clip", models["open_clip"])
    encoders: dict[str, Encode] = {
        "miniclip": partial(ours.encode_text, normalize=False),
        "open_clip": lambda texts: encode(tokenize(texts).to(session.device)),
    }
    assert int(ours.tokenizer(captions[:1])[0, 0]) == START
    compare(session, [], encoders, captions, row)


def files(session: Session, models: dict[str, Implementation], count: int, row: GpuRow) -> None:
    """Time image files to embeddings."""
    ours: Any = models["miniclip"].model
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(16) as pool:
        paths = write_images(Path(folder), count)

        def open_clip(names: list[Path]) -> Tensor:
            pixels = torch.stack(list(pool.map(lambda name: read(name, transform), names)))
            return models["open_clip"].images(pixels.to(session.device, torch.bfloat16))

        encoders: dict[str, Encode] = {"miniclip": partial(ours.encode_image, normalize=False)}
        if "open_clip" in models:
            from open_clip.transform import image_transform

            transform = image_transform(ours.config.image.image_size, is_train=False)
            encoders["open_clip"] = open_clip
        compare(session, [] if "open_clip" in models else [str(absent("open_clip"))], encoders, paths, row)


def read(path: Path, transform: Callable[[Any], Tensor]) -> Tensor:
    """Open and preprocess an image with Pillow."""
    from PIL import Image

    with Image.open(path) as image:
        return transform(image)


def write_images(folder: Path, count: int) -> list[Path]:
    """Write smooth random JPEGs of Flickr30k's usual size, 500 x 375."""
    from torchvision.io import write_jpeg

    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(count, 3, 24, 32, generator=generator) * 255
    paths = [folder / f"{number:05}.jpg" for number in range(count)]

    def write(number: int) -> None:
        pixels = nn.functional.interpolate(coarse[number, None], (375, 500), mode="bicubic").clamp(0, 255)
        write_jpeg(pixels[0].byte(), str(paths[number]), quality=90)

    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # one of each writer
    with ThreadPoolExecutor(16) as pool:
        list(pool.map(write, range(count)))
    torch.set_num_threads(threads)
    return paths
