"""The same weights in miniclip, open_clip and transformers, each behind the same two functions."""

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
from miniclip.hub import fresh

START, END = 49406, 49407
Inputs = tuple[Tensor, Tensor]  # pixels (B, 3, S, S), and token ids (B, T) without padding to the context's length


@dataclass
class Contender:
    """A library's model.

    Attributes:
        model: as the library makes it.
        images: normalised pixels (B, 3, S, S) to embeddings (B, E), not normalised, without gradient.
        texts: token ids (B, T), zeros behind the end, to embeddings (B, E).
        pair: pixels and token ids to unit embeddings of both sides and the scale, with gradient.
    """

    model: nn.Module
    images: Callable[[Tensor], Tensor]
    texts: Callable[[Tensor], Tensor]
    pair: Callable[[Tensor, Tensor], tuple[Tensor, Tensor, Tensor]]


def contenders(config: CLIPConfig, device: str, dtype: torch.dtype = torch.float32) -> dict[str, Contender]:
    """One model with random weights, three times."""
    torch.manual_seed(0)
    ours = fresh(config).eval()
    with tempfile.TemporaryDirectory() as folder:
        found = {"miniclip": miniclip(ours)}
        for layout, opened in (("open_clip", open_clip), ("transformers", transformers)):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # the peers crop pictures otherwise; these are ready
                export(ours, Path(folder) / layout, layout=layout)
            found[layout] = opened(Path(folder) / layout)
        for contender in found.values():
            contender.model.to(device, dtype)
    return found


def miniclip(model: Any) -> Contender:
    def pair(pixels: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        out = model(pixels, tokens)
        return out.image_embeddings, out.text_embeddings, out.logit_scale

    return Contender(
        model,
        lambda pixels: model.encode_image(pixels, normalize=False),
        lambda tokens: model.encode_text(tokens, normalize=False),
        pair,
    )


def open_clip(folder: Path) -> Contender:
    """As it comes: every text has the context's whole length."""
    import open_clip

    model = open_clip.create_model(f"local-dir:{folder}").eval()
    context = model.context_length

    def padded(tokens: Tensor) -> Tensor:
        return nn.functional.pad(tokens, (0, context - tokens.shape[1]))

    def texts(tokens: Tensor) -> Tensor:
        return torch.cat([model.encode_text(padded(part)) for part in tokens.split(64)])

    return Contender(
        model,
        torch.no_grad()(model.encode_image),
        torch.no_grad()(texts),
        lambda pixels, tokens: model(pixels, padded(tokens)),
    )


def transformers(folder: Path) -> Contender:
    """At its best: `padding=True`, texts as long as the longest of a batch of 64, and no longer."""
    from transformers import CLIPModel

    model = CLIPModel.from_pretrained(folder).eval()

    def texts(tokens: Tensor) -> Tensor:
        found = []
        for part in tokens.split(64):
            cut, mask = trimmed(part)
            found.append(features(model.get_text_features(input_ids=cut, attention_mask=mask)))
        return torch.cat(found)

    def pair(pixels: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        cut, mask = trimmed(tokens)
        out = model(input_ids=cut, pixel_values=pixels, attention_mask=mask)
        return out.image_embeds, out.text_embeds, model.logit_scale.exp()

    def images(pixels: Tensor) -> Tensor:
        return features(model.get_image_features(pixel_values=pixels))

    return Contender(model, torch.no_grad()(images), torch.no_grad()(texts), pair)


def trimmed(tokens: Tensor) -> tuple[Tensor, Tensor]:
    """A batch cut at its longest text, and where its words are, both as the library's tokenizer would give them."""
    longest = int((tokens == END).int().argmax(dim=1).max()) + 1
    mask = (tokens[:, :longest] != 0).long()
    return torch.where(mask.bool(), tokens[:, :longest], END), mask


def features(found: Any) -> Tensor:
    """Transformers 5 gives an object, and 4 a tensor."""
    return getattr(found, "pooler_output", found)


@contextlib.contextmanager
def medium() -> Iterator[None]:
    """The setting by which PyTorch hands float32 products to a faster library, and may do them in bfloat16."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def with_medium(call: Callable[[], Any]) -> Callable[[], Any]:
    def run() -> Any:
        with medium():
            return call()

    return run


def captions(count: int, mean: float = 16.0, seed: int = 0) -> Tensor:
    """Token ids of made-up captions of natural length, start and end included; (N, T), zeros behind the end.

    The lengths are those of Flickr30k's captions: log-normal, from 5 to 77.
    """
    generator = torch.Generator().manual_seed(seed)
    spread = 0.35
    drawn = torch.randn(count, generator=generator) * spread
    lengths = ((mean / torch.tensor(spread**2 / 2).exp()) * drawn.exp()).round().long().clamp(5, 77)
    tokens = torch.zeros(count, int(lengths.max()), dtype=torch.int64)
    for row, length in zip(tokens, lengths.tolist(), strict=True):
        row[1 : length - 1] = torch.randint(300, 40000, (length - 2,), generator=generator)
        row[0], row[length - 1] = START, END
    return tokens


def prompts(templates: int, labels: int, seed: int = 0) -> Tensor:
    """Token ids of a zero-shot classifier's prompts, template by template, as OpenAI's for ImageNet: (N, T).

    Of each template 3 to 6 words stand before the label and 1 or 2 behind; a label has 1 to 4 tokens.
    """
    generator = torch.Generator().manual_seed(seed)

    def words(low: int, high: int) -> list[int]:
        count = int(torch.randint(low, high + 1, (1,), generator=generator))
        return torch.randint(300, 40000, (count,), generator=generator).tolist()

    names = [words(1, 4) for _ in range(labels)]
    rows = []
    for _ in range(templates):
        before, after = words(3, 6), words(1, 2)
        rows += [[START, *before, *name, *after, END] for name in names]
    return nn.utils.rnn.pad_sequence([torch.tensor(row) for row in rows], batch_first=True)


def smaller(config: CLIPConfig, layers: int) -> CLIPConfig:
    """The same with fewer layers, to see that everything works."""
    return dataclasses.replace(config.replace_text(layers=layers).replace_image(layers=layers))
