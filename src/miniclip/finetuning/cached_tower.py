"""Frozen towers that are encoded once (LiT: Zhai et al. 2022, "LiT: Zero-Shot Transfer with Locked-image text Tuning").

The embeddings of a tower without trained parameters and without random inputs never change. They are computed once into
a file (`embedding_table.py`). The loader then reads them in place of the pixels, the step does not run the tower, and
an evaluation embeds its data only the first time. The losses are those without the file: the training loader's pixels
are embedded, in float32 also if the run's precision is bfloat16.

Letters: B batch, C captions per image, E embedding.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from miniclip.data.dataset import ImageCaptionDataset
from miniclip.data.loader import Batch
from miniclip.data.options import LoaderOptions
from miniclip.data.sources.caption_rows import CaptionRows
from miniclip.data.sources.common import Decoded, DecodedBatches, IndexBatches
from miniclip.finetuning.embedding_table import EmbeddingTable
from miniclip.inference.model import CLIPModel
from miniclip.models.clip import CLIPOutput
from miniclip.runs.structure import is_frozen
from miniclip.runtime.devices import send
from miniclip.train.config import TrainConfig
from miniclip.train.step import Inputs
from miniclip.train.step_arguments import InputPreparation, MicroBatches
from miniclip.utils.option_names import option

FOLDER = "embeddings"  # in the run directory
UNCHANGED_IMAGES: dict[str, float | bool | None] = {  # settings, and the value that gives an image one embedding
    "min_crop_area": 1.0,
    "max_rotation_degrees": 0.0,
    "flip": False,
    "color_jitter": 0.0,
    "patch_dropout": 0.0,
    "first_image_size": None,
}
UNCHANGED_TEXTS = {"word_dropout": 0.0, "swap_left_right": False}


def require_cacheable(model: CLIPModel, config: TrainConfig) -> None:
    """Check that the frozen towers of a model have the same embeddings at every step.

    Raises:
        ValueError: no tower is frozen, the frozen one has random inputs, or the weights are sharded.
    """
    if not config.cache_frozen:
        return
    name = option("cache_frozen", True)
    if config.fsdp:
        raise ValueError(f"{name} does not work with fsdp, which shards whole models: leave one of the two out")
    if not (is_frozen(model.image) or is_frozen(model.text)):
        raise ValueError(
            f"{name}: found parameters that are trained in both towers; expected a tower that is frozen completely, "
            f"with its projection: use {option('tune_image', 'frozen')}, or leave cache_frozen out"
        )
    images = UNCHANGED_IMAGES if is_frozen(model.image) else {}
    texts = UNCHANGED_TEXTS if is_frozen(model.text) else {}
    for kind, settings in (("an image", images), ("a caption", texts)):
        for setting, off in settings.items():
            if getattr(config, setting) != off:
                advice = f"leave {setting} out" if off is None else f"use {option(setting, off)}"
                raise ValueError(
                    f"{name}: {setting} is {getattr(config, setting)}, so that {kind} has another embedding at every "
                    f"step; expected {off}: {advice}, or leave cache_frozen out"
                )


def embedding_folder(config: TrainConfig, run_dir: Path) -> Path:
    """Return the folder of the embeddings that a run keeps."""
    return run_dir / FOLDER if config.embedding_cache is None else Path(config.embedding_cache).expanduser()


class EmbeddedImages:
    """Source of embeddings in place of pixels: `Batch.pixels` are (B, E) float32."""

    def __init__(self, table: EmbeddingTable) -> None:
        self.table = table

    def batches(self, indices: IndexBatches) -> DecodedBatches:
        """Yield the embeddings of each list of indices."""
        for batch in indices:
            rows = self.table.rows[list(batch)]
            readable = rows.isfinite().all(dim=1)
            failed = [index for index, is_readable in zip(batch, readable.tolist(), strict=True) if not is_readable]
            yield Decoded(rows[readable], dict.fromkeys(failed, "it could not be read when the images were embedded"))


class FrozenTowers:
    """A model whose frozen towers get embeddings in place of pixels or token ids, and return them.

    It has the model's attributes and parameters, so that a step and an evaluation take it for the model.

    Args:
        model: the model in training.
        data: the training data.
        options: of the training loader.
        folder: of the embeddings.

    Attributes:
        images: embeddings of the training images; None: the image tower runs.
        texts: embeddings of the training captions; None: the text tower runs.
    """

    def __init__(self, model: CLIPModel, data: ImageCaptionDataset, options: LoaderOptions, folder: Path) -> None:
        self.model = model
        self.images = EmbeddingTable(folder, "image", model, data, options) if is_frozen(model.image) else None
        self.texts = EmbeddingTable(folder, "text", model, data, options) if is_frozen(model.text) else None
        self._evaluated: dict[str, tuple[Any, Tensor]] = {}

    @property
    def source(self) -> EmbeddedImages | None:
        """Source of the loader in place of that of the pixels; None: the pixels are needed."""
        return None if self.images is None else EmbeddedImages(self.images)

    def require_frozen(self) -> None:
        """Check that the towers whose embeddings are read are frozen still.

        Raises:
            ValueError: one has trained parameters, which would get no gradient.
        """
        for table, tower, name in ((self.images, self.model.image, "image"), (self.texts, self.model.text, "text")):
            if table is not None and not is_frozen(tower):
                raise ValueError(
                    f"cache_frozen: the {name} tower was frozen when the run was set up, and now it has parameters to "
                    "train: freeze them again, or start a run without cache_frozen"
                )

    def __getattr__(self, name: str) -> Any:
        return getattr(self.model, name)

    def __call__(self, pixels: Tensor, tokens: Tensor, patch_indices: Tensor | None = None) -> CLIPOutput:
        """Embed pairs as the model does; `pixels` or `tokens` of a frozen tower are its embeddings (B, E)."""
        images = self.model.image(pixels, patch_indices) if self.images is None else pixels
        texts = self.model.text(tokens) if self.texts is None else tokens
        return CLIPOutput(images, texts, self.model.log_scale.exp(), self.model.logit_bias)

    def encode_image(self, images: Any) -> Tensor:
        """Embed the images of an evaluation; by a frozen tower, only the first time."""
        key = getattr(images.data, "dataset", images.data), getattr(images.data, "indices", None)
        return self._once("image", key, lambda: self.model.encode_image(images), self.images)

    def encode_text(self, texts: Sequence[str]) -> Tensor:
        """Embed the captions of an evaluation; by a frozen tower, only the first time."""
        return self._once("text", list(texts), lambda: self.model.encode_text(texts), self.texts)

    def _once(self, side: str, key: Any, encode: Any, table: EmbeddingTable | None) -> Tensor:
        if table is None:
            return encode()  # type: ignore[no-any-return]
        if side not in self._evaluated or self._evaluated[side][0] != key:
            self._evaluated[side] = key, encode()
        return self._evaluated[side][1]


def frozen_towers(
    model: CLIPModel, data: ImageCaptionDataset, options: LoaderOptions, config: TrainConfig, run_dir: Path
) -> FrozenTowers | None:
    """Return the model with its frozen towers encoded once, if the settings have `cache_frozen`; else None.

    Raises:
        ValueError: as `require_cacheable`.
    """
    require_cacheable(model, config)
    if not config.cache_frozen:
        return None
    return FrozenTowers(model, data, options, embedding_folder(config, run_dir))


class EmbeddedInputs(Sequence[Inputs]):
    """Inputs of a batch in parts, with the embeddings of frozen towers in place of pixels and token ids."""

    def __init__(self, batch: Batch, parts: MicroBatches, texts: Tensor | None, has_pixels: bool) -> None:
        self.batch, self.parts, self.texts, self.has_pixels = batch, parts, texts, has_pixels

    def __len__(self) -> int:
        return len(self.parts)

    def __getitem__(self, index):  # type: ignore[no-untyped-def]
        """Return the inputs of one part."""
        rows, device = self.parts.parts[index], self.parts.model.device
        captions = self.parts.caption_rows(rows)
        if self.has_pixels:
            inputs = self.parts[index]
        else:
            inputs = Inputs(send(self.batch.pixels[rows], device), send(self.parts.tokens[captions], device))
        return inputs if self.texts is None else inputs._replace(tokens=send(self.texts[captions], device))


class EmbeddedPreparation:
    """Prepares a batch for a model with frozen towers that are encoded once.

    Args:
        prepare: prepares the rest.
        towers: the model.
        caption_rows: the loader's choice of captions.
    """

    def __init__(self, prepare: InputPreparation, towers: FrozenTowers, caption_rows: CaptionRows) -> None:
        self.prepare, self.towers, self.caption_rows = prepare, towers, caption_rows

    def __call__(self, batch: Batch, step: int) -> EmbeddedInputs:
        """Return the inputs of this rank's rows at a step, in micro batches of the settings' size.

        Raises:
            ValueError: a tower that was frozen at the start of the run is not any more.
        """
        self.towers.require_frozen()
        texts = None
        if self.towers.texts is not None:
            texts = self.towers.texts.rows[self.caption_rows.draw(batch.indices, batch.passes)]
        return EmbeddedInputs(batch, self.prepare(batch, step), texts, self.towers.images is None)


def prepare_inputs(
    prepare: InputPreparation, towers: FrozenTowers | None, caption_rows: CaptionRows
) -> InputPreparation | EmbeddedPreparation:
    """Return the preparation of batches for a model, or for one with frozen towers that are encoded once."""
    return prepare if towers is None else EmbeddedPreparation(prepare, towers, caption_rows)
