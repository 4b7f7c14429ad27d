"""A CLIP with its tokenizer and preprocessing: encodes files and strings. Letters: N items, C classes, E embedding."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from miniclip.config import CLIPConfig
from miniclip.data.preprocess import Preprocess
from miniclip.fast import accelerate
from miniclip.inference.batching import rows_per_batch
from miniclip.inference.image_items import Images, check_normalised, image_items
from miniclip.inference.image_towers import other_tower
from miniclip.inference.images import ImageReader, OnError, check_options, embed_images, embed_pixels
from miniclip.inference.texts import Texts, as_texts, embed_texts
from miniclip.inference.zero_shot import Template, class_embeddings, class_probabilities
from miniclip.losses.reference import l2_normalize
from miniclip.models.clip import CLIP
from miniclip.tokenizer import TextTokenizer
from miniclip.utils.items import describe


class CLIPModel(CLIP):
    """A CLIP with the preprocessing and the tokenizer that its weights were trained with, in its fast forms.

    Args:
        config: the architecture.
        tokenizer: texts to token ids; None: `encode_text` takes token ids only.

    Attributes:
        preprocess: image to the pixels that the image tower takes.
        tokenizer: the tokenizer, or None.
        tokenizer_source: function that fetches the tokenizer on first use, or None.
        source: the name or the absolute path that `miniclip.load` read the weights from; None for other weights.

    Raises:
        ValueError: the tokenizer's ids do not fit the text tower.
        TypeError: the configuration or the tokenizer is something else.
    """

    def __init__(self, config: CLIPConfig, tokenizer: TextTokenizer | None = None) -> None:
        if not isinstance(config, CLIPConfig):
            raise TypeError(
                f"config: found {describe(config)}; expected a CLIPConfig: by name, miniclip.load(name, "
                "pretrained=False); from a dict, CLIPConfig.from_dict(values)"
            )
        super().__init__(config, other_tower(config.image, config.embed_dim))
        accelerate(self)
        self.preprocess = Preprocess(config)
        self.tokenizer_source: Callable[[], TextTokenizer] | None = None
        self.tokenizer = tokenizer
        self.source: str | None = None

    @property
    def device(self) -> torch.device:
        """Device of the weights."""
        return self.log_scale.device

    @property
    def tokenizer(self) -> TextTokenizer | None:
        """Tokenizer; fetched on first use if the checkpoint came without one."""
        if self._tokenizer is None and self.tokenizer_source is not None:
            self.tokenizer = self.tokenizer_source()
        return self._tokenizer

    @tokenizer.setter
    def tokenizer(self, tokenizer: TextTokenizer | None) -> None:
        if tokenizer is not None:
            require_fit(tokenizer, self.config)
        self._tokenizer = tokenizer

    @torch.no_grad()
    def add_logit_bias(self, bias: float = -10.0, scale: float = 10.0) -> None:
        """Add a logit bias to a model without one, in place, to fine-tune it with the sigmoid loss.

        Almost every pair of a batch is a negative, so the loss starts well only at a low scale and bias.

        Args:
            bias: initial bias on the similarities; SigLIP's value.
            scale: new initial factor on the similarities, in place of the model's; SigLIP's value.

        Raises:
            ValueError: the model has a bias.
        """
        if self.logit_bias is not None:
            raise ValueError(f"the model has a logit bias, {float(self.logit_bias):.4g}; there is none to add")
        self.config = dataclasses.replace(self.config, logit_bias=bias, logit_scale=scale)
        self.log_scale.fill_(math.log(scale))
        self.logit_bias = nn.Parameter(torch.full_like(self.log_scale, bias))

    @torch.no_grad()
    def encode_image(
        self,
        images: Images,
        *,
        batch_size: int | None = None,
        normalize: bool = True,
        progress: bool = False,
        num_workers: int | None = None,
        on_error: OnError = "raise",
    ) -> Tensor:
        """Embed images.

        Args:
            images: an image, or several in a list, an array, a column of a table or a generator, which is read
                completely. A path, the bytes of an image file, an open file or a PIL image is one image. So is an
                array (H, W), (H, W, 3) or (H, W, 4) of uint8, or a tensor (3, H, W) of uint8. Arrays (N, H, W, 3) and
                tensors (N, 3, H, W) are N images. Float tensors (N, 3, S, S) or (3, S, S) are normalized pixels from
                `model.preprocess`. JPEG files are decoded by `data.decoding.jpeg`: pixels differ by a few grey levels.
            batch_size: images per batch. The next batch is read while the model works. None: 64; on a GPU 512 of a
                tensor, 128 of others.
            normalize: return unit vectors.
            progress: show a progress bar.
            num_workers: threads that read images; 0: none; None: one per core, at most 16. The result is the same.
            on_error: "raise" at an unreadable image, or "skip" it: its row is NaN, and one warning names it.

        Returns:
            (N, E) float32, in order; one image gives (1, E). No gradient: train with `model(pixels, tokens)`.

        Raises:
            FileNotFoundError: a path does not exist.
            DataError: a file cannot be read as an image.
            TypeError: an input is something else, or its scale or the order of its dimensions is not certain.
            ValueError: an option is out of range, or normalized pixels are not.
        """
        items = image_items(images)
        batch_size = rows_per_batch(batch_size, self, 64, 512 if isinstance(items, Tensor) else 128)
        check_options(num_workers, on_error)
        if isinstance(items, Tensor):
            check_normalised(items, self.preprocess)
            embeddings = embed_pixels(self, items, batch_size, progress)
        else:
            pinned = self.device.type == "cuda"
            reader = ImageReader(
                items, self.preprocess, batch_size, num_workers=num_workers, on_error=on_error, pinned=pinned
            )
            embeddings = embed_images(self, self.preprocess, reader, progress)
            reader.warn(stacklevel=3)  # the caller's line, outside no_grad's wrapper
        return l2_normalize(embeddings) if normalize else embeddings

    @torch.no_grad()
    def encode_text(
        self,
        texts: Texts,
        *,
        batch_size: int | None = None,
        normalize: bool = True,
        progress: bool = False,
    ) -> Tensor:
        """Embed texts.

        Args:
            texts: a string, or strings in a list, an array, a column of a table or a generator; or token ids (N, T).
                Texts longer than the context are cut, with a warning.
            batch_size: maximum number of texts per batch. Texts of similar length share a batch. None: 256; on a GPU
                4,096.
            normalize: return unit vectors.
            progress: show a progress bar.

        Returns:
            (N, E) float32, in order; one string gives (1, E). No gradient.

        Raises:
            ValueError: the texts are strings and the model has no tokenizer, an id is not in the vocabulary, or
                batch_size is below 1.
            TypeError: an input is something else.
        """
        batch_size, items = rows_per_batch(batch_size, self, 256, 4096), as_texts(texts)
        tokenizer = None if isinstance(items, Tensor) else self.tokenizer
        embeddings = embed_texts(self, tokenizer, items, batch_size, progress)
        return l2_normalize(embeddings) if normalize else embeddings

    def classify(
        self, images: Images, labels: Iterable[str], templates: Template | Iterable[Template] | None = None
    ) -> Tensor:
        """Classify images by text, without training.

        Args:
            images: as in `encode_image`.
            labels: C class names, such as ["cat", "dog"].
            templates: prompts whose embeddings are averaged: strings with one `{}` in place of the class name, or
                functions of it, as in open_clip. None: "a photo of a {}."

        Returns:
            (N, C) probabilities; each row sums to 1.

        Raises:
            ValueError: labels or templates are empty, or a template does not have one `{}`.
            TypeError: an input is something else.
        """
        classes = class_embeddings(self.encode_text, labels, templates)
        return class_probabilities(self.encode_image(images), classes, self.log_scale.detach().exp())


def require_fit(tokenizer: TextTokenizer, config: CLIPConfig) -> None:
    """Check that a tokenizer's ids are the text tower's.

    Raises:
        ValueError: the vocabulary is larger than the tower's, or the rows do not end with the tower's end token, so
            pooling would be wrong.
        TypeError: the tokenizer is something else.
    """
    if not (callable(tokenizer) and hasattr(tokenizer, "vocab_size") and hasattr(tokenizer, "end_id")):
        raise TypeError(
            f"tokenizer: found {describe(tokenizer)}; expected a tokenizer, as Tokenizer.load(path) returns"
        )
    text = config.text
    uses_end = text.padding == "masked" or text.pooling == "end"
    if tokenizer.vocab_size > text.vocab_size or (uses_end and text.end_id not in (None, tokenizer.end_id)):
        raise ValueError(
            f"the tokenizer has {tokenizer.vocab_size} tokens and ends texts with {tokenizer.end_id}; the model's text "
            f"tower expects at most {text.vocab_size} and {text.end_id}: they do not belong together"
        )
    if uses_end and text.end_id is not None:
        _require_end(tokenizer, text.end_id)


def _require_end(tokenizer: Any, end: int) -> None:
    """Raise ValueError if the rows of a tokenizer do not show their end; other projects' tokenizers may not tell."""
    before, after = getattr(tokenizer, "before", ()), getattr(tokenizer, "after", (end,))
    pad_left = getattr(tokenizer, "pad_left", False)
    if end in before or end not in after or pad_left:
        row = f"{'padding, ' * pad_left}{list(before)}, the text, {list(after)}{', padding' * (not pad_left)}"
        raise ValueError(
            f"a row of the tokenizer is {row}; the model's text tower takes the first id {end} as the end of a text, "
            "and what follows as padding: use a tokenizer.json whose post_processor adds this id after a text only, "
            "and padding_side='right'"
        )
