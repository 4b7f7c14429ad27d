"""CLIP: an image tower and a text tower into one space (Radford et al. 2021), and what a user does with them.

`forward` is what training differentiates; `encode_image`, `encode_text` and `classify` take what people have (paths,
pictures, strings) and work in batches without gradient. Letters: B batch, N items, E embedding, S side, T tokens.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn

from miniclip.config import CLIPConfig
from miniclip.data.preprocess import Preprocess
from miniclip.inference.images import ImageReader, OnError, in_places
from miniclip.inference.texts import MOST_TOKENS, embed_texts
from miniclip.losses.reference import l2_normalize
from miniclip.models.init import initialise
from miniclip.models.text import TextTransformer
from miniclip.models.vision import VisionTransformer

if TYPE_CHECKING:
    from miniclip.tokenizer import TextTokenizer

TEMPLATES = ("a photo of a {}.",)


class CLIPOutput(NamedTuple):
    """What a loss takes: unit vectors (B, E) of both sides, the scale (the factor itself) and the bias, if any."""

    image_embeddings: Tensor
    text_embeddings: Tensor
    logit_scale: Tensor
    logit_bias: Tensor | None


class CLIP(nn.Module):
    """The model, with the preprocessing and the tokenizer that its weights were trained with.

    Args:
        config: the architecture; kept as `model.config`.
        tokenizer: kept as `model.tokenizer`; None: `encode_text` takes token ids alone.

    Attributes:
        tokenizer: texts to token ids, or None. Where a checkpoint came without one, `tokenizer_source` makes it the
            first time that it is asked for.
        tokenizer_source: a function that fetches the tokenizer, or None.
        image: the image tower, normalised pixels to (B, E).
        text: the text tower, token ids to (B, E).
        log_scale: the logarithm of the factor on the cosine similarities; a scalar parameter.
        bias: SigLIP's bias on the similarities, a scalar parameter; None in CLIP.
        preprocess: a picture to the pixels that `image` takes.

    Raises:
        ValueError: the tokenizer's ids are not the text tower's.
    """

    bias: nn.Parameter | None

    def __init__(self, config: CLIPConfig, tokenizer: TextTokenizer | None = None) -> None:
        super().__init__()
        if tokenizer is not None:
            require_fit(tokenizer, config)
        self.config = config
        self.tokenizer_source: Callable[[], TextTokenizer] | None = None
        self._tokenizer = tokenizer
        self.preprocess = Preprocess(config)
        self.image = VisionTransformer(config.image, config.embed_dim)
        self.text = TextTransformer(config.text, config.embed_dim)
        self.log_scale = nn.Parameter(torch.tensor(math.log(config.logit_scale)))
        bias = config.logit_bias
        self.register_parameter("bias", None if bias is None else nn.Parameter(torch.tensor(float(bias))))

    def initialise(self) -> CLIP:
        """Fresh weights from torch's global generator, by the table in `models/initialise.py`."""
        initialise(self.image)
        initialise(self.text)
        return self

    @property
    def tokenizer(self) -> TextTokenizer | None:
        """Texts to token ids; fetched the first time, where the checkpoint came without one."""
        if self._tokenizer is None and self.tokenizer_source is not None:
            self.tokenizer = self.tokenizer_source()
        return self._tokenizer

    @tokenizer.setter
    def tokenizer(self, tokenizer: TextTokenizer | None) -> None:
        if tokenizer is not None:
            require_fit(tokenizer, self.config)
        self._tokenizer = tokenizer

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.log_scale.device

    def forward(self, pixels: Tensor, tokens: Tensor, kept: Tensor | None = None) -> CLIPOutput:
        """Embed matching pictures and captions.

        Args:
            pixels: (B, 3, S, S), normalised.
            tokens: (B, T) integer.
            kept: the patches to look at, as in `VisionTransformer.forward`; None: all.

        Returns:
            Unit vectors of both sides, the scale and the bias.
        """
        return CLIPOutput(
            l2_normalize(self.image(pixels, kept)), l2_normalize(self.text(tokens)), self.log_scale.exp(), self.bias
        )

    @torch.no_grad()
    def encode_image(
        self,
        images: Any,
        *,
        batch_size: int = 64,
        normalize: bool = True,
        progress: bool = False,
        num_workers: int | None = None,
        on_error: OnError = "raise",
    ) -> Tensor:
        """Embed pictures.

        Args:
            images: a path, a PIL image, an array (H, W, 3) of uint8, or a list of them; or a float tensor
                (N, 3, S, S) of normalised pixels, as `model.preprocess` makes them. A path's JPEG is read the fast
                way, `read_pixels` of data/jpeg.py, whose pixels are a grey level off here and there.
            batch_size: pictures embedded at a time; the next as many are read meanwhile, and no more.
            normalize: divide each embedding by its length.
            progress: show a bar.
            num_workers: threads that read pictures; 0: none; None: one a core, 16 at most. The result is the same.
            on_error: "raise" at the first picture that cannot be read; or "skip": its row is NaN, and a warning at the
                end names it.

        Returns:
            (N, E) float, a row a picture, in the order given; one picture gives (1, E). No gradient: train with
            `model(pixels, tokens)` or `model.image(pixels)`.

        Raises:
            FileNotFoundError: a path does not exist.
            DataError: a file cannot be read as a picture.
            TypeError: something else was passed.
            ValueError: an option out of its range.
        """
        options = batch_size, normalize, progress, "pictures"

        def embed(pixels: Tensor) -> Tensor:
            dtype = self.image.patches.weight.dtype
            return torch.cat([self.image(part.to(self.device, dtype)) for part in self._at_a_time(pixels)])

        if isinstance(images, Tensor) and images.dim() == 4 and images.is_floating_point():
            return self._encode(images, embed, *options)
        items = images if isinstance(images, Sequence) and not isinstance(images, str) else [images]
        pinned = self.device.type == "cuda"
        reader = ImageReader(
            items, self.preprocess, batch_size, num_workers=num_workers, on_error=on_error, pinned=pinned
        )
        with closing(reader.batches()) as batches:

            def embed_next(numbers: Sequence[int]) -> Tensor:
                pixels, places = next(batches)
                if not places:
                    return torch.full((len(numbers), self.config.embed_dim), torch.nan, device=self.device)
                uint8 = pixels.to(self.device, non_blocking=True)  # a quarter of what the floats would be
                return in_places(embed(self.preprocess.normalise(uint8)), places, len(numbers))

            embeddings = self._encode(range(len(items)), embed_next, *options)
        reader.warn(stacklevel=3)  # at the caller's line, behind no_grad's
        return embeddings

    @torch.no_grad()
    def encode_text(
        self,
        texts: str | Sequence[str] | Tensor,
        *,
        batch_size: int = 256,
        normalize: bool = True,
        progress: bool = False,
    ) -> Tensor:
        """Embed texts.

        Args:
            texts: a string, a list of strings, or token ids (N, T). Strings longer than the context are cut, with a
                warning.
            batch_size: texts embedded at a time, at most. Those of like length go together, and on a CPU fewer of long
                ones.
            normalize: divide each embedding by its length.
            progress: show a bar.

        Returns:
            (N, E) float, a row a text, in the order given; one string gives (1, E). No gradient.

        Raises:
            ValueError: strings were passed to a model without a tokenizer.
            TypeError: something else was passed.
        """
        if batch_size < 1:
            raise ValueError(f"batch_size {batch_size}: expected at least 1")
        embeddings = embed_texts(self, [texts] if isinstance(texts, str) else texts, batch_size, progress)
        return l2_normalize(embeddings) if normalize else embeddings

    def classify(self, images: Any, labels: Sequence[str], templates: Sequence[str] | None = None) -> Tensor:
        """Which of some labels each picture shows, without training (zero-shot).

        Args:
            images: as in `encode_image`.
            labels: C names, such as ["cat", "dog"].
            templates: sentences with `{}` in the label's place, whose embeddings are averaged; None stands for
                "a photo of a {}."

        Returns:
            (N, C) probabilities; a row sums to 1.
        """
        if isinstance(labels, str) or not labels:
            raise ValueError(f"labels: expected a list of at least one name, found {labels!r}")
        templates = templates or TEMPLATES
        sentences = [template.format(label) for template in templates for label in labels]
        classes = l2_normalize(self.encode_text(sentences).view(len(templates), len(labels), -1).mean(dim=0))  # (C, E)
        return (self.log_scale.detach().exp() * self.encode_image(images) @ classes.T).softmax(dim=-1)

    def _at_a_time(self, pixels: Tensor) -> Sequence[Tensor]:
        """A batch of pictures in equal parts of few tokens, on a CPU: what fits its cache is faster."""
        image = self.config.image
        most = MOST_TOKENS.get(self.device.type, math.inf) / (image.patches + image.class_token)
        parts = math.ceil(len(pixels) / max(1, most)) if most < len(pixels) else 1
        return pixels.tensor_split(parts)

    def _encode(
        self, items: Any, embed: Callable[[Any], Tensor], batch_size: int, normalize: bool, progress: bool, unit_: str
    ) -> Tensor:
        if batch_size < 1:
            raise ValueError(f"batch_size {batch_size}: expected at least 1")
        rows = [embed(batch) for batch in _batches(items, batch_size, progress, unit_)]
        if not rows:
            return torch.empty(0, self.config.embed_dim, device=self.device)
        embeddings = torch.cat(rows).float()
        return l2_normalize(embeddings) if normalize else embeddings


def require_fit(tokenizer: TextTokenizer, config: CLIPConfig) -> None:
    """Check that a tokenizer's ids are those of a model: with another end token it would pool at the wrong place.

    Raises:
        ValueError: they are not.
    """
    text = config.text
    ends = text.padding == "masked" or text.pooling == "end"  # else the tower does not look for the end token
    if tokenizer.vocab_size > text.vocab_size or (ends and tokenizer.end_id != text.end_id):
        raise ValueError(
            f"the tokenizer has {tokenizer.vocab_size} tokens and ends captions with {tokenizer.end_id}; the model's "
            f"text tower expects at most {text.vocab_size} and {text.end_id}: they do not belong together"
        )


def _batches(items: Any, size: int, progress: bool, unit_: str) -> Iterator[Any]:
    starts: Any = range(0, len(items), size)
    if progress:
        from tqdm import tqdm

        starts = tqdm(starts, unit=f" x {size} {unit_}")
    return (items[start : start + size] for start in starts)
