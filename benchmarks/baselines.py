"""The same weights in miniclip, open_clip and transformers, behind the same three functions; random texts."""

import contextlib
import dataclasses
import tempfile
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from miniclip import CLIPConfig, export
from miniclip.fast.private import has_amx
from miniclip.hub import fresh

START, END = 49406, 49407


@dataclass
class Implementation:
    """A library's model.

    Attributes:
        model: the library's own module.
        images: normalised pixels (B, 3, S, S) to embeddings (B, E), not normalised, without gradient.
        texts: token ids (B, T), zeros after the end, to embeddings (B, E), not normalised, without gradient.
        pair: pixels and token ids to unit embeddings of both sides and the logit scale, with gradient.
    """

    model: nn.Module
    images: Callable[[Tensor], Tensor]
    texts: Callable[[Tensor], Tensor]
    pair: Callable[[Tensor, Tensor], tuple[Tensor, Tensor, Tensor]]


def implementations(config: CLIPConfig, device: str, dtype: torch.dtype = torch.float32) -> dict[str, Implementation]:
    """Build one model with random weights in each library."""
    torch.manual_seed(0)
    source = fresh(config).eval()
    with tempfile.TemporaryDirectory() as folder:
        models = {"miniclip": miniclip(source)}
        for layout, load in (("open_clip", open_clip), ("transformers", transformers)):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # the libraries crop images differently; these inputs are cropped
                export(source, Path(folder) / layout, layout=layout)
            models[layout] = load(Path(folder) / layout)
        for implementation in models.values():
            implementation.model.to(device, dtype)
    return models


def miniclip(model: Any) -> Implementation:
    """Wrap a miniclip model."""

    def pair(pixels: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        out = model(pixels, tokens)
        return out.image_embeddings, out.text_embeddings, out.logit_scale

    return Implementation(
        model,
        lambda pixels: model.encode_image(pixels, normalize=False),
        lambda tokens: model.encode_text(tokens, normalize=False),
        pair,
    )


def open_clip(folder: Path) -> Implementation:
    """Load a checkpoint with open_clip, whose texts always have the full context length."""
    import open_clip

    model = open_clip.create_model(f"local-dir:{folder}").eval()
    context_length = model.context_length

    def pad(tokens: Tensor) -> Tensor:
        return nn.functional.pad(tokens, (0, context_length - tokens.shape[1]))

    def texts(tokens: Tensor) -> Tensor:
        return torch.cat([model.encode_text(pad(batch)) for batch in tokens.split(64)])

    return Implementation(
        model,
        torch.no_grad()(model.encode_image),
        torch.no_grad()(texts),
        lambda pixels, tokens: model(pixels, pad(tokens)),
    )


def transformers(folder: Path) -> Implementation:
    """Load a checkpoint with transformers; texts are padded to the longest of a batch of 64 (`padding=True`)."""
    from transformers import CLIPModel

    model = CLIPModel.from_pretrained(folder).eval()

    def texts(tokens: Tensor) -> Tensor:
        embeddings = []
        for batch in tokens.split(64):
            ids, mask = trim(batch)
            embeddings.append(pooled_features(model.get_text_features(input_ids=ids, attention_mask=mask)))
        return torch.cat(embeddings)

    def pair(pixels: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        ids, mask = trim(tokens)
        out = model(input_ids=ids, pixel_values=pixels, attention_mask=mask)
        return out.image_embeds, out.text_embeds, model.logit_scale.exp()

    def images(pixels: Tensor) -> Tensor:
        return pooled_features(model.get_image_features(pixel_values=pixels))

    return Implementation(model, torch.no_grad()(images), torch.no_grad()(texts), pair)


def trim(tokens: Tensor) -> tuple[Tensor, Tensor]:
    """Cut a batch to its longest text; return its ids and attention mask, as transformers' tokenizer does."""
    longest = int((tokens == END).int().argmax(dim=1).max()) + 1
    mask = (tokens[:, :longest] != 0).long()
    return torch.where(mask.bool(), tokens[:, :longest], END), mask


def pooled_features(output: Any) -> Tensor:
    """Return the embeddings of an output: an object in transformers 5, a tensor in transformers 4."""
    return getattr(output, "pooler_output", output)


@contextlib.contextmanager
def medium_precision() -> Iterator[None]:
    """Context in which PyTorch may multiply float32 matrices with a faster library.

    Nothing changes on a processor with matrix units, where PyTorch would multiply in bfloat16.
    """
    if has_amx():
        yield
        return
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def with_medium_precision(call: Callable[[], Any]) -> Callable[[], Any]:
    """Return a function that makes a call in `medium_precision`."""

    def run() -> Any:
        with medium_precision():
            return call()

    return run


def random_captions(count: int, mean: float = 16.0, seed: int = 0) -> Tensor:
    """Return token ids of captions of natural length, start and end included: (N, T), zeros after the end.

    The lengths are distributed as those of Flickr30k's captions: log-normal, from 5 to 77.
    """
    generator = torch.Generator().manual_seed(seed)
    spread = 0.35
    normal = torch.randn(count, generator=generator) * spread
    lengths = ((mean / torch.tensor(spread**2 / 2).exp()) * normal.exp()).round().long().clamp(5, 77)
    tokens = torch.zeros(count, int(lengths.max()), dtype=torch.int64)
    for row, length in zip(tokens, lengths.tolist(), strict=True):
        row[1 : length - 1] = torch.randint(300, 40000, (length - 2,), generator=generator)
        row[0], row[length - 1] = START, END
    return tokens


def random_prompts(templates: int, labels: int, seed: int = 0) -> Tensor:
    """Return token ids of a zero-shot classifier's prompts, template by template: (N, T), zeros after the end.

    As in OpenAI's prompts for ImageNet, a template has 3 to 6 tokens before the label and 1 or 2 after it. A label has
    1 to 4 tokens.
    """
    generator = torch.Generator().manual_seed(seed)

    def random_tokens(low: int, high: int) -> list[int]:
        count = int(torch.randint(low, high + 1, (1,), generator=generator))
        return torch.randint(300, 40000, (count,), generator=generator).tolist()

    names = [random_tokens(1, 4) for _ in range(labels)]
    rows = []
    for _ in range(templates):
        before, after = random_tokens(3, 6), random_tokens(1, 2)
        rows += [[START, *before, *name, *after, END] for name in names]
    return nn.utils.rnn.pad_sequence([torch.tensor(row) for row in rows], batch_first=True)


def with_layers(config: CLIPConfig, layers: int) -> CLIPConfig:
    """Return a configuration whose towers have another number of layers."""
    return dataclasses.replace(config.replace_text(layers=layers).replace_image(layers=layers))
